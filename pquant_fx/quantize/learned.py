"""What all quantizers share whose format is trained: when it is set, when it is learned, and what it is when frozen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.formats import evaluation_mode
from pquant_fx.graph.format_text import format_text
from pquant_fx.quantize.grid import widened
from pquant_fx.quantize.observers import METHODS, Observer, make_observer
from pquant_fx.quantize.precision import check_precision
from pquant_fx.quantize.ranges import check_width, observed_format
from pquant_fx.quantize.static import FixedQuantizer, FormatBuffers

__all__ = ["FromData", "FromValue", "LearnedQuantizer"]

Format = tuple[Tensor, Tensor, Tensor]


class LearnedQuantizer(FormatBuffers):
    """A quantizer whose format is made of parameters, of group shape `shape`, all of them there from the beginning.

    It passes values through until calibration has set the format. Each further calibration sets it anew until
    `begin_learning`; from then on the format belongs to the optimizer.
    width: stored bits W of the first format. A buffer `learning` tells the two phases apart.
    """

    k: Tensor
    learning: Tensor
    overflows: tuple[str, ...] = ("SAT", "SAT_SYM")
    least: int = 0
    """Magnitude bits below which only the value 0 is left; with 0, the signed one-bit type {-lsb, 0} is a type too."""

    def __init__(self, shape: tuple[int, ...], width: int, rounding: str, overflow: str, k: int) -> None:
        super().__init__(rounding, overflow, known=False)
        check_width(width)
        if self.overflow not in self.overflows:
            what = f"{type(self).__name__} does not learn formats that overflow by {overflow}"
            raise ConfigError(Problem("PQ306", what, f"use {' or '.join(self.overflows)}"))
        self.shape, self.width = tuple(shape), width
        self.register_buffer("k", torch.full(self.shape, float(k)))
        self.register_buffer("learning", torch.tensor(0))
        self._learning = False
        self._signed: bool | None = bool(k)

    @property
    def is_learning(self) -> bool:
        """Whether training has begun: calibration no longer sets the format."""
        return self._learning

    def begin_learning(self) -> None:
        """Hand the format over to the optimizer. Raises CalibrationError (PQ307) while there is none."""
        self._need_calibration()
        self._learn(True)

    @abstractmethod
    def bits(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """i and f as integers, of the group shape, each with the gradient of the parameters behind it; x: as in `kif`."""

    @abstractmethod
    def clamp_(self) -> None:
        """Put the parameters back into their bounds, in place; to be called after each optimizer step."""

    @abstractmethod
    def _take(self, k: Tensor, i: Tensor, f: Tensor) -> None:
        """Let the parameters say this format, without gradients."""

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor:
        """q(x) with the gradients of training, x float32 or float64."""

    def regularization(self) -> Tensor:
        """What gamma weighs in the loss (HGQ; 0 where there is no such term), a 0-d tensor."""
        return self.k.new_zeros(())

    def penalty(self) -> Tensor | None:
        """What the method itself adds to the loss, its factor included; None for nothing."""
        return None

    def kif(self, x: Tensor | None = None) -> Format:
        """k, i, f; zero-bit elements have k = 0 and i + f = 0. i and f carry gradients."""
        i, f = self.bits(x)
        k = self.k * (i + f >= (1 if self.overflow == "SAT_SYM" else self.least)).to(i.dtype)
        empty = k + i + f <= 0
        return torch.where(empty, 0.0, k), i, torch.where(empty, -i, f)

    def sign_bits(self, x: Tensor | None = None) -> Tensor:
        return self.kif(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """q(x), of x's shape; x itself while no format is set. Raises ConfigError (PQ306) when x's dtype can not hold W bits."""
        if not self._calibrated:
            return x
        check_precision(self, self.width, self.width - int(self._signed is True), x)
        return self._value(widened(x))

    def frozen(self, x: Tensor | None = None) -> FixedQuantizer:
        """The format as it is now, stored: `frozen(x)(x)` equals `self(x)` in eval mode. Raises CalibrationError (PQ307)."""
        self._need_calibration()
        return FixedQuantizer(*self.kif(x), evaluation_mode(self.rounding), self.overflow).to(self.k.device).eval()

    def snapshot(self) -> Callable[[], None]:
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}

        def restore() -> None:
            self.load_state_dict(state)

        return restore

    def extra_repr(self) -> str:
        if not self.calibrated:
            return "not calibrated"
        return f"{format_text(*(t.detach() for t in self.kif()))}, {self.rounding}, {self.overflow}"

    def _mark(self, known: bool) -> None:
        super()._mark(known)
        self._loaded()

    def _loaded(self) -> None:
        """Python's mirrors of buffers, for a forward that waits for no device."""
        self._learning = bool(self.learning)
        if self.k.numel() and not self.k.is_meta:
            least, most = (bool(end) for end in torch.aminmax(self.k))
            self._signed = most if least == most else None

    def _learn(self, on: bool) -> None:
        self.learning.fill_(int(on))
        self._learning = on


class FromData(LearnedQuantizer):
    """A learned quantizer of data: calibration sets its first format from what its observer saw (protocol Observable).

    signed: k; None leaves it to the data: unsigned iff `non_negative` (the producer can not be negative) and no value was.
    method, percentile: as in CalibratedQuantizer. safety_bits: extra integer bits, by default 1 for the first format under WRAP, else 0.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        rounding: str = "RND",
        overflow: str = "SAT",
        *,
        signed: bool | None = None,
        non_negative: bool = False,
        method: str = "minmax",
        percentile: float = 99.99,
        safety_bits: int | None = None,
    ) -> None:
        super().__init__(shape, width, rounding, overflow, k=int(signed if signed is not None else not non_negative))
        if method not in METHODS:
            raise ConfigError(Problem("PQ405", f"there is no calibration method '{method}'", f"use one of {', '.join(METHODS)}"))
        self.signed, self.non_negative, self.method, self.percentile = signed, non_negative, method, percentile
        self.safety_bits = int(self.overflow == "WRAP") if safety_bits is None else safety_bits
        self.spare_bits = safety_bits or 0  # of later traces: they see what training saw, and what is spare costs EBOPs
        self._observer: Observer | None = None

    def observe(self, observer: Observer | None) -> None:
        """Show all values to `observer`: as they come before learning, quantized afterwards. None: no longer."""
        self._observer = observer

    def new_observer(self) -> Observer:
        """An observer of the group shape that has seen nothing: of this quantizer's method, of extremes once it is learning."""
        return make_observer("minmax" if self._learning else self.method, self.shape, self.percentile)

    def settle(self, observer: Observer) -> None:
        """Take the format from what `observer` saw; once learning, only what the optimizer does not train."""
        if self._learning:
            self._retrace(observer)
            return
        made = observed_format(
            observer,
            self.width,
            signed=self.signed,
            non_negative=self.non_negative,
            safety_bits=self.safety_bits,
            rounding=self.rounding,
            overflow=self.overflow,
        )
        with torch.no_grad():
            self._take(*(t.to(self.k) for t in made))
        self._mark(True)

    def _retrace(self, observer: Observer) -> None:
        """Called instead of taking a format, once learning."""

    def forward(self, x: Tensor) -> Tensor:
        if self._observer is None:
            return super().forward(x)
        x = super().forward(x) if self._learning else x
        self._observer.update(x)
        return x


class FromValue(LearnedQuantizer):
    """A learned quantizer of parameters, k = 1: `start` sets its first format from the value (protocol StartsFromValue)."""

    def __init__(self, shape: tuple[int, ...], width: int, rounding: str = "RND", overflow: str = "SAT") -> None:
        super().__init__(shape, width, rounding, overflow, k=1)

    def start(self, value: Tensor) -> None:
        """Take the first format from `value`, the parameter as it reaches the quantizer; nothing once learning."""
        if self._learning:
            return
        with torch.no_grad():
            self._begin(widened(value.detach()))
        self._mark(True)

    @abstractmethod
    def _begin(self, x: Tensor) -> None:
        """Let the parameters say the first format, without gradients."""


def parameter(shape: tuple[int, ...], value: float) -> nn.Parameter:
    """A parameter of one number."""
    return nn.Parameter(torch.full(shape, value))
