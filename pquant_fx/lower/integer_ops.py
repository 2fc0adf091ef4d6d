"""The dialect's operators on integer codes: what hardware computes, batch first, on numpy int64.

A value is `Codes(codes, f)`: the real number codes * 2^-f. Sums of products go through float64 matrix products where the
caller has proven that no sum leaves 53 bits, and through int64 otherwise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pquant_fx.errors import InputError, Problem
from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph.interval_codes import Ints, dyadic
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.tables import lookup

__all__ = ["OPERATORS", "SUMS_OF_PRODUCTS", "Codes", "from_real", "real"]

Ns = Sequence[int]


class Codes(NamedTuple):
    """A fixed-point value: int64 codes at one lsb 2^-f."""

    codes: Ints
    f: int

    def at(self, f: int) -> Codes:
        """The same value at a finer lsb."""
        return self if f == self.f else Codes(self.codes << (f - self.f), f)


def real(codes: Ints, f: int) -> NDArray[np.float64]:
    """code * 2^-f in float64; exact up to 53 bits."""
    return np.ldexp(codes.astype(np.float64), -f)


def from_real(values: Any) -> Codes:
    """Real numbers that lie on a grid, as codes at their coarsest common lsb."""
    codes, f, _ = dyadic(values)
    return Codes(codes, f)


def _operand(x: Codes | int | float) -> Codes:
    return x if isinstance(x, Codes) else from_real(float(x))


def _aligned(*values: Codes | int | float) -> tuple[list[Ints], int]:
    given = [_operand(v) for v in values]
    f = max(v.f for v in given)
    return [v.at(f).codes for v in given], f


def _add(a: Codes | float, b: Codes | float) -> Codes:
    (x, y), f = _aligned(a, b)
    return Codes(x + y, f)


def _sub(a: Codes | float, b: Codes | float) -> Codes:
    (x, y), f = _aligned(a, b)
    return Codes(x - y, f)


def _mul(a: Codes | float, b: Codes | float) -> Codes:
    x, y = _operand(a), _operand(b)
    return Codes(x.codes * y.codes, x.f + y.f)


def _div(a: Codes | float, b: Codes | float) -> Codes:
    divisor = _operand(b)
    return _mul(a, from_real(1.0 / real(divisor.codes, divisor.f)))


def _neg(a: Codes) -> Codes:
    return Codes(-a.codes, a.f)


def _maximum(a: Codes | float, b: Codes | float) -> Codes:
    (x, y), f = _aligned(a, b)
    return Codes(np.maximum(x, y), f)


def _minimum(a: Codes | float, b: Codes | float) -> Codes:
    (x, y), f = _aligned(a, b)
    return Codes(np.minimum(x, y), f)


def _relu(x: Codes) -> Codes:
    return Codes(np.maximum(x.codes, 0), x.f)


def _hardtanh(x: Codes, low: float, high: float) -> Codes:
    return _minimum(_maximum(x, low), high)


def _relu6(x: Codes) -> Codes:
    return _hardtanh(x, 0, 6)


def _leaky_relu(x: Codes, slope: float = 0.01) -> Codes:
    return _prelu(x, from_real(slope))


def _prelu(x: Codes, slope: Codes) -> Codes:
    slope = slope.at(max(slope.f, 0))
    factor = slope.codes.reshape(-1, *(1 for _ in x.codes.shape[2:])) if slope.codes.size > 1 else slope.codes.reshape(())
    return Codes(np.where(x.codes < 0, x.codes * factor, x.codes << slope.f), x.f + slope.f)


def _lookup(x: Codes, entries: Codes, f: int, low: int) -> Codes:
    codes = x.codes << (f - x.f) if f >= x.f else x.codes >> (x.f - f)
    return Codes(entries.codes[codes - low], entries.f)


def _amax(x: Codes, axes: Sequence[int], keepdim: bool = False) -> Codes:
    return Codes(x.codes.max(axis=tuple(axes), keepdims=keepdim), x.f)


def _max_pool(x: Codes, *geometry: Any) -> Codes:
    return Codes(arrays.window_max(x.codes, *geometry), x.f)


def _avg_pool(x: Codes, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool) -> Codes:
    sums = arrays.window_sum(x.codes, kernel, stride, padding, ceil_mode)
    return Codes(sums, x.f + math.prod(kernel).bit_length() - 1)


def _sum(x: Codes, axes: Sequence[int], keepdim: bool = False) -> Codes:
    return Codes(x.codes.sum(axis=tuple(axes), keepdims=keepdim), x.f)


def _mean(x: Codes, axes: Sequence[int], keepdim: bool = False) -> Codes:
    count = math.prod(x.codes.shape[a] for a in axes)
    return Codes(_sum(x, axes, keepdim).codes, x.f + count.bit_length() - 1)


def _scaled_pool(x: Codes, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool, factor: float) -> Codes:
    return _mul(Codes(arrays.window_sum(x.codes, kernel, stride, padding, ceil_mode), x.f), factor)


def _scaled_sum(x: Codes, axes: Sequence[int], keepdim: bool, factor: float) -> Codes:
    return _mul(_sum(x, axes, keepdim), factor)


def _upsample(x: Codes, factors: Ns) -> Codes:
    return Codes(arrays.upsample(x.codes, factors), x.f)


def _embed(x: Codes, w: Codes, padding_idx: int | None = None) -> Codes:
    """Raises InputError (PQ409) for a number that is no row."""
    rows, count = x.codes >> x.f if x.f >= 0 else x.codes << -x.f, len(w.codes)
    if rows.size and not (rows.min() >= 0 and rows.max() < count):
        what = f"row {int(rows.max() if rows.max() >= count else rows.min())} of a table of {count} rows was asked for"
        raise InputError(Problem("PQ409", what, f"give whole numbers from 0 to {count - 1}"))
    return Codes(w.codes[rows], w.f)


def _pad(x: Codes, pads: Sequence[int], mode: str = "constant", value: float | None = 0) -> Codes:
    (codes, filler), f = _aligned(x, float(value or 0))
    return Codes(arrays.pad(codes, pads, int(filler)), f)


def _cat(values: Sequence[Codes], axis: int) -> Codes:
    parts, f = _aligned(*values)
    return Codes(np.concatenate(parts, axis=axis), f)


def _reshape(x: Codes, shape: Sequence[int]) -> Codes:
    return Codes(x.codes.reshape((x.codes.shape[0], *(int(s) for s in shape[1:]))), x.f)


def _permute(x: Codes, axes: Sequence[int]) -> Codes:
    return Codes(arrays.permute(x.codes, axes), x.f)


def _getitem(x: Codes, index: tuple[slice, ...]) -> Codes:
    return Codes(arrays.take(x.codes, index), x.f)


def _products(x: Codes, w: Codes, apply: Callable[[Any, Any], Any], floating: bool) -> Codes:
    kind: type[Any] = np.float64 if floating else np.int64
    return Codes(apply(x.codes.astype(kind), w.codes.astype(kind)).astype(np.int64), x.f + w.f)


def _linear(floating: bool, x: Codes, w: Codes, b: Codes | None = None) -> Codes:
    sums = _products(x, w, arrays.contract, floating)
    return sums if b is None else _add(sums, b)


def _conv(floating: bool, x: Codes, w: Codes, b: Codes | None, stride: Ns, padding: Ns, dilation: Ns, groups: int) -> Codes:
    def apply(values: Any, weight: Any) -> Any:
        return arrays.correlate(values, weight, stride, padding, dilation, groups)

    sums = _products(x, w, apply, floating)
    if b is None:
        return sums
    return _add(sums, Codes(b.codes.reshape(-1, *(1 for _ in w.codes.shape[2:])), b.f))


def _conv_transpose(
    floating: bool, x: Codes, w: Codes, b: Codes | None, stride: Ns, padding: Ns, output_padding: Ns, groups: int, dilation: Ns
) -> Codes:
    ones, none = (1,) * len(stride), (0,) * len(stride)
    values = Codes(arrays.spread(x.codes, w.codes.shape[2:], stride, padding, output_padding, dilation), x.f)
    return _conv(floating, values, Codes(arrays.turned(w.codes, groups), w.f), b, ones, none, dilation, groups)


def _matmul(floating: bool, a: Codes, b: Codes) -> Codes:
    return _products(a, b, np.matmul, floating)


OPERATORS: dict[Callable[..., Any], Callable[..., Codes]] = {
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
    scaled_pool: _scaled_pool,
    scaled_sum: _scaled_sum,
    torch.sum: _sum,
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
SUMS_OF_PRODUCTS: dict[Callable[..., Any], Callable[..., Codes]] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    torch.matmul: _matmul,
}
