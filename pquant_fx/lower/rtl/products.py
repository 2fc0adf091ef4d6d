"""Sums of products on alkaid's variables: layers, convolutions, products of matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.lower.rtl.adapter import Solver, Symbols, total
from pquant_fx.lower.rtl.elements import WEIGHT_BITS, Operand, each, is_symbolic, padded, plain, require_bits, zeros_filled

__all__ = ["SUMS_OF_PRODUCTS"]

Ns = Sequence[int]


def _contract(solve: Solver, x: Symbols, w: Operand) -> Symbols:
    """x (..., K), w (O, K) -> (..., O)."""
    rows = x.reshape(-1, x.shape[-1])
    if is_symbolic(w):
        columns: Any = w
        made = np.empty((len(rows), len(columns)), dtype=object)
        for at in np.ndindex(made.shape):
            made[at] = total([a * b for a, b in zip(rows[at[0]], columns[at[1]])])
    else:
        require_bits(WEIGHT_BITS, w)
        made = solve(rows, np.asarray(w, dtype=np.float64).T)
    return made.reshape(*x.shape[:-1], made.shape[-1])


def _linear(solve: Solver, x: Symbols, w: Operand, b: Operand | None = None) -> Symbols:
    sums = _contract(solve, x, w)
    return sums if b is None else _with_bias(sums, b)


def _conv(solve: Solver, x: Symbols, w: Any, b: Any, stride: Ns, padding: Ns, dilation: Ns, groups: int) -> Symbols:
    n = w.ndim - 2
    padded = _around(x, padding, solve.filler)
    view = np.moveaxis(arrays.windows(padded, w.shape[2:], stride, dilation), 1, 1 + n)  # (1, *out, C, *kernel)
    out = view.shape[1 : 1 + n]
    rows = view.reshape(math.prod(out), groups, -1)
    kernels = w.reshape(groups, w.shape[0] // groups, -1)
    parts = [_contract(solve, rows[:, g], kernels[g]) for g in range(groups)]
    sums = np.concatenate(parts, axis=1).T.reshape(1, w.shape[0], *out)
    return sums if b is None else _with_bias(sums, b.reshape(-1, *(1 for _ in out)))


def _around(x: Symbols, padding: Ns, filler: Callable[[Any], Any] | None) -> Symbols:
    """x (1, C, *spatial) with zeros around it, or with what the filler makes of the channel's first value."""
    pads = [p for size in reversed(padding) for p in (size, size)]
    if filler is None or not any(pads):
        return padded(x, pads)
    wide = arrays.pad(x, pads, np.nan)
    made = np.empty(wide.shape, dtype=object)
    for at in np.ndindex(wide.shape):
        made[at] = filler(x[0, at[1]].flat[0]) if isinstance(wide[at], float) else wide[at]
    return made


def _conv_transpose(
    solve: Solver, x: Symbols, w: Any, b: Any, stride: Ns, padding: Ns, output_padding: Ns, groups: int, dilation: Ns
) -> Symbols:
    ones, none = (1,) * len(stride), (0,) * len(stride)
    wide = zeros_filled(arrays.spread(x, w.shape[2:], stride, padding, output_padding, dilation))
    return _conv(solve, wide, arrays.turned(w, groups), b, ones, none, dilation, groups)


def _matmul(solve: Solver, a: Any, b: Any) -> Symbols:
    if not is_symbolic(a):  # (a b)^T = b^T a^T
        return np.swapaxes(_matmul(solve, np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2)), -1, -2)
    if not is_symbolic(b) and b.ndim == 2:
        return _contract(solve, a, b.T)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(v, (*lead, *v.shape[-2:])).reshape(-1, *v.shape[-2:]) for v in (a, b))
    made = np.stack([_contract(solve, p, q.T) for p, q in zip(a, b)])
    return made.reshape(*lead, *made.shape[-2:])


def _with_bias(sums: Symbols, b: Operand) -> Symbols:
    return each(operator.add, sums, plain(b))


SUMS_OF_PRODUCTS: dict[Callable[..., Any], Callable[..., Symbols]] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    torch.matmul: _matmul,
}
