"""The dialect's operators on arrays of alkaid's variables, with a batch axis of 1: what the circuit computes, element by element.

A value is real here: no lsb is kept beside it, every variable knows its own. Constants are arrays of float64.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph import means
from pquant_fx.graph.interval_codes import dyadic
from pquant_fx.graph.intervals import Inexact
from pquant_fx.graph.moves import upsample
from pquant_fx.graph.tables import lookup
from pquant_fx.lower.rtl.adapter import Symbols, table
from pquant_fx.lower.rtl.elements import WEIGHT_BITS, Operand, each, padded, plain, require_bits, variables_of
from pquant_fx.lower.rtl.pooling import amax, avg_pool, larger, max_pool, mean, scaled_pool, scaled_sum, sum_over
from pquant_fx.lower.rtl.quantizing import is_negative

__all__ = ["OPERATORS"]

TABLE_BITS = 31
"""What an entry of alkaid's tables holds."""


def _add(a: Operand, b: Operand) -> Symbols:
    return each(operator.add, plain(a), plain(b))


def _sub(a: Operand, b: Operand) -> Symbols:
    return each(operator.sub, plain(a), plain(b))


def _mul(a: Operand, b: Operand) -> Symbols:
    require_bits(WEIGHT_BITS, a, b)
    return each(operator.mul, plain(a), plain(b))


def _div(a: Operand, b: Operand) -> Symbols:
    return _mul(a, 1.0 / np.asarray(b, dtype=np.float64))


def _neg(a: Symbols) -> Symbols:
    return each(operator.neg, a)


def _maximum(a: Operand, b: Operand) -> Symbols:
    return each(larger, *map(variables_of, (a, b)))


def _minimum(a: Operand, b: Operand) -> Symbols:
    return each(lambda x, y: x.min_of(y), *map(variables_of, (a, b)))


def _relu(x: Symbols) -> Symbols:
    return each(lambda v: v.relu() if v.low < 0 else v, x)


def _relu6(x: Symbols) -> Symbols:
    return _hardtanh(x, 0.0, 6.0)


def _hardtanh(x: Symbols, low: float, high: float) -> Symbols:
    return _minimum(_maximum(x, low), high)


def _leaky_relu(x: Symbols, slope: float = 0.01) -> Symbols:
    return _prelu(x, np.asarray(float(slope)))


def _prelu(x: Symbols, slope: NDArray[np.float64]) -> Symbols:
    require_bits(WEIGHT_BITS, slope)
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


def _cat(values: Sequence[Any], axis: int) -> Symbols:
    return np.concatenate([variables_of(v) for v in values], axis=axis)


def _upsample(x: Symbols, factors: Sequence[int]) -> Symbols:
    for axis, factor in enumerate(factors, 2):
        x = np.repeat(x, factor, axis)
    return x


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
    F.avg_pool1d: avg_pool,
    F.avg_pool2d: avg_pool,
    means.scaled_pool: scaled_pool,
    torch.mean: mean,
    means.scaled_sum: scaled_sum,
    torch.sum: sum_over,
    F.max_pool1d: max_pool,
    F.max_pool2d: max_pool,
    torch.amax: amax,
    upsample: _upsample,
    F.pad: padded,
    torch.cat: _cat,
    torch.reshape: lambda x, shape: x.reshape((1, *(int(s) for s in shape[1:]))),
    torch.permute: arrays.permute,
    operator.getitem: arrays.take,
}
