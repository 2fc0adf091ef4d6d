"""Intervals of sums of products: F.linear, F.conv1d/2d and F.conv_transpose1d/2d with constant weights, torch.matmul.

The accumulator of y_o = sum_j w_j x_j + b is bounded over every order of summation: its smallest value is the sum of all
negative parts, its largest the sum of all positive parts (Colbert et al. 2023); the result's own interval is tighter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pquant_fx.graph.interval_arrays import Array, contract, correlate, spread, turned
from pquant_fx.graph.interval_codes import ALL_ZERO, Ints, trailing_zeros
from pquant_fx.graph.intervals import Inexact, Interval, align, require_bits

__all__ = ["Result", "conv_rule", "conv_transpose_rule", "linear_rule", "matmul_rule"]

Result: TypeAlias = tuple[Interval, Interval | None]
Apply: TypeAlias = Callable[[Array, Array], Array]


def linear_rule(x: Interval, w: Interval, b: Interval | None) -> Result:
    """F.linear on x (1, ..., I), w (O, I), b (O)."""
    return _weighted(x, w, b, contract, _Terms.of(x, w, -1))


def conv_rule(
    x: Interval, w: Interval, b: Interval | None, stride: Sequence[int], padding: Any, dilation: Sequence[int], groups: int
) -> Result:
    """F.conv1d / F.conv2d on x (1, C, *spatial), w (O, C / groups, *kernel), b (O); padded positions are exactly zero."""
    if isinstance(padding, str):
        raise Inexact("PQ202", f"padding '{padding}' is not a number", "give the padding as integers")

    def apply(values: Array, weight: Array) -> Array:
        return correlate(values, weight, stride, padding, dilation, groups)

    return _weighted(x, w, b, apply, _Terms.of(x, w, 1, groups))


def conv_transpose_rule(
    x: Interval,
    w: Interval,
    b: Interval | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Result:
    """F.conv_transpose1d / 2d on x (1, C, *spatial), w (C, O / groups, *kernel), b (O): a convolution of the spread-out input."""
    ones, none = (1,) * len(stride), (0,) * len(stride)
    values = x.moved(spread, w.shape[2:], stride, padding, output_padding, dilation)
    return conv_rule(values, w.moved(turned, groups), b, ones, none, dilation, groups)


@dataclass(frozen=True)
class _Terms:
    """What each output (row) meets of each input channel: weights (O, C / groups, kernel), the channel's largest code and its
    low zero bits, both (O, C / groups). Formats per element differ between channels, so neither is taken over all of them.
    """

    weights: Ints
    reach: Ints
    zeros: Ints

    @classmethod
    def of(cls, x: Interval, w: Interval, axis: int, groups: int = 1) -> _Terms:
        """axis: of the channels in x."""
        outputs, each = w.shape[0], w.shape[1]
        largest = np.maximum(np.abs(x.low), np.abs(x.high))

        def met(values: Ints, choose: Callable[..., Ints]) -> Ints:
            return np.repeat(_by_channel(values, axis, choose).reshape(groups, each), outputs // groups, axis=0)

        return cls(w.low.reshape(outputs, each, -1), met(largest, np.max), met(x.zeros, np.min))

    def low_zeros(self) -> Ints:
        """Low zero bits of every output: of the finest of its products."""
        products = trailing_zeros(self.weights).min(axis=2, initial=ALL_ZERO) + self.zeros
        return np.minimum(products.min(axis=1, initial=ALL_ZERO), ALL_ZERO)

    def sum_type(self) -> type[np.generic]:
        """float64 (BLAS) while no sum can leave 53 bits, else int64. Raises Inexact (PQ303) beyond 62."""
        sizes = np.abs(self.weights.astype(np.float64)).sum(axis=2) * self.reach
        bits = int(np.frexp(sizes.sum(axis=1).max(initial=0.0) * (1 + 2.0**-40))[1])
        require_bits(bits)
        return np.float64 if bits <= 53 else np.int64


def _weighted(x: Interval, w: Interval, b: Interval | None, apply: Apply, terms: _Terms) -> Result:
    if not w.is_constant or (b is not None and not b.is_constant):
        raise Inexact("PQ202", "its weight is computed from data", "use torch.matmul for a product of two values")
    column = (-1, *(1 for _ in range(w.low.ndim - 2)))
    dtype = terms.sum_type()
    plus, minus = np.maximum(w.low, 0).astype(dtype), np.minimum(w.low, 0).astype(dtype)
    signed = bool(minus.any())
    bounds = np.concatenate((x.high, x.low, np.maximum(x.high, 0), np.minimum(x.low, 0))).astype(dtype)
    up = _codes(apply(bounds, plus))
    down = _codes(apply(bounds, minus)) if signed else np.zeros_like(up)
    f = x.f + w.f
    zeros = np.broadcast_to(terms.low_zeros().reshape(column), up[:1].shape)
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


def _by_channel(values: Ints, axis: int, choose: Callable[..., Ints]) -> Ints:
    """One number per index of `axis`, chosen (np.min, np.max) from all others."""
    return choose(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1), axis=1)


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
    finest = _by_channel(a.zeros, -1, np.min) + _by_channel(b.zeros, axis, np.min)
    zeros = np.minimum(finest.min(initial=ALL_ZERO), ALL_ZERO)
    f = a.f + b.f
    value = Interval(f, least.sum(axis=axis), most.sum(axis=axis), zeros)
    return value, Interval(f, np.minimum(least, 0).sum(axis=axis), np.maximum(most, 0).sum(axis=axis), zeros)
