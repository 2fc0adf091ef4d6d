"""Costs and formats of means that are an exact sum times a fixed-point reciprocal (`graph.means`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor
from torch.fx import Node

from pquant_fx.estimate import costs, growth
from pquant_fx.estimate.bits import Format, product_sum
from pquant_fx.estimate.reader import Reader

__all__ = ["pool_cost", "pool_format", "sum_cost", "sum_format"]

Ns: TypeAlias = Sequence[int]


def sum_cost(read: Reader, node: Node, x: Node, axes: Ns, keepdim: bool, factor: float) -> Tensor:
    """The sum, and the product of each result with the constant."""
    return costs.reduce_sum(read, node, x, axes) + _products(read, node, growth.reduce_sum(read, node, x, axes, keepdim), factor)


def pool_cost(read: Reader, node: Node, x: Node, kernel: Ns, *rest: float) -> Tensor:
    """Likewise, for every window."""
    return costs.pool(read, node, x) + _products(read, node, _window_sums(read, node, x, kernel), rest[-1])


def _products(read: Reader, node: Node, sums: Format, factor: float) -> Tensor:
    return product_sum(sums.bits.total, read.total(factor).reshape((1,) * sums.i.dim()), read.shape(node))


def sum_format(read: Reader, node: Node, x: Node, axes: Ns, keepdim: bool, factor: float) -> Format:
    return _scaled(read, growth.reduce_sum(read, node, x, axes, keepdim), factor)


def pool_format(read: Reader, node: Node, x: Node, kernel: Ns, *rest: float) -> Format:
    return _scaled(read, _window_sums(read, node, x, kernel), rest[-1])


def _window_sums(read: Reader, node: Node, x: Node, kernel: Ns) -> Format:
    """The mean with its binary point moved back."""
    mean = growth.avg_pool(read, node, x, kernel)
    more = math.ceil(math.log2(math.prod(kernel)))
    return Format(mean.k, mean.i + more, mean.f - more)


def _scaled(read: Reader, sums: Format, factor: float) -> Format:
    constant = read.format(factor)
    return Format(sums.k, sums.i + constant.i, sums.f + constant.f)
