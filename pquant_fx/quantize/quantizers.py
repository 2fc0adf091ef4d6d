"""The quantizers of a compiled graph: stored, calibrated, following their value (weights), following a grid (biases)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pquant_fx.errors import CalibrationError, ConfigError, PQuantError, Problem
from pquant_fx.formats import evaluation_mode
from pquant_fx.graph.batch_correction import Pointwise
from pquant_fx.graph.functions import alike, flat
from pquant_fx.quantize.dynamic import DynamicQuantizer
from pquant_fx.quantize.fixed_point import EXPONENT_LIMIT
from pquant_fx.quantize.kernel import Bits, round_value, round_values
from pquant_fx.quantize.observers import METHODS, Observer, make_observer
from pquant_fx.quantize.precision import is_narrow
from pquant_fx.quantize.ranges import check_width, observed_format
from pquant_fx.quantize.rounding import is_stochastic, round_codes
from pquant_fx.quantize.static import FixedQuantizer, FormatBuffers

__all__ = ["AccumulatorQuantizer", "CalibratedQuantizer", "DynamicQuantizer", "FixedQuantizer", "IndexQuantizer"]


class CalibratedQuantizer(FixedQuantizer):
    """A data quantizer of fixed width W whose format `calibrate` derives from observed values (f = W - k - i).

    shape: () for one format, or the value's rank with size 1 on every shared axis, (1, C, 1, 1) for one per channel.
    signed: k; None leaves it to the data: unsigned iff `non_negative` (the producer can not be negative) and no value
    was. method: minmax, ema, percentile, mse. safety_bits: extra integer bits, by default 1 for WRAP and WRAP_SM, else 0.
    """

    def __init__(
        self,
        width: int,
        shape: tuple[int, ...] = (),
        signed: bool | None = None,
        rounding: str = "RND",
        overflow: str = "SAT",
        method: str = "minmax",
        *,
        non_negative: bool = False,
        safety_bits: int | None = None,
        percentile: float = 99.99,
    ) -> None:
        check_width(width)
        if method not in METHODS:
            raise ConfigError(Problem("PQ405", f"there is no calibration method '{method}'", f"use one of {', '.join(METHODS)}"))
        k = 0 if signed is False else 1
        super().__init__(torch.full(shape, float(k)), 0, width - k, rounding, overflow, calibrated=False)
        self.width, self.shape, self.signed, self.method = width, tuple(shape), signed, method
        self.non_negative, self.percentile = non_negative, percentile
        self.safety_bits = int(self.overflow in ("WRAP", "WRAP_SM")) if safety_bits is None else safety_bits
        self._observer: Observer | None = None

    def observe(self, observer: Observer | None) -> None:
        """Show all values to `observer` and pass them through unchanged; None: quantize again."""
        self._observer = observer

    def new_observer(self) -> Observer:
        """An observer of this quantizer's method and group shape that has seen nothing."""
        return make_observer(self.method, self.shape, self.percentile)

    def format_for(self, observer: Observer) -> tuple[Tensor, Tensor, Tensor]:
        """k, i, f for what `observer` saw: the smallest range that covers it, and what is left of W as fraction bits."""
        return observed_format(
            observer,
            self.width,
            signed=self.signed,
            non_negative=self.non_negative,
            safety_bits=self.safety_bits,
            rounding=self.rounding,
            overflow=self.overflow,
        )

    def settle(self, observer: Observer) -> None:
        """Take the format from what `observer` saw."""
        self.set_format(*self.format_for(observer))

    def pointwise(self, x: Tensor, rectify: bool = False) -> Pointwise | None:
        return super().pointwise(x, rectify) if self._observer is None else None

    def forward(self, x: Tensor) -> Tensor:
        """q(x), of x's shape; x itself while an observer looks on or no format is set."""
        if self._observer is not None:
            self._observer.update(x)
            return x
        return super().forward(x)


class IndexQuantizer(FixedQuantizer):
    """The format of numbers of rows 0 .. rows - 1: whole, unsigned. Integers pass as they are, so that torch refuses what is no row."""

    def __init__(self, rows: int) -> None:
        super().__init__(0, max((rows - 1).bit_length(), 1), 0, "TRN", "SAT")

    def pointwise(self, x: Tensor, rectify: bool = False) -> Pointwise | None:
        return super().pointwise(x, rectify) if x.is_floating_point() else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.is_floating_point() else x


class AccumulatorQuantizer(FormatBuffers):
    """A bias quantizer: rounds to multiples of 2^-f and never saturates, because i follows the value.

    f: fraction bits of the accumulator that the bias is added to, a number or one entry per bias; `calibrate` sets it to
    f_w + f_x. Passes its input through until then. Gradient 1 everywhere.
    """

    f: Tensor
    names = ("f",)

    def __init__(self, f: Bits = 0.0, rounding: str = "RND", overflow: str = "SAT", calibrated: bool = False) -> None:
        super().__init__(rounding, overflow, calibrated)
        self.register_buffer("f", self._checked(torch.as_tensor(f, dtype=torch.float32)))
        self._bypassed = False
        self._shared: tuple[list[tuple[Tensor, int, torch.Size]], Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shared": None}

    def bypass(self, on: bool) -> None:
        """Pass values through unrounded, while calibration looks at the rest of the network."""
        self._bypassed = on

    def set_fraction(self, f: Bits) -> None:
        """Round to multiples of 2^-f from now on, in place. Raises ConfigError (PQ306)."""
        self._store("f", self._checked(torch.as_tensor(f).to(self.f)))
        self._mark(True)

    def _limit(self, upper: bool) -> float:
        return float("inf") if upper else float("-inf")

    def kif(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """k, i, f for the value `x`: k = 1, and the smallest width, one for all entries, that holds the rounded values.

        The width is at least 2, because a signed 1-bit type means different things to different tools.
        """
        self._need_calibration()
        if x is None:
            raise CalibrationError(Problem("PQ307", "this format follows its value", "give the value: `quantizer.kif(bias)`"))
        x = x.detach().double()
        f = self.f.double()
        n = round_codes(x, f.exp2(), evaluation_mode(self.rounding))
        magnitude = torch.where(n < 0, -n - 1, n)
        bits = torch.frexp(magnitude.amax())[1].to(f.dtype).clamp(min=1) if n.numel() else f.new_ones(())
        i = (bits - f).to(self.f.dtype)
        return torch.ones_like(i), i, self.f

    def forward(self, x: Tensor) -> Tensor:
        """x rounded to multiples of 2^-f; x itself while f is not set, and during calibration."""
        return round_value(x, self.f, self.rounding, self.training) if self._calibrated and not self._bypassed else x

    @classmethod
    def together(cls, quantizers: Sequence[Self], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """All values as one vector, where they round in the same way; its scales are kept while nobody exchanges or edits an f."""
        first, dtype = quantizers[0], values[0].dtype
        known = all(q.calibrated and not q._bypassed and q.rounding == first.rounding for q in quantizers)
        if not known or is_stochastic(first.rounding) or is_narrow(values[0]) or not alike(values) or torch.is_inference_mode_enabled():
            return super().together(quantizers, values)
        bits = [(q.f, q.f._version, value.shape) for q, value in zip(quantizers, values)]
        kept = first._shared
        if kept is None or kept[1].dtype is not dtype or any(a is not f or v != n or s != x for (a, v, s), (f, n, x) in zip(kept[0], bits)):
            f = flat([q.f.to(dtype).expand_as(value) for q, value in zip(quantizers, values)])
            first._shared = kept = (bits, f.exp2(), (-f).exp2())
        return round_values(values, kept[1], kept[2], first.rounding)

    def frozen(self, x: Tensor) -> FixedQuantizer:
        """A stored format that holds the rounded `x` exactly: `frozen(x)(x)` equals `self(x)` in eval mode.

        Raises PQuantError (PQ305) for NaN or infinities, CalibrationError (PQ307) while f is not set, ConfigError (PQ306)
        when more than 53 bits are needed.
        """
        if not bool(x.isfinite().all()):
            raise PQuantError(Problem("PQ305", "the value holds NaN or infinities", "look for a diverged training or a broken checkpoint"))
        return FixedQuantizer(*self.kif(x), evaluation_mode(self.rounding), "SAT", saturates=False).to(x.device).eval()

    def extra_repr(self) -> str:
        if not self.calibrated:
            return "not calibrated"
        low, high = int(self.f.min()), int(self.f.max())
        return f"f={low if low == high else f'{low}..{high}'}, {self.rounding}"

    def _checked(self, f: Tensor) -> Tensor:
        f = f.detach().round().clone()
        if not bool((f.abs() <= EXPONENT_LIMIT).all()):
            raise ConfigError(
                Problem("PQ306", f"f is not a number within -{EXPONENT_LIMIT} .. {EXPONENT_LIMIT}", "choose another accumulator format")
            )
        return f
