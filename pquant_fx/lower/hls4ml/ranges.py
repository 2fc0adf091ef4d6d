"""Exact integer bounds of every value, from which the importer sets every hls4ml type.

hls4ml's own inference (`bit_exact`) is not used: it shrinks a quantizer by taking the largest width and the largest number
of integer bits over all elements separately, which loses fraction bits when channels lie on different grids, and it moves
the bound of a shrunken SAT_SYM quantizer. Explicit types are exact and never wider than needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pquant_fx.formats import FixedFormat
from pquant_fx.graph.interval_codes import dyadic
from pquant_fx.lower.fixed_point_numpy import overflow_codes, quantize_array, round_codes
from pquant_fx.lower.hls4ml.net import Array, Conv, Op, Pool, Quantize, refusal

__all__ = ["Range", "affine_range", "conv_range", "dense_range", "fraction_bits", "mean_range", "quantized_range", "window_maximum"]

_EXACT = 2.0**53


@dataclass(frozen=True, eq=False)
class Range:
    """Bounds of integer codes at lsb 2^-f; low and high have the sample's shape (float64 arrays of integers below 2^53)."""

    f: int
    low: Array
    high: Array

    def at(self, f: int) -> Range:
        """The same bounds counted on a finer grid."""
        return Range(f, np.ldexp(self.low, f - self.f), np.ldexp(self.high, f - self.f))

    @property
    def format(self) -> FixedFormat:
        """The smallest format that holds every element."""
        return FixedFormat.for_codes(int(self.low.min()), int(self.high.max()), self.f)

    def checked(self, op: Op) -> Range:
        """Itself; raises LoweringError (PQ303) when codes need more than 53 bits, where this arithmetic stops being exact."""
        if not (np.abs(self.low).max() < _EXACT and np.abs(self.high).max() < _EXACT):
            raise refusal("PQ303", "a sum needs more than 53 bits", "quantize its operands to fewer bits", op.name)
        return self


def fraction_bits(values: Array) -> int:
    """The smallest f for which every value is an integer times 2^-f (0 for zeros)."""
    return dyadic(values)[1]


def dense_range(op: Op, x: Range, weight: Array, bias: Array) -> Range:
    """Bounds of x @ weight + bias: the positive and the negative weights meet the bounds that hurt most."""
    return _weighted(op, x, weight, bias, lambda value, w: value @ w)


def conv_range(op: Conv, x: Range) -> Range:
    """The same for a convolution; zero padding enters as the value 0."""
    bias = op.bias.reshape((-1,) + (1,) * (op.weight.ndim - 2))
    return _weighted(op, x, op.weight, bias, lambda value, w: _convolve(value, w, op.strides, op.pads))


def _weighted(op: Op, x: Range, weight: Array, bias: Array, apply: Callable[[Array, Array], Array]) -> Range:
    f_weight = fraction_bits(weight)
    f = x.f + f_weight
    codes = np.ldexp(weight, f_weight)
    largest = apply(np.maximum(np.abs(x.low), np.abs(x.high)), np.abs(codes))
    if not float(np.max(largest, initial=0.0)) < _EXACT:
        raise refusal("PQ303", "an accumulator needs more than 53 bits", "use fewer weight or activation bits", op.name)
    positive, negative = np.maximum(codes, 0), np.minimum(codes, 0)
    low = apply(x.low, positive) + apply(x.high, negative)
    high = apply(x.high, positive) + apply(x.low, negative)
    return _add(op, Range(f, low, high), bias)


def _add(op: Op, x: Range, bias: Array) -> Range:
    f = max(x.f, fraction_bits(bias))
    fine = x.at(f)
    offset = np.ldexp(bias, f)
    return Range(f, fine.low + offset, fine.high + offset).checked(op)


def _convolve(x: Array, weight: Array, strides: tuple[int, ...], pads: tuple[int, ...]) -> Array:
    """Convolution of one sample (C, *spatial) in float64."""
    import torch
    from torch.nn import functional

    half = len(strides)
    padded = np.pad(x, [(0, 0), *((pads[n], pads[n + half]) for n in range(half))])
    convolution = functional.conv1d if half == 1 else functional.conv2d
    result = convolution(torch.from_numpy(padded)[None], torch.from_numpy(np.ascontiguousarray(weight)), stride=strides)
    return np.asarray(result[0].numpy())


def affine_range(op: Op, x: Range, scale: Array, bias: Array) -> Range:
    """Bounds of x * scale + bias element by element."""
    f_scale = fraction_bits(scale)
    codes = np.ldexp(scale, f_scale)
    ends = x.low * codes, x.high * codes
    product = Range(x.f + f_scale, np.minimum(*ends), np.maximum(*ends)).checked(op)
    return _add(op, product, bias)


def mean_range(op: Pool, x: Range) -> tuple[Range, Range]:
    """(window sums, means) of an average over 2^m elements: the same codes, the binary point m places further left."""
    channels = x.low.shape[0]
    ones = np.ones((1, 1, *op.kernel))
    rows = [_convolve(bound[c : c + 1], ones, op.strides, op.pads) for bound in (x.low, x.high) for c in range(channels)]
    low, high = np.concatenate(rows[:channels]), np.concatenate(rows[channels:])
    shift = int(np.prod(op.kernel)).bit_length() - 1
    return Range(x.f, low, high).checked(op), Range(x.f + shift, low, high)


def window_maximum(op: Pool, bound: Array) -> Array:
    """The largest bound in each window; padding counts as nothing."""
    half = len(op.kernel)
    pads = [(0, 0), *((op.pads[n], op.pads[n + half]) for n in range(half))]
    padded = np.pad(bound, pads, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, op.kernel, axis=tuple(range(1, half + 1)))
    steps = (slice(None), *(slice(None, None, s) for s in op.strides))
    return np.asarray(windows[steps].max(axis=tuple(range(-half, 0))))


def quantized_range(op: Quantize, x: Range) -> tuple[Range, bool]:
    """(bounds after the quantizer, whether no value of `x` leaves the format, so that overflow can not happen)."""
    k, i, f = (np.broadcast_to(t, op.shape).astype(np.float64) for t in (op.k, op.i, op.f))
    empty = np.broadcast_to(op.zero_width, op.shape)
    bounds = [np.ldexp(bound, -x.f) for bound in (x.low, x.high)]
    codes = [round_codes(np.ldexp(bound, f.astype(np.int64)), op.rounding) for bound in bounds]
    mode = "SAT_SYM" if op.overflow == "SAT_SYM" else "SAT"
    inside = np.logical_and.reduce([overflow_codes(n, k, i + f, mode) == n for n in codes]) | empty
    finest = int(f[~empty].max()) if (~empty).any() else 0
    if op.overflow in ("SAT", "SAT_SYM"):
        low, high = (quantize_array(bound, k, i, f, op.rounding, mode) for bound in bounds)
    else:
        size = np.ldexp(1.0, i.astype(np.int64))
        kept = [quantize_array(bound, k, i, f, op.rounding, mode) for bound in bounds]
        low = np.where(inside, kept[0], -k * size)
        high = np.where(inside, kept[1], size - np.ldexp(1.0, -f.astype(np.int64)))
    low, high = (np.ldexp(np.where(empty, 0.0, bound), finest) for bound in (low, high))
    return Range(finest, low, high), bool(inside.all())
