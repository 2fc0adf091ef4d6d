"""Intervals of sums of products: F.linear, F.conv1d/2d with constant weights, torch.matmul.

The accumulator of y_o = sum_j w_j x_j + b is bounded over every order of summation: its smallest value is the sum of all
negative parts, its largest the sum of all positive parts (Colbert et al. 2023); the result's own interval is tighter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from pquant_fx.graph.interval_arrays import Array, contract, correlate
from pquant_fx.graph.interval_codes import ALL_ZERO, Ints, bit_length, trailing_zeros
from pquant_fx.graph.intervals import Inexact, Interval, align, require_bits

__all__ = ["Result", "conv_rule", "linear_rule", "matmul_rule"]

Result: TypeAlias = tuple[Interval, Interval | None]
Apply: TypeAlias = Callable[[Array, Array], Array]


def linear_rule(x: Interval, w: Interval, b: Interval | None) -> Result:
    """F.linear on x (1, ..., I), w (O, I), b (O)."""
    return _weighted(x, w, b, contract, (-1,))


def conv_rule(
    x: Interval, w: Interval, b: Interval | None, stride: Sequence[int], padding: Any, dilation: Sequence[int], groups: int
) -> Result:
    """F.conv1d / F.conv2d on x (1, C, *spatial), w (O, C / groups, *kernel), b (O); padded positions are exactly zero."""
    if isinstance(padding, str):
        raise Inexact("PQ202", f"padding '{padding}' is not a number", "give the padding as integers")

    def apply(values: Array, weight: Array) -> Array:
        return correlate(values, weight, stride, padding, dilation, groups)

    return _weighted(x, w, b, apply, (-1, *(1 for _ in range(w.low.ndim - 2))))


def _weighted(x: Interval, w: Interval, b: Interval | None, apply: Apply, column: tuple[int, ...]) -> Result:
    if not w.is_constant or (b is not None and not b.is_constant):
        raise Inexact("PQ202", "its weight is computed from data", "use torch.matmul for a product of two values")
    outputs = w.shape[0]
    rows = w.low.reshape(outputs, -1)
    dtype = _sum_type(x, rows)
    plus, minus = np.maximum(w.low, 0).astype(dtype), np.minimum(w.low, 0).astype(dtype)
    signed = bool(minus.any())
    bounds = np.concatenate((x.high, x.low, np.maximum(x.high, 0), np.minimum(x.low, 0))).astype(dtype)
    up = _codes(apply(bounds, plus))
    down = _codes(apply(bounds, minus)) if signed else np.zeros_like(up)
    f = x.f + w.f
    low_zeros = _row_zeros(rows, x)
    zeros = np.broadcast_to(low_zeros.reshape(column), up[:1].shape)
    value = Interval(f, up[1:2] + down[0:1], up[0:1] + down[1:2], zeros)
    sums = Interval(f, up[3:4] + down[2:3], up[2:3] + down[3:4], zeros)
    if b is None:
        return value, sums
    offset = Interval(b.f, b.low.reshape(column), b.high.reshape(column), b.zeros.reshape(column))
    value, sums, offset = align(value, sums, offset)
    require_bits(max(sums.span, offset.span) + 1)
    zeros = np.minimum(value.zeros, offset.zeros)
    total = Interval(value.f, value.low + offset.low, value.high + offset.low, zeros)
    accumulator = Interval(
        value.f, sums.low + np.minimum(offset.low, 0), sums.high + np.maximum(offset.low, 0), np.minimum(sums.zeros, offset.zeros)
    )
    return total, accumulator


def _row_zeros(rows: Ints, x: Interval) -> Ints:
    """Low zero bits of every output: those of the row's weights and those that all inputs share."""
    shared = int(x.zeros.min(initial=ALL_ZERO))
    return np.minimum(trailing_zeros(rows).min(axis=1, initial=ALL_ZERO) + shared, ALL_ZERO)


def _sum_type(x: Interval, rows: Ints) -> type[np.generic]:
    """float64 (BLAS) while no sum can leave 53 bits, else int64. Raises Inexact (PQ303) beyond 62."""
    terms = max(1, rows.shape[1])
    require_bits(int(bit_length(rows).max(initial=0)) + terms.bit_length())
    largest = int(np.abs(rows).sum(axis=1).max(initial=0))
    reach = max(abs(int(x.low.min(initial=0))), abs(int(x.high.max(initial=0))))
    bits = (largest * reach).bit_length()
    require_bits(bits)
    return np.float64 if bits <= 53 else np.int64


def _codes(sums: Array) -> Ints:
    return np.asarray(sums, dtype=np.int64)


def matmul_rule(a: Interval, b: Interval) -> Result:
    """torch.matmul of two values (batch axis 1 in front of data), any of them constant."""
    if b.is_constant and b.low.ndim == 2:
        return linear_rule(a, Interval(b.f, b.low.T, b.high.T, b.zeros.T), None)
    require_bits(a.span + b.span + 1 + a.shape[-1].bit_length())
    vector = b.low.ndim == 1
    left = (a.low, a.high) if vector else (a.low[..., :, None], a.high[..., :, None])
    right = (b.low, b.high) if vector or a.low.ndim == 1 else (b.low[..., None, :, :], b.high[..., None, :, :])
    products = [p * q for p in left for q in right]
    least, most = np.minimum.reduce(products), np.maximum.reduce(products)
    axis = -1 if vector else -2
    shared = int(a.zeros.min(initial=ALL_ZERO)) + int(b.zeros.min(initial=ALL_ZERO))
    zeros = np.asarray(min(ALL_ZERO, shared), dtype=np.int64)
    f = a.f + b.f
    value = Interval(f, least.sum(axis=axis), most.sum(axis=axis), zeros)
    return value, Interval(f, np.minimum(least, 0).sum(axis=axis), np.maximum(most, 0).sum(axis=axis), zeros)
