"""Means over numbers of elements that are no power of two: the exact sum times a fixed-point reciprocal.

    torch.mean(x, axes, keepdim)        ->   scaled_sum(x, axes, keepdim, r)                 r = round(2^f / P) 2^-f
    F.avg_pool(x, kernel, ...)          ->   scaled_pool(x, kernel, ..., r)                  P: elements of a window

1/P has no finite binary expansion, and runtimes divide each in their own way. With r the mean is a sum and one product by a
constant, which every engine computes alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

__all__ = ["fixed_reciprocal", "scaled_pool", "scaled_sum"]

Ns = Sequence[int]
_MOST_BITS = 20  # of a value: r then has 22 significant bits at most and is exact in float32


def fixed_reciprocal(count: int, bits: int) -> float:
    """r = round(2^f / P) 2^-f with f = bits + ceil(log2 P) + 1 fraction bits, for P = `count` values that `bits` bits hold.

    |r - 1/P| <= 2^-(f + 1), so that the mean is off by at most a quarter of an lsb of a format of `bits` bits around its values.
    """
    f = min(bits, _MOST_BITS) + (count - 1).bit_length() + 1
    return round(2**f / count) * 2.0**-f


def scaled_sum(x: Tensor, axes: Ns, keepdim: bool, factor: float) -> Tensor:
    """torch.sum(x, axes, keepdim) * factor."""
    return x.sum(tuple(axes), keepdim=keepdim) * factor


def scaled_pool(x: Tensor, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool, factor: float) -> Tensor:
    """Window sums times `factor` over the last len(kernel) axes, one or two; padding counts as zeros. Arguments as of F.avg_pool2d."""
    if len(kernel) == 2:
        return F.avg_pool2d(x, tuple(kernel), tuple(stride), tuple(padding), ceil_mode, count_include_pad, divisor_override=1) * factor
    line = x.unsqueeze(-2)
    sums = F.avg_pool2d(line, (1, *kernel), (1, *stride), (0, *padding), ceil_mode, count_include_pad, divisor_override=1)
    return sums.squeeze(-2) * factor
