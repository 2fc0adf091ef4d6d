"""The dialect's operators on arrays of alkaid's variables, with a batch axis of 1: what the circuit computes, element by element.

A value is real here: no lsb is kept beside it, every variable knows its own. Constants are arrays of float64.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph.interval_codes import dyadic
from pquant_fx.graph.intervals import Inexact
from pquant_fx.graph.tables import lookup
from pquant_fx.lower.rtl.adapter import Solver, Symbols, constant, table, total
from pquant_fx.lower.rtl.quantizing import is_negative

__all__ = ["OPERATORS", "SUMS_OF_PRODUCTS", "each", "is_symbolic"]

Ns = Sequence[int]
Operand = Symbols | NDArray[np.float64] | float
WEIGHT_BITS, CONSTANT_BITS, TABLE_BITS = 24, 31, 31
"""What alkaid holds exactly: float32 weights, 32-bit constants and table entries."""


def is_symbolic(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == object


def each(function: Callable[..., Any], *values: Any) -> Symbols:
    """`function` of the elements, broadcast."""
    given = np.broadcast_arrays(*(v if isinstance(v, np.ndarray) else np.asarray(v, dtype=object) for v in values))
    made = np.empty(given[0].shape, dtype=object)
    for at in np.ndindex(made.shape):
        made[at] = function(*(v[at] for v in given))
    return made


# ---- arithmetic
def _plain(x: Operand) -> Any:
    """Constants as Python floats, which alkaid's variables take; exact in 31 bits each."""
    if is_symbolic(x):
        return x
    values = np.asarray(x, dtype=np.float64)
    if values.size and max(dyadic(v)[2] for v in np.unique(values)) > CONSTANT_BITS:
        raise Inexact("PQ303", f"alkaid holds constants of {CONSTANT_BITS} bits, one here has more", "give it fewer fraction bits")
    return values.astype(object)


def _add(a: Operand, b: Operand) -> Symbols:
    return each(operator.add, _plain(a), _plain(b))


def _sub(a: Operand, b: Operand) -> Symbols:
    return each(operator.sub, _plain(a), _plain(b))


def _mul(a: Operand, b: Operand) -> Symbols:
    _require(WEIGHT_BITS, a, b)
    return each(operator.mul, _plain(a), _plain(b))


def _div(a: Operand, b: Operand) -> Symbols:
    return _mul(a, 1.0 / np.asarray(b, dtype=np.float64))


def _neg(a: Symbols) -> Symbols:
    return each(operator.neg, a)


def _maximum(a: Operand, b: Operand) -> Symbols:
    return each(_larger, *map(_variables, (a, b)))


def _minimum(a: Operand, b: Operand) -> Symbols:
    return each(lambda x, y: x.min_of(y), *map(_variables, (a, b)))


def _larger(x: Any, y: Any) -> Any:
    return x.max_of(y)


def _variables(x: Operand) -> Symbols:
    return x if is_symbolic(x) else each(constant, np.asarray(x, dtype=np.float64))  # type: ignore[return-value]


def _require(bits: int, *values: Any) -> None:
    """Raises Inexact (PQ303) when constants are wider than alkaid's float32 weights."""
    for value in values:
        if not is_symbolic(value) and (found := dyadic(value)[2]) > bits:
            what = f"the constants of one matrix span {found} bits, alkaid holds {bits}"
            raise Inexact("PQ303", what, "give its elements formats that lie closer together, or fewer bits")


# ---- sums of products
def _contract(solve: Solver, x: Symbols, w: Operand) -> Symbols:
    """x (..., K), w (O, K) -> (..., O)."""
    rows = x.reshape(-1, x.shape[-1])
    if is_symbolic(w):
        columns: Any = w
        made = np.empty((len(rows), len(columns)), dtype=object)
        for at in np.ndindex(made.shape):
            made[at] = total([a * b for a, b in zip(rows[at[0]], columns[at[1]])])
    else:
        _require(WEIGHT_BITS, w)
        made = solve(rows, np.asarray(w, dtype=np.float64).T)
    return made.reshape(*x.shape[:-1], made.shape[-1])


def _linear(solve: Solver, x: Symbols, w: Operand, b: Operand | None = None) -> Symbols:
    sums = _contract(solve, x, w)
    return sums if b is None else _add(sums, b)


def _conv(solve: Solver, x: Symbols, w: Any, b: Any, stride: Ns, padding: Ns, dilation: Ns, groups: int) -> Symbols:
    n = w.ndim - 2
    padded = _pad(x, [p for size in reversed(padding) for p in (size, size)])
    view = np.moveaxis(arrays.windows(padded, w.shape[2:], stride, dilation), 1, 1 + n)  # (1, *out, C, *kernel)
    out = view.shape[1 : 1 + n]
    rows = view.reshape(math.prod(out), groups, -1)
    kernels = w.reshape(groups, w.shape[0] // groups, -1)
    parts = [_contract(solve, rows[:, g], kernels[g]) for g in range(groups)]
    sums = np.concatenate(parts, axis=1).T.reshape(1, w.shape[0], *out)
    return sums if b is None else _add(sums, b.reshape(-1, *(1 for _ in out)))


def _conv_transpose(
    solve: Solver, x: Symbols, w: Any, b: Any, stride: Ns, padding: Ns, output_padding: Ns, groups: int, dilation: Ns
) -> Symbols:
    ones, none = (1,) * len(stride), (0,) * len(stride)
    wide = _zeros_filled(arrays.spread(x, w.shape[2:], stride, padding, output_padding, dilation))
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


# ---- activations and tables
def _relu(x: Symbols) -> Symbols:
    return each(lambda v: v.relu() if v.low < 0 else v, x)


def _relu6(x: Symbols) -> Symbols:
    return _hardtanh(x, 0.0, 6.0)


def _hardtanh(x: Symbols, low: float, high: float) -> Symbols:
    return _minimum(_maximum(x, low), high)


def _leaky_relu(x: Symbols, slope: float = 0.01) -> Symbols:
    return _prelu(x, np.asarray(float(slope)))


def _prelu(x: Symbols, slope: NDArray[np.float64]) -> Symbols:
    _require(WEIGHT_BITS, slope)
    factor = slope.reshape(-1, *(1 for _ in x.shape[2:])) if slope.size > 1 else slope.reshape(())

    def element(v: Any, s: float) -> Any:
        if v.low >= 0:
            return v
        below = v * float(s)
        return below if v.high < 0 else is_negative(v).msb_mux(below, v)

    return each(element, x, factor)


def _lookup(x: Symbols, entries: NDArray[np.float64], f: int, low: int) -> Symbols:
    if dyadic(entries)[2] > TABLE_BITS:
        raise Inexact("PQ303", f"alkaid's tables hold entries of {TABLE_BITS} bits", "give the table's quantizer fewer bits")
    return each(lambda v: table(v, entries, f, low), x)


# ---- pooling
def _reduced(x: Symbols, axes: Sequence[int], keepdim: bool, combine: Callable[[list[Any]], Any]) -> Symbols:
    kept = [a for a in range(x.ndim) if a not in axes]
    moved = np.transpose(x, (*kept, *axes)).reshape(*(x.shape[a] for a in kept), -1)
    made = np.empty(moved.shape[:-1], dtype=object)
    for at in np.ndindex(made.shape):
        made[at] = combine(list(moved[at]))
    return made.reshape([1 if a in axes else n for a, n in enumerate(x.shape)]) if keepdim else made


def _largest(values: list[Any]) -> Any:
    while len(values) > 1:
        values = [_larger(*values[n : n + 2]) if n + 1 < len(values) else values[n] for n in range(0, len(values), 2)]
    return values[0]


def _amax(x: Symbols, axes: Sequence[int], keepdim: bool = False) -> Symbols:
    return _reduced(x, tuple(axes), keepdim, _largest)


def _sum(x: Symbols, axes: Sequence[int], keepdim: bool = False) -> Symbols:
    return _reduced(x, tuple(axes), keepdim, total)


def _mean(x: Symbols, axes: Sequence[int], keepdim: bool = False) -> Symbols:
    return _sum(x, axes, keepdim) * (1.0 / math.prod(x.shape[a] for a in axes))


def _windows(x: Symbols, kernel: Ns, stride: Ns, padding: Ns, dilation: Ns, ceil_mode: bool, filler: Any) -> Symbols:
    n = len(kernel)
    pads = arrays.pool_geometry(x.shape[-n:], kernel, stride, padding, dilation, ceil_mode)
    flat = [side for pair in reversed(pads) for side in pair]
    return arrays.windows(arrays.pad(x, flat, filler) if any(flat) else x, kernel, stride, dilation)


def _max_pool(x: Symbols, kernel: Ns, stride: Ns, padding: Ns, dilation: Ns, ceil_mode: bool) -> Symbols:
    view = _windows(x, kernel, stride, padding, dilation, ceil_mode, np.nan)  # padding never wins
    present = lambda values: _largest([v for v in values if not isinstance(v, float)])  # noqa: E731
    return _reduced(view, tuple(range(view.ndim - len(kernel), view.ndim)), False, present)


def _avg_pool(x: Symbols, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool) -> Symbols:
    view = _windows(x, kernel, stride, padding, (1,) * len(kernel), ceil_mode, constant(0.0))
    return _sum(view, range(view.ndim - len(kernel), view.ndim)) * (1.0 / math.prod(kernel))


# ---- data movement
def _zeros_filled(x: Symbols) -> Symbols:
    """numpy fills with the number 0: let it be a variable."""
    return each(lambda v: constant(float(v)) if isinstance(v, int | float | np.number) else v, x)


def _pad(x: Symbols, pads: Sequence[int], mode: str = "constant", value: float | None = 0) -> Symbols:
    return _zeros_filled(arrays.pad(x, pads, float(value or 0))) if any(pads) else x


def _cat(values: Sequence[Any], axis: int) -> Symbols:
    return np.concatenate([_variables(v) for v in values], axis=axis)


OPERATORS: dict[Callable[..., Any], Callable[..., Symbols]] = {
    operator.add: _add,
    operator.sub: _sub,
    operator.mul: _mul,
    operator.truediv: _div,
    operator.neg: _neg,
    torch.maximum: _maximum,
    torch.minimum: _minimum,
    F.relu: _relu,
    F.relu6: _relu6,
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.prelu: _prelu,
    lookup: _lookup,
    F.avg_pool1d: _avg_pool,
    F.avg_pool2d: _avg_pool,
    torch.mean: _mean,
    torch.sum: _sum,
    F.max_pool1d: _max_pool,
    F.max_pool2d: _max_pool,
    torch.amax: _amax,
    F.pad: _pad,
    torch.cat: _cat,
    torch.reshape: lambda x, shape: x.reshape((1, *(int(s) for s in shape[1:]))),
    torch.permute: arrays.permute,
    operator.getitem: arrays.take,
}
SUMS_OF_PRODUCTS: dict[Callable[..., Any], Callable[..., Symbols]] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    torch.matmul: _matmul,
}
