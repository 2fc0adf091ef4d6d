"""Rounding of scaled values to integer codes, exact in floating point.

With s = x 2^f, n = floor(s), r = s - n, a mode returns n or n + 1. `floor(s + 0.5)` is *not* round-half-up in floating
point (0.49999997 would give 1 in float32, 8388609 would give 8388610). Doubling is exact, so the ties are decided on
2s instead: floor(2s) is 2n or 2n + 1, and its half rounded up is n + (r >= 1/2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pquant_fx.formats import RoundingMode, evaluation_mode

__all__ = ["is_stochastic", "round_codes"]


def is_stochastic(mode: RoundingMode) -> bool:
    """Whether training rounds by chance in this mode."""
    return mode in ("S_RND", "S_RND_CONV")


def round_codes(x: Tensor, scale: Tensor, mode: RoundingMode, noise: Tensor | None = None, non_negative: bool = False) -> Tensor:
    """Integer codes of `x * scale` as a new floating tensor of the broadcast shape.

    scale: exact powers of two. noise: draws of U[0, 1) of x's shape, which make the stochastic modes round up with
    probability r; without it they act as their evaluation mode. Ties of the others: RND to +inf, RND_MIN_INF to -inf,
    RND_ZERO to zero, RND_INF away from zero, RND_CONV to even. TRN is the floor, TRN_ZERO cuts toward zero.
    non_negative: no x is below 0, which RND is faster for.
    """
    if is_stochastic(mode) and noise is not None:
        s = x * scale
        n = s.floor()
        return n + (noise < s - n)
    mode = evaluation_mode(mode)
    if mode == "TRN":
        return (x * scale).floor_()
    if mode == "TRN_ZERO":
        return (x * scale).trunc_()
    if mode == "RND_CONV":
        return (x * scale).round_()
    if mode == "RND" and non_negative:
        # floor(s + 1/2) fails at the number before 1/2 alone; adding that number instead is right for every s >= 0
        below_half = x.new_full((), 0.5 - torch.finfo(x.dtype).eps / 4)
        return torch.addcmul(below_half, x, scale).floor_()
    twice = x * (scale + scale)
    if mode == "RND":
        return twice.floor_().mul_(0.5).ceil_()
    if mode == "RND_MIN_INF":
        return twice.ceil_().mul_(0.5).floor_()
    magnitude = twice.abs()
    if mode == "RND_ZERO":
        magnitude = magnitude.ceil_().mul_(0.5).floor_()
    else:
        magnitude = magnitude.floor_().mul_(0.5).ceil_()
    return torch.copysign(magnitude, twice)
