"""The quantizer of one stored, saturating format for a whole tensor: the same numbers as `kernel`, in fewer passes over memory.

Most values of a network are of this kind, and a training step spends its time moving them. With the format as Python
numbers, clipping, scaling and rounding are a handful of in-place kernels, and the gradient is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pquant_fx.formats import OverflowMode, RoundingMode
from pquant_fx.graph.functions import applied, flat, parts
from pquant_fx.quantize.rounding import is_stochastic

__all__ = ["Saturation"]

_BELOW_HALF = torch.tensor(0.5 - 2.0**-25)  # the float32 before 1/2


class Saturation(NamedTuple):
    """One format as numbers: bounds of the value, 2^f, 2^-f, and the bounds between which the gradient passes (exclusive).

    It is the quantizer as a `Pointwise`: dq/dx is 1 from the lower to the upper bound and 0 outside. For float32.
    """

    low: float
    high: float
    scale: float
    step: float
    below: float
    above: float
    rounding: RoundingMode

    @classmethod
    def of(cls, k: int, i: int, f: int, rounding: RoundingMode, overflow: OverflowMode) -> Saturation | None:
        """None where the format or a mode is of another kind: zero-width, not saturating, stochastic, wider than float32 holds."""
        bits = i + f
        wide = k + bits > 22 or max(abs(i), abs(f)) > 100
        if overflow not in ("SAT", "SAT_SYM") or rounding not in _ROUND or is_stochastic(rounding) or bits < 0 or k + bits <= 0 or wide:
            return None
        high = 2.0**i - 2.0**-f
        low = -k * (high if overflow == "SAT_SYM" else 2.0**i)
        # a value on a bound is inside: the gradient passes up to the next float32
        return cls(low, high, 2.0**f, 2.0**-f, _beyond(low, -math.inf), _beyond(high, math.inf), rounding)

    @property
    def rectified(self) -> Saturation:
        """The same after a ReLU, of a format without negative values: a ReLU passes no gradient at 0."""
        assert self.low >= 0
        return self._replace(below=0.0)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = applied(_Saturate, x, self)
        return result

    def together(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same of several values, as one vector."""
        result: tuple[Tensor, ...] = applied(_SaturateAll, self, *values)
        return result

    def overwrite(self, x: Tensor) -> Tensor:
        return self._round(x.clamp_(self.low, self.high))

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(grad, x, self.below, self.above)

    def rounded(self, x: Tensor) -> Tensor:
        """q(x) in new memory; nothing is recorded."""
        return self._round(torch.clamp(x, self.low, self.high))

    def _round(self, clipped: Tensor) -> Tensor:
        return _ROUND[self.rounding](clipped, self).mul_(self.step)


class _Saturate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Saturation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.to = to
        return to.rounded(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.to.gradient(grad, x), None


class _SaturateAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, to: Saturation, *values: Tensor) -> tuple[Tensor, ...]:
        together = flat(values)
        ctx.save_for_backward(together)
        ctx.to, ctx.like = to, values  # for their shapes
        return parts(to.rounded(together), values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (together,) = ctx.saved_tensors
        return None, *parts(ctx.to.gradient(flat(grads), together), ctx.like)


def _beyond(bound: float, toward: float) -> float:
    """The next float32, or the smallest normal one beyond 0."""
    return math.copysign(2.0**-126, toward) if bound == 0 else float(np.nextafter(np.float32(bound), np.float32(toward)))


def _half_up(x: Tensor, to: Saturation) -> Tensor:
    if to.low >= 0:
        # floor(s + 1/2) fails at the float32 before 1/2 alone; adding that number instead is right for every s >= 0 of a format's size
        return torch.add(_BELOW_HALF.to(x.device), x, alpha=to.scale, out=x).floor_()
    return x.mul_(2 * to.scale).floor_().mul_(0.5).ceil_()


_ROUND: dict[str, Callable[[Tensor, Saturation], Tensor]] = {
    "TRN": lambda x, to: x.mul_(to.scale).floor_(),
    "RND": _half_up,
    "RND_CONV": lambda x, to: x.mul_(to.scale).round_(),
}
