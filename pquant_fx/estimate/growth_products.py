"""Formats of sums of products: what an accumulator must hold (the bound of the formats), one format an output channel.

i_acc = max_j (i_w + i_x + (k_w and k_x)) + ceil log2 K     f_acc = max_j (f_w + f_x)     K weights of a row that are not 0
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from pquant_fx.estimate.bits import NOTHING, Format, Shape, aligned
from pquant_fx.estimate.growth import most, sum_of
from pquant_fx.estimate.reader import Reader

__all__ = ["conv", "conv_transpose", "linear", "matmul"]


def linear(read: Reader, node: Node, x: Node, w: Node, b: Node | None) -> Format:
    """Rows of data count by the widest of them."""
    rank = len(read.shape(node))
    data = Format(*(most(t, range(rank - 1)).reshape(1, -1) for t in read.format(x)))
    return _result(read, _rows(read.format(w), data, read.shape(w), 1), b, (*(1 for _ in range(rank - 1)), -1))


def conv(read: Reader, node: Node, x: Node, w: Node, b: Node | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Format:
    """Over the channels of a group and the taps; a map counts by its widest position."""
    outputs, channels, *kernel = read.shape(w)
    grouped = (groups, outputs // groups, channels, *kernel)
    weight = Format(*(t.expand(outputs, *t.shape[1:]).reshape(*grouped[:2], *t.shape[1:]) for t in read.format(w)))
    return _of_map(read, x, weight, grouped, b)


def conv_transpose(
    read: Reader, node: Node, x: Node, w: Node, b: Node | None, stride: Any, padding: Any, extra: Any, groups: int, dilation: Any
) -> Format:
    """The same, with the weight's axes (C, O / groups, *kernel)."""
    inputs, outputs, *kernel = read.shape(w)
    split = (groups, inputs // groups)
    weight = Format(*(t.expand(inputs, *t.shape[1:]).reshape(*split, *t.shape[1:]).transpose(1, 2) for t in read.format(w)))
    return _of_map(read, x, weight, (groups, outputs, inputs // groups, *kernel), b)


def matmul(read: Reader, node: Node, a: Node, b: Node) -> Format:
    """One format for the whole result: the widest elements of both."""
    left, right = (Format(*(t.amax() for t in read.format(value))) for value in (a, b))
    terms = math.ceil(math.log2(max(1, read.shape(a)[-1])))
    made = Format(torch.maximum(left.k, right.k), left.i + right.i + left.k * right.k + terms, left.f + right.f)
    return Format(*(aligned(t, len(read.shape(node))) for t in made))


def _of_map(read: Reader, x: Node, weight: Format, shape: Shape, bias: Node | None) -> Format:
    """shape: of the weight as (groups, O / groups, C / groups, *kernel)."""
    groups, _, channels, *kernel = shape
    ones = (1,) * len(kernel)
    found = (most(t, range(2, t.dim())).flatten() for t in read.format(x))
    data = Format(*(t.reshape(groups, 1, channels, *ones) if t.numel() > 1 else t.reshape(1, 1, 1, *ones) for t in found))
    return _result(read, _rows(weight, data, shape, 2), bias, (1, -1, *ones))


def _rows(w: Format, x: Format, shape: Shape, kept: int) -> Format:
    """The sums of the products w x over all but the first `kept` axes of `shape`, flat."""
    summed = tuple(range(kept, len(shape)))
    alive = (w.i > NOTHING / 2).to(w.i.dtype)
    repeats = math.prod(shape[a] for a in summed) // math.prod(alive.shape[a] for a in summed)
    terms = torch.log2((alive.sum(summed, keepdim=True) * repeats).clamp(min=1)).ceil()
    made = Format(most(torch.maximum(w.k, x.k), summed), most(w.i + x.i + w.k * x.k, summed) + terms, most(w.f + x.f, summed))
    return Format(*(t.expand(*shape[:kept], *(1 for _ in summed)).flatten() for t in made))


def _result(read: Reader, rows: Format, bias: Node | None, column: Shape) -> Format:
    """One format an output channel, after the bias."""
    sums = Format(*(t.reshape(column) for t in rows))
    return sums if bias is None else sum_of(sums, Format(*(t.reshape(column) for t in read.format(bias))))
