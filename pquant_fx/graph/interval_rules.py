"""One interval rule per operator of the dialect: `RULES[op](*args) -> (value, accumulator | None)`.

Arguments are the node's, with nodes replaced by intervals. Intervals of data carry a batch axis of 1 in front, so that
torch's broadcasting has its meaning. A rule raises `Inexact` where the operator has no exact meaning on integer codes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph.interval_codes import ALL_ZERO, Ints, trailing_zeros
from pquant_fx.graph.interval_means import avg_pool_rule, mean_rule, scaled_pool_rule, scaled_sum_rule, sum_rule, within_samples
from pquant_fx.graph.interval_tables import lookup_rule
from pquant_fx.graph.interval_weighted import Result, conv_rule, conv_transpose_rule, linear_rule, matmul_rule
from pquant_fx.graph.intervals import Inexact, Interval, align, exact_number, require_bits
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.tables import lookup

__all__ = ["RULES", "reciprocal"]

Operand = Interval | int | float
Ns = Sequence[int]


def _interval(x: Operand) -> Interval:
    return x if isinstance(x, Interval) else exact_number(x)


def _pair(a: Operand, b: Operand) -> tuple[Interval, Interval]:
    left, right = align(_interval(a), _interval(b))
    return left, right


def _alone(value: Interval) -> Result:
    """Arithmetic of two operands has no partial sums: the value is its own accumulator."""
    return value, value


def _add(a: Operand, b: Operand) -> Result:
    x, y = _pair(a, b)
    require_bits(max(x.span, y.span) + 1)
    return _alone(Interval(x.f, x.low + y.low, x.high + y.high, np.minimum(x.zeros, y.zeros)))


def _neg(a: Operand) -> Result:
    x = _interval(a)
    require_bits(x.span + 1)
    return _alone(Interval(x.f, -x.high, -x.low, x.zeros))


def _sub(a: Operand, b: Operand) -> Result:
    return _add(a, _neg(b)[0])


def _mul(a: Operand, b: Operand) -> Result:
    x, y = _interval(a), _interval(b)
    require_bits(x.span + y.span + 1)
    products = [p * q for p in (x.low, x.high) for q in (y.low, y.high)]
    zeros = np.minimum(x.zeros + y.zeros, 63)
    return _alone(Interval(x.f + y.f, np.minimum.reduce(products), np.maximum.reduce(products), zeros))


def _div(a: Operand, b: Operand) -> Result:
    divisor = _interval(b)
    return _mul(a, reciprocal(divisor))


def reciprocal(divisor: Interval) -> Interval:
    """1 / d of constant powers of two. Raises Inexact (PQ202) for any other divisor."""
    sign = np.sign(divisor.low)
    if not divisor.is_constant or not (np.abs(divisor.low) == np.int64(1) << np.minimum(divisor.zeros, 62)).all() or not sign.all():
        raise Inexact("PQ202", "a division is exact by constant powers of two only", "divide by 2^n, or multiply by a dyadic constant")
    powers = np.broadcast_to(divisor.zeros, sign.shape)
    largest = int(powers.max(initial=0))
    codes = sign * (np.int64(1) << (largest - powers))
    return Interval(largest - divisor.f, codes, codes)


def _extreme(choose: Callable[[Ints, Ints], Ints]) -> Callable[[Operand, Operand], Result]:
    def rule(a: Operand, b: Operand) -> Result:
        x, y = _pair(a, b)
        return _alone(Interval(x.f, choose(x.low, y.low), choose(x.high, y.high), np.minimum(x.zeros, y.zeros)))

    return rule


def _relu(x: Interval) -> Result:
    return Interval(x.f, np.maximum(x.low, 0), np.maximum(x.high, 0), x.zeros), None


def _hardtanh(x: Interval, low: float, high: float) -> Result:
    bounds = [exact_number(low), exact_number(high)]
    x, least, most = align(x, *bounds)
    clipped = [np.minimum(np.maximum(c, least.low), most.low) for c in (x.low, x.high)]
    zeros = np.minimum(x.zeros, np.minimum(least.zeros, most.zeros))
    return Interval(x.f, clipped[0], clipped[1], zeros), None


def _relu6(x: Interval) -> Result:
    return _hardtanh(x, 0, 6)


def _leaky_relu(x: Interval, slope: float = 0.01) -> Result:
    return _prelu(x, exact_number(slope))


def _prelu(x: Interval, slope: Interval) -> Result:
    """max(x, 0) + slope min(x, 0): one slope, or one a channel (axis 1)."""
    if not slope.is_constant:
        raise Inexact("PQ202", "its slope is computed from data", "use torch.maximum and a product of two values")
    require_bits(x.span + slope.span + abs(slope.f) + 1)
    shift = max(slope.f, 0)
    scale = slope.low << max(-slope.f, 0)
    scale = scale.reshape(-1, *(1 for _ in x.shape[2:])) if scale.size > 1 else scale.reshape(())
    ends = [np.minimum(c, 0) * scale + (np.maximum(c, 0) << shift) for c in (x.low, x.high)]
    least = np.minimum(*ends)
    low = np.where((x.low <= 0) & (x.high >= 0), np.minimum(least, 0), least)  # a negative slope turns at zero
    zeros = np.minimum(x.zeros + np.minimum(trailing_zeros(scale), shift), ALL_ZERO)
    return Interval(x.f + shift, low, np.maximum(*ends), zeros), None


def _amax(x: Interval, axes: Sequence[int], keepdim: bool = False) -> Result:
    where = tuple(axes)
    within_samples(bool(where) and all(a % x.low.ndim for a in where))
    low, high = (c.max(axis=where, keepdims=keepdim) for c in (x.low, x.high))
    return Interval(x.f, low, high, x.zeros.min(axis=where, keepdims=keepdim)), None


def _max_pool(x: Interval, *geometry: Any) -> Result:
    low, high = (arrays.window_max(c, *geometry) for c in (x.low, x.high))
    return Interval(x.f, low, high, -arrays.window_max(-x.zeros, *geometry)), None


def _pad(x: Interval, pads: Sequence[int], mode: str = "constant", value: float | None = 0) -> Result:
    if mode != "constant":
        raise Inexact("PQ202", f"padding mode '{mode}' has no fixed-point meaning yet", "pad with zeros")
    x, filler = align(x, exact_number(value or 0))
    code = int(filler.low)
    known = int(filler.zeros)
    return Interval(x.f, arrays.pad(x.low, pads, code), arrays.pad(x.high, pads, code), arrays.pad(x.zeros, pads, known)), None


def _cat(values: Sequence[Interval], axis: int) -> Result:
    within_samples(axis % values[0].low.ndim > 0)
    parts = align(*values)
    low, high, zeros = (np.concatenate([getattr(p, name) for p in parts], axis=axis) for name in ("low", "high", "zeros"))
    return Interval(parts[0].f, low, high, zeros), None


def _reshape(x: Interval, shape: Sequence[int]) -> Result:
    return x.moved(arrays.reshape, shape), None


def _permute(x: Interval, axes: Sequence[int]) -> Result:
    within_samples(axes[0] == 0)
    return x.moved(arrays.permute, axes), None


def _getitem(x: Interval, index: Any) -> Result:
    if not isinstance(index, tuple) or not all(isinstance(s, slice) for s in index):
        raise Inexact("PQ202", f"the index {index!r} is no tuple of slices", "select with slices of constant bounds")
    within_samples(index[:1] == (slice(None),))
    return x.moved(arrays.take, index), None


def _upsample(x: Interval, factors: Ns) -> Result:
    return x.moved(arrays.upsample, factors), None


def _embed(x: Interval, w: Interval, padding_idx: int | None = None) -> Result:
    """Each column of the table, wherever its rows go."""
    if not w.is_constant:
        raise Inexact("PQ202", "its table is computed from data", "use a parameter as the table")
    if x.f > 0 and not (x.zeros >= x.f).all():
        raise Inexact("PQ202", "its rows are counted by numbers that are not whole", "give it integers")
    shape = (*x.shape, w.shape[1])
    low, high, zeros = (np.broadcast_to(c, shape) for c in (w.low.min(axis=0), w.high.max(axis=0), w.zeros.min(axis=0)))
    return Interval(w.f, low, high, zeros), None


def _rsqrt(x: Interval) -> Result:
    raise Inexact("PQ201", "rsqrt of data has no exact integer meaning", "use it on parameters only, or replace it by a table")


RULES: dict[Callable[..., Any], Callable[..., Result]] = {
    F.linear: linear_rule,
    F.conv1d: conv_rule,
    F.conv2d: conv_rule,
    F.conv_transpose1d: conv_transpose_rule,
    F.conv_transpose2d: conv_transpose_rule,
    torch.matmul: matmul_rule,
    operator.add: _add,
    operator.sub: _sub,
    operator.mul: _mul,
    operator.truediv: _div,
    operator.neg: _neg,
    torch.maximum: _extreme(np.maximum),
    torch.minimum: _extreme(np.minimum),
    torch.rsqrt: _rsqrt,
    F.relu: _relu,
    F.relu6: _relu6,
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.prelu: _prelu,
    lookup: lookup_rule,
    F.avg_pool1d: avg_pool_rule,
    F.avg_pool2d: avg_pool_rule,
    torch.mean: mean_rule,
    scaled_pool: scaled_pool_rule,
    scaled_sum: scaled_sum_rule,
    torch.sum: sum_rule,
    F.max_pool1d: _max_pool,
    F.max_pool2d: _max_pool,
    torch.amax: _amax,
    upsample: _upsample,
    embed: _embed,
    F.pad: _pad,
    torch.cat: _cat,
    torch.reshape: _reshape,
    torch.permute: _permute,
    operator.getitem: _getitem,
}
