"""Intervals of sums and means: over axes, over the windows of a pool, divided by a power of two or times a fixed reciprocal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph.interval_codes import ALL_ZERO, Ints
from pquant_fx.graph.interval_weighted import Result
from pquant_fx.graph.intervals import Inexact, Interval, exact_number, require_bits

__all__ = [
    "avg_pool_rule",
    "mean_rule",
    "scaled_pool_rule",
    "scaled_sum_rule",
    "sum_rule",
    "uniform_windows",
    "within_samples",
]

Ns = Sequence[int]


def power_of_two(count: int, what: str) -> int:
    """log2 of the number of averaged elements. Raises Inexact (PQ202) unless it is a power of two."""
    if count < 1 or count & (count - 1):
        raise Inexact(
            "PQ202",
            f"{what} averages {count} elements: the division is not exact",
            "let its place be quantized (quantize: true), which rounds 1/P, or average over 2^n elements",
        )
    return count.bit_length() - 1


def division_shift(spatial: Ns, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool) -> int:
    """log2 of an average pool's window. Raises Inexact (PQ202) where windows divide by different or odd numbers."""
    uniform_windows(spatial, kernel, stride, padding, ceil_mode, count_include_pad)
    return power_of_two(math.prod(kernel), "the pooling window")


def uniform_windows(spatial: Ns, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool) -> None:
    """Raises Inexact (PQ202) where the windows of an average pool divide by different numbers."""
    ones = tuple(1 for _ in kernel)
    pads = arrays.pool_geometry(spatial, kernel, stride, padding, ones, ceil_mode)
    beyond = any(after > p for (_, after), p in zip(pads, padding))
    if any(padding) and not count_include_pad:
        raise Inexact("PQ202", "windows at the border divide by fewer elements", "set count_include_pad=True, or padding=0")
    if beyond:
        raise Inexact("PQ202", "ceil_mode lets the last window divide by fewer elements", "set ceil_mode=False, or pad the input")


def avg_pool_rule(x: Interval, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool) -> Result:
    shift = division_shift(x.shape[-len(kernel) :], kernel, stride, padding, ceil_mode, count_include_pad)
    require_bits(x.span + shift)

    def summed(codes: Ints) -> Ints:
        return arrays.window_sum(codes, kernel, stride, padding, ceil_mode)

    ones = tuple(1 for _ in kernel)
    zeros = -arrays.window_max(-x.zeros, kernel, stride, padding, ones, ceil_mode)
    return _averaged(x, summed, zeros, shift)


def _averaged(x: Interval, summed: Callable[[Ints], Ints], zeros: Ints, shift: int) -> Result:
    """Sums over elements, then a moved binary point."""
    value = Interval(x.f + shift, summed(x.low), summed(x.high), zeros)
    sums = Interval(x.f, summed(np.minimum(x.low, 0)), summed(np.maximum(x.high, 0)), zeros)
    return value, sums


def sum_rule(x: Interval, axes: Sequence[int], keepdim: bool = False, *, mean: bool = False) -> Result:
    where = tuple(axes)
    within_samples(bool(where) and all(a % x.low.ndim for a in where))
    count = math.prod(x.shape[a] for a in where)
    shift = power_of_two(count, "the mean") if mean else 0
    require_bits(x.span + max(count, 1).bit_length())

    def summed(codes: Ints) -> Ints:
        return codes.sum(axis=where, keepdims=keepdim)

    return _averaged(x, summed, x.zeros.min(axis=where, keepdims=keepdim), shift)


def mean_rule(x: Interval, axes: Sequence[int], keepdim: bool = False) -> Result:
    return sum_rule(x, axes, keepdim, mean=True)


def scaled_pool_rule(x: Interval, kernel: Ns, stride: Ns, padding: Ns, ceil_mode: bool, count_include_pad: bool, factor: float) -> Result:
    uniform_windows(x.shape[-len(kernel) :], kernel, stride, padding, ceil_mode, count_include_pad)
    require_bits(x.span + math.prod(kernel).bit_length())

    def summed(codes: Ints) -> Ints:
        return arrays.window_sum(codes, kernel, stride, padding, ceil_mode)

    ones = tuple(1 for _ in kernel)
    zeros = -arrays.window_max(-x.zeros, kernel, stride, padding, ones, ceil_mode)
    value, sums = _averaged(x, summed, zeros, 0)
    return _times(value, factor), sums


def scaled_sum_rule(x: Interval, axes: Sequence[int], keepdim: bool, factor: float) -> Result:
    value, sums = sum_rule(x, axes, keepdim)
    return _times(value, factor), sums


def _times(x: Interval, factor: float) -> Interval:
    """x times a positive number."""
    number = exact_number(factor)
    require_bits(x.span + number.span)
    zeros = np.minimum(x.zeros + number.zeros, ALL_ZERO)
    return Interval(x.f + number.f, x.low * number.low, x.high * number.low, zeros)


def within_samples(kept: bool) -> None:
    """Raise Inexact (PQ202) when an operator works across the batch axis."""
    if not kept:
        raise Inexact("PQ202", "it works across the samples of a batch", "leave axis 0 alone: a circuit sees one sample at a time")
