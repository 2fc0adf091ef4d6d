"""Windows over alkaid's variables: sums as balanced trees, maxima by comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.lower.rtl.adapter import Symbols, constant, total

__all__ = ["amax", "avg_pool", "larger", "max_pool", "mean", "scaled_pool", "scaled_sum", "sum_over"]

Ns = Sequence[int]


def larger(x: Any, y: Any) -> Any:
    """The larger of two variables."""
    return x.max_of(y)


def _reduced(x: Symbols, axes: Sequence[int], keepdim: bool, combine: Callable[[list[Any]], Any]) -> Symbols:
    kept = [a for a in range(x.ndim) if a not in axes]
    moved = np.transpose(x, (*kept, *axes)).reshape(*(x.shape[a] for a in kept), -1)
    made = np.empty(moved.shape[:-1], dtype=object)
    for at in np.ndindex(made.shape):
        made[at] = combine(list(moved[at]))
    return made.reshape([1 if a in axes else n for a, n in enumerate(x.shape)]) if keepdim else made


def _largest(values: list[Any]) -> Any:
    while len(values) > 1:
        values = [larger(*values[n : n + 2]) if n + 1 < len(values) else values[n] for n in range(0, len(values), 2)]
    return values[0]


def amax(x: Symbols, axes: Sequence[int], keepdim: bool = False) -> Symbols:
    return _reduced(x, tuple(axes), keepdim, _largest)


def sum_over(x: Symbols, axes: Sequence[int], keepdim: bool = False) -> Symbols:
    return _reduced(x, tuple(axes), keepdim, total)


def mean(x: Symbols, axes: Sequence[int], keepdim: bool = False) -> Symbols:
    return sum_over(x, axes, keepdim) * (1.0 / math.prod(x.shape[a] for a in axes))


def _windows(x: Symbols, kernel: Ns, stride: Ns, padding: Ns, dilation: Ns, ceil_mode: bool, filler: Any) -> Symbols:
    n = len(kernel)
    pads = arrays.pool_geometry(x.shape[-n:], kernel, stride, padding, dilation, ceil_mode)
    flat = [side for pair in reversed(pads) for side in pair]
    return arrays.windows(arrays.pad(x, flat, filler) if any(flat) else x, kernel, stride, dilation)


def max_pool(x: Symbols, kernel: Ns, stride: Ns, padding: Ns, dilation: Ns, ceil_mode: bool) -> Symbols:
    view = _windows(x, kernel, stride, padding, dilation, ceil_mode, np.nan)  # padding never wins
    present = lambda values: _largest([v for v in values if not isinstance(v, float)])  # noqa: E731
    return _reduced(view, tuple(range(view.ndim - len(kernel), view.ndim)), False, present)


def scaled_sum(x: Symbols, axes: Sequence[int], keepdim: bool, factor: float) -> Symbols:
    return sum_over(x, axes, keepdim) * factor


def avg_pool(x: Symbols, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool) -> Symbols:
    return scaled_pool(x, kernel, stride, padding, ceil_mode, count_include_pad, 1.0 / math.prod(kernel))


def scaled_pool(
    x: Symbols, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool, factor: float
) -> Symbols:  # fmt: skip
    view = _windows(x, kernel, stride, padding, (1,) * len(kernel), ceil_mode, constant(0.0))
    return sum_over(view, range(view.ndim - len(kernel), view.ndim)) * factor
