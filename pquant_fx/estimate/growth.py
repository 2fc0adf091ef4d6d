"""Formats that arithmetic grows to, per element where the operands' are.

Only asked for where an operator takes a sum that no quantizer rounded, as residual adds do; sums of products are in
`growth_products`. NOTHING stays far below every real format through all of these rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from pquant_fx.estimate.bits import NOTHING, Format, Uncountable, aligned
from pquant_fx.estimate.costs import is_shift
from pquant_fx.estimate.reader import Reader

__all__ = ["Growth", "most", "sum_of"]

Growth: TypeAlias = Callable[..., Format]
Ns: TypeAlias = Sequence[int]


# ---- arithmetic on elements
def add(read: Reader, node: Node, a: Any, b: Any) -> Format:
    return sum_of(*_operands(read, node, a, b))


def sub(read: Reader, node: Node, a: Any, b: Any) -> Format:
    k, i, f = sum_of(*_operands(read, node, a, b))
    return Format(torch.ones_like(k), i, f)


def union(read: Reader, node: Node, a: Any, b: Any) -> Format:
    return _union(*_operands(read, node, a, b))


def mul(read: Reader, node: Node, a: Any, b: Any) -> Format:
    """i_a + i_b + (k_a and k_b), f_a + f_b; a shift by 2^n moves both: i + n, f - n."""
    factor, x = (a, b) if is_shift(a) else (b, a)
    return _shifted(read, read.format(x), factor) if is_shift(factor) else _product(*_operands(read, node, a, b))


def div(read: Reader, node: Node, a: Any, b: Any) -> Format:
    if not is_shift(b) or not b:
        raise Uncountable(node, "a division by anything but a number 2^n has no exact format", "put a quantizer behind it")
    return _shifted(read, read.format(a), 1.0 / float(b))


def neg(read: Reader, node: Node, x: Node) -> Format:
    k, i, f = read.format(x)
    return Format(torch.ones_like(k), i + k, f)


def _operands(read: Reader, node: Node, *values: Any) -> tuple[Format, Format]:
    rank = len(read.shape(node))
    a, b = (Format(*(aligned(t, rank) for t in read.format(value))) for value in values)
    return a, b


def sum_of(a: Format, b: Format) -> Format:
    """The exact format of a + b."""
    return Format(torch.maximum(a.k, b.k), torch.maximum(a.i, b.i) + 1, torch.maximum(a.f, b.f))


def _product(a: Format, b: Format) -> Format:
    return Format(torch.maximum(a.k, b.k), a.i + b.i + a.k * b.k, a.f + b.f)


def _union(a: Format, b: Format) -> Format:
    return Format(*(torch.maximum(s, t) for s, t in zip(a, b)))


def _shifted(read: Reader, x: Format, factor: Any) -> Format:
    """x times a power of two: a number, 0 or a learned one."""
    if isinstance(factor, Node):
        power = read.power(factor)
        return Format(x.k, x.i + power, x.f - power)
    if not factor:
        return Format(torch.zeros_like(x.k), torch.full_like(x.i, NOTHING), torch.full_like(x.f, NOTHING))
    exponent = math.frexp(factor)[1] - 1
    k, i = (torch.ones_like(x.k), x.i + x.k) if factor < 0 else (x.k, x.i)
    return Format(k, i + exponent, x.f - exponent)


# ---- reductions
def reduce_sum(read: Reader, node: Node, x: Node, axes: Ns, keepdim: bool = False) -> Format:
    """ceil log2 n more integer bits for n elements."""
    k, i, f = _reduced(read, x, axes, keepdim)
    return Format(k, i + _terms(read, x, axes), f)


def mean(read: Reader, node: Node, x: Node, axes: Ns, keepdim: bool = False) -> Format:
    """A mean of 2^m elements is their sum with the binary point moved by m."""
    k, i, f = _reduced(read, x, axes, keepdim)
    return Format(k, i, f + _terms(read, x, axes))


def _reduced(read: Reader, x: Node, axes: Ns, keepdim: bool) -> Format:
    where = [a % len(read.shape(x)) for a in axes]
    return Format(*(t.amax(where, keepdim=keepdim) for t in read.format(x)))


def _terms(read: Reader, x: Node, axes: Ns) -> int:
    return math.ceil(math.log2(max(1, math.prod(read.shape(x)[a] for a in axes))))


def avg_pool(read: Reader, node: Node, x: Node, kernel: Ns, *geometry: Any) -> Format:
    """The widest position of the map, with log2 of the window more fraction bits."""
    rank = len(read.shape(x))
    k, i, f = (most(t, range(rank - len(kernel), rank)) for t in read.format(x))
    return Format(k, i, f + math.ceil(math.log2(math.prod(kernel))))


def embed(read: Reader, node: Node, x: Node, w: Node, padding_idx: int | None = None) -> Format:
    """The union of all rows, column by column."""
    rank = len(read.shape(node))
    return Format(*(aligned(t.amax(0, keepdim=True), rank) for t in read.format(w)))


# ---- activations
def relu(read: Reader, node: Node, x: Node) -> Format:
    k, i, f = read.format(x)
    return Format(torch.zeros_like(k), i, f)


def relu6(read: Reader, node: Node, x: Node) -> Format:
    return hardtanh(read, node, x, 0, 6)


def hardtanh(read: Reader, node: Node, x: Node, low: float, high: float) -> Format:
    """No more integer bits than the larger bound, no fewer fraction bits than either."""
    k, i, f = read.format(x)
    bounds = _union(read.format(low), read.format(high))
    return Format(k if low < 0 else torch.zeros_like(k), torch.minimum(i, bounds.i), torch.maximum(f, bounds.f))


def leaky_relu(read: Reader, node: Node, x: Node, slope: float = 0.01) -> Format:
    found = read.format(x)
    return _sloped(found, _shifted(read, found, slope) if is_shift(slope) else _product(found, read.format(slope)))


def prelu(read: Reader, node: Node, x: Node, slopes: Node) -> Format:
    found = read.format(x)
    column = (1, -1, *(1 for _ in range(found.i.dim() - 2)))
    return _sloped(found, _product(found, Format(*(t.reshape(column) for t in read.format(slopes)))))


def _sloped(positive: Format, negative: Format) -> Format:
    """The union of x and slope x; only negative x take the second."""
    return _union(positive, Format(negative.k * positive.k, negative.i, negative.f))


def most(t: Tensor, axes: Iterable[int]) -> Tensor:
    """The largest number along those axes, which stay with size 1."""
    where = [a for a in axes if t.shape[a] != 1]
    return t.amax(where, keepdim=True) if where else t
