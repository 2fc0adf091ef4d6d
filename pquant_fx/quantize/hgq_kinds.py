"""HGQ of parameters and of data: where their first format comes from, and what their integer bits follow under WRAP."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pquant_fx.errors import CalibrationError, Problem
from pquant_fx.quantize.bit_gradients import straight
from pquant_fx.quantize.hgq import MOST_I, HGQQuantizer, Parametrization
from pquant_fx.quantize.kernel import quantize_value, widened
from pquant_fx.quantize.learned import Format, FromData, FromValue
from pquant_fx.quantize.observers import Observer, over_ranks
from pquant_fx.quantize.ranges import covering, extremes, largest, required_integer_bits

__all__ = ["HGQData", "HGQWeight"]

_SPREAD = 4  # a weight begins with an i at most this much below that of the largest: i learns to grow slowly
_HEADROOM = 2  # integer bits above the largest weight: pressed away in a few epochs, while a weight that saturates can not grow


class HGQWeight(FromValue, HGQQuantizer):
    """HGQ of a weight or a bias: k = 1, and 0 magnitude bits is the value 0.

    overflow: None means SAT_SYM for weights and WRAP for biases. Under WRAP i is computed from the value itself each time, so that
    nothing ever wraps; KIF is then HGQ v1 (f alone is trained, a weight that rounds to 0 has no bits). `i` keeps that of the
    last training forward, for EBOPs. parametrization: None means KBI, and KIF under WRAP.
    """

    least = 1

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        *,
        role: Literal["weight", "bias"] = "weight",
        rounding: str = "RND",
        overflow: str | None = None,
        parametrization: Parametrization | None = None,
        group_size: int = 1,
        group_grad_norm: bool = False,
    ) -> None:
        super().__init__(shape, width, rounding, overflow or ("WRAP" if role == "bias" else "SAT_SYM"))
        self.role = role
        self._set_up(parametrization or ("kif" if self.overflow == "WRAP" else "kbi"), group_size, group_grad_norm)

    def kif(self, x: Tensor | None = None) -> Format:
        """k, i, f; x: the value, which the format follows under WRAP. Raises CalibrationError (PQ307) where it is missing."""
        if self.tracked and x is None:
            raise CalibrationError(Problem("PQ307", "this format follows its value", "give the value: `quantizer.kif(weight)`"))
        return super().kif(x)

    def bits(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """i and f as integers with identity gradient; under WRAP those of `x`, or of the last training forward."""
        if not self.tracked or x is None:
            return super().bits()
        i, f = self._following(x.detach())
        return i, straight(self._fraction(i), f)

    def extra_repr(self) -> str:
        if not self.calibrated or not self.tracked:
            return super().extra_repr()
        learned = self.get_parameter(self.bit_parameters[0]).detach()
        return f"{self.bit_parameters[0]}={float(learned.min()):.1f}..{float(learned.max()):.1f}, {self.rounding}, {self.overflow}"

    def _begin(self, x: Tensor) -> None:
        """The first i: what each group needs (KBI, which nothing presses down later); one for all of a tensor (KIF per weight)."""
        i, _ = covering(*extremes(x, self.shape))
        if self.shape == tuple(x.shape):
            top = i.amax()
            alike = top + (0 if self.tracked else _HEADROOM)
            i = torch.maximum(i, top - _SPREAD) if self.by_width else alike.expand(self.shape)
        self._take(self.k, i, self.width - 1 - i)

    def _following(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._needed(*extremes(widened(x), self.shape), symmetric=True)

    def _value(self, x: Tensor) -> Tensor:
        if not self.tracked:
            return super()._value(x)
        with torch.no_grad():
            i, f = self._following(x) if self.by_width else (self.i, self._whole_fraction())
        y = self._rounded(x, i, f)
        if self.training:
            with torch.no_grad():
                if not self.by_width:
                    i = required_integer_bits(None, largest(y.abs(), self.shape), f, None)
                self.i.copy_(i)
        return y


class HGQData(FromData, HGQQuantizer):
    """HGQ of data, batch axis shared, or of the output of a table (KBI, SAT_SYM).

    Under WRAP, and under SAT and SAT_SYM if `tracked`, training rounds without bounds and tracks i <- max(i - i_decay, what the
    batch needs); eval overflows with it, and a calibration after training traces i and k over its batches, plus `safety_bits` if given,
    with the fractions that were learned. Keywords: see FromData.
    """

    traced: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        *,
        role: Literal["data", "table"] = "data",
        signed: bool | None = None,
        non_negative: bool = False,
        rounding: str = "RND",
        overflow: str | None = None,
        parametrization: Parametrization | None = None,
        method: str = "minmax",
        percentile: float = 99.99,
        safety_bits: int | None = None,
        i_decay: float = 0.01,
        tracked: bool = False,
        group_size: int = 1,
        group_grad_norm: bool = False,
    ) -> None:
        super().__init__(
            shape,
            width,
            rounding,
            overflow or ("SAT_SYM" if role == "table" else "SAT"),
            signed=signed,
            non_negative=non_negative,
            method=method,
            percentile=percentile,
            safety_bits=safety_bits,
        )
        self.role, self.i_decay = role, i_decay
        self._set_up(parametrization or ("kbi" if role == "table" else "kif"), group_size, group_grad_norm, tracked)
        self.register_buffer("traced", torch.tensor(1))
        self._traced = True

    @property
    def is_traced(self) -> bool:
        """False while i is what the last training batches needed: values beyond them would overflow. A calibration mends it."""
        return self._traced

    def _mark_traced(self, on: bool) -> None:
        self.traced.fill_(int(on))
        self._traced = on

    def _value(self, x: Tensor) -> Tensor:
        if not self.tracked:
            return super()._value(x)
        if not self.training and self._observer is None:
            i, f = self.bits()
            return quantize_value(x, self.k, i, f, self.rounding, self.overflow)
        with torch.no_grad():
            if self.training and self.by_width:
                self._track(self._needed(*self._ends(x), symmetric=False)[0])
            i, f = self._whole()
        y = self._rounded(x, i, f)
        if self.training and not self.by_width:
            with torch.no_grad():
                peaks: tuple[Tensor | None, Tensor] = (None, largest(y, self.shape)) if self._signed is False else self._ends(y)
                self._track(required_integer_bits(*peaks, f, None))
        return y

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The range of each group, without what lies below an unsigned one."""
        low, high = extremes(x, self.shape)
        return low if self._signed else low * self.k, high

    def _track(self, i: Tensor) -> None:
        if self._traced:
            self._mark_traced(False)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            i = over_ranks(i, "MAX")
        self.i.copy_(torch.maximum(self.i - self.i_decay, i).clamp_(-MOST_I, MOST_I))

    def _retrace(self, observer: Observer) -> None:
        if not self.tracked or not observer.seen:
            return
        self._mark_traced(True)
        with torch.no_grad():
            low, high = (t.to(self.k) for t in observer.extremes)
            if self.signed is None:  # data alone prove no sign: unsigned formats need a value that can not be negative
                self.k.copy_((low < 0).to(self.k) if self.non_negative else torch.ones_like(self.k))
            i, _ = self._needed(low * self.k, high, symmetric=False)
            self.i.copy_(i + self.spare_bits)
        self._loaded()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._traced = bool(self.traced)
