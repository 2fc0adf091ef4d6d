"""From the range of values to the bits of a format: who shares a range, and how many integer bits it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.formats import OverflowMode, RoundingMode, evaluation_mode
from pquant_fx.quantize.fixed_point import integer_bits
from pquant_fx.quantize.kernel import Bits, as_bits
from pquant_fx.quantize.observers import Observer
from pquant_fx.quantize.rounding import is_stochastic, round_codes

__all__ = [
    "SPREAD",
    "check_width",
    "covering",
    "extremes",
    "largest",
    "observed_format",
    "required_integer_bits",
    "settled",
    "widened_to_wrap",
]

SPREAD = 16  # a group's i lies at most this much below the largest of its tensor, so that accumulators share one 64-bit grid


def check_width(width: int) -> None:
    """Raise ConfigError (PQ306) when no format stores that many bits."""
    if not 1 <= width <= 53:
        raise ConfigError(Problem("PQ306", f"a width of {width} bits is impossible", "use 1 to 24 bits, or up to 53 in float64"))


def extremes(x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each group of `x`, of the group shape: () for one group, else x's rank with size 1 on shared axes."""
    if not shape or x.dim() == 0:
        low, high = torch.aminmax(x)
        return low, high
    shared = [axis for axis, (own, size) in enumerate(zip(shape, x.shape)) if own != size]
    return (x.amin(shared, keepdim=True), x.amax(shared, keepdim=True)) if shared else (x, x)


def largest(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The largest value of each group of `x`, as in `extremes`."""
    shared = [axis for axis, size in enumerate(x.shape) if not shape or shape[axis] != size]
    return x.amax(shared, keepdim=bool(shape)) if shared else x


def settled(i: Tensor, zero: Tensor, spread: int = SPREAD) -> Tensor:
    """Groups of zeros take the largest i of the others (0 when there is none), tiny groups at most `spread` below it.

    A finer lsb than that would only widen the grid on which the accumulators of all groups meet.
    """
    top = i.masked_fill(zero, -torch.inf).amax()
    top = top.masked_fill(top == -torch.inf, 0.0)
    return torch.where(zero, top, torch.maximum(i, top - spread))


def widened_to_wrap(i: Tensor, high: Tensor, magnitude_bits: Bits, rounding: RoundingMode, overflow: OverflowMode) -> Tensor:
    """One more integer bit where `high` would round beyond the largest code and not saturate (a power of two would wrap)."""
    if overflow in ("SAT", "SAT_SYM"):
        return i
    bits = as_bits(magnitude_bits, i)
    code = _rounded(high, (bits - i).exp2(), rounding, upwards=True)
    return i + (code > bits.exp2() - 1).to(i.dtype)


def required_integer_bits(low: Tensor | None, high: Tensor, f: Tensor, rounding: RoundingMode | None, symmetric: bool = False) -> Tensor:
    """The fewest integer bits that hold what [low, high] rounds to on the grid 2^-f, exactly; -f when that is 0.

    low, high: same shape; low None where nothing is negative. rounding: None when both are on the grid. A lower end of -2^i
    needs i bits, or i + 1 when `symmetric`. Nothing is rounded out of range.
    """
    scale = f.exp2()
    magnitude = _rounded(high, scale, rounding, upwards=True)
    if low is not None:
        bottom = _rounded(low, scale, rounding, upwards=False)
        magnitude = torch.maximum(magnitude, -bottom if symmetric else -1 - bottom)
    return torch.frexp(magnitude.clamp(min=0))[1].to(f.dtype) - f


def observed_format(
    observer: Observer,
    width: int,
    *,
    signed: bool | None,
    non_negative: bool,
    safety_bits: int,
    rounding: RoundingMode,
    overflow: OverflowMode,
) -> tuple[Tensor, Tensor, Tensor]:
    """k, i, f of width W for what `observer` saw: the smallest range that covers it, and what is left of W as fraction bits.

    signed: k; None leaves it to the data: unsigned iff `non_negative` (the producer can not be negative) and no value was.
    """
    low, high = observer.extremes
    unsigned = non_negative and overflow != "WRAP_SM" and bool((low >= 0).all())  # WRAP_SM is for signed codes only
    k = torch.full_like(low, float(signed if signed is not None else not unsigned))
    i = observer.integer_bits(k, width, overflow) + safety_bits
    i = settled(i, (high <= 0) & ((low >= 0) | (k == 0)))
    i = widened_to_wrap(i, high, width - k, rounding, overflow)
    return k, i, width - k - i


def covering(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The integer bits that cover each group's range, and which groups are all zeros."""
    zero = (low == 0) & (high == 0)
    return settled(integer_bits(low, high), zero), zero


def _rounded(x: Tensor, scale: Tensor, rounding: RoundingMode | None, upwards: bool) -> Tensor:
    """The outermost code that rounding can make of `x`; None: `x` is on the grid."""
    if rounding is None:
        return x * scale
    if is_stochastic(rounding):
        return (x * scale).ceil() if upwards else (x * scale).floor()
    return round_codes(x, scale, evaluation_mode(rounding))
