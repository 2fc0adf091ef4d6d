"""What operators say about the channels of their operands and results: the rules of the table in `coupling`.

A rule takes (coupled axes, node, units of the result followed by those of each argument, None for what is no tensor).
Data movements are in `coupling_moves`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.coupled_axes import Axes, Contraction, CoupledAxes
from pquant_fx.graph.interval_codes import Ints

__all__ = [
    "Kept",
    "broadcast",
    "convolution",
    "elementwise",
    "embedding",
    "fewer_groups",
    "group_count",
    "linear",
    "matmul",
    "pool",
    "prelu",
    "reduction",
    "table",
    "transposed_convolution",
]

Kept = Callable[[Node], tuple[NDArray[np.bool_], ...]]
"""What stays of every axis of a value."""
_GROUPS = 6  # the argument of a convolution, also of a transposed one


def broadcast(coupled: CoupledAxes, node: Node, result: Axes, operand: Axes) -> None:
    """Axes are aligned from the last; an axis of size 1 serves every index."""
    for a, b in zip(reversed(result), reversed(operand)):
        if len(a) == len(b):
            coupled.same(a, b, node)


# ---- value by value
def elementwise(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, *operands = axes
    for operand in operands:
        if operand is not None:
            broadcast(coupled, node, result or (), operand)


def table(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    """The entries belong to every element."""
    elementwise(coupled, node, axes[:2])


def prelu(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, x, slopes = axes
    assert result is not None
    assert x is not None
    elementwise(coupled, node, (result, x))
    if slopes and len(slopes[0]) > 1:
        coupled.same(slopes[0], x[0], node)


def embedding(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    """Columns of the table are features of the result; its rows stay, for any may be asked for."""
    result, x, w, *_ = axes
    if result is None or x is None or w is None:
        return
    for a, other in zip(result[:-1], x):
        coupled.same(a, other, node)
    coupled.same(w[1], result[-1], node)


# ---- sums of products
def linear(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, x, w, b = axes
    x_node, w_node = node.args[:2]
    if result is None or x is None or w is None or w_node not in coupled.formats.constants:
        return
    assert isinstance(x_node, Node)
    assert isinstance(w_node, Node)
    for a, other in zip(result[:-1], x[:-1]):
        coupled.same(a, other, node)
    _outputs(coupled, node, w[0], b, result[-1])
    coupled.same(w[1], x[-1], node)
    coupled.contract(Contraction(node, x[-1], (x_node, len(x) - 1), (w_node, 1), (0, result[-1]), folds=True))


def _outputs(coupled: CoupledAxes, node: Node, rows: Ints, bias: Axes | None, result: Ints) -> None:
    coupled.same(rows, result, node)
    if bias:
        coupled.same(bias[0], result, node)


def convolution(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None], transposed: bool = False) -> None:
    """Channels are summed; depthwise and grouped ones stand side by side, and a group goes as a whole."""
    result, x, w, b, *_ = axes
    x_node, w_node = node.args[:2]
    if result is None or x is None or w is None or w_node not in coupled.formats.constants:
        return
    assert isinstance(x_node, Node)
    assert isinstance(w_node, Node)
    groups, rows, columns = group_count(node), int(transposed), int(not transposed)
    if groups > 1:
        coupled.same(w[0], x[0] if transposed else result[0], node)
        inner, outer = x[0].reshape(groups, -1), result[0].reshape(groups, -1)
        coupled.together(inner, node)
        coupled.together(outer, node)
        coupled.same(inner[:, 0], outer[:, 0], node)
        if b:
            coupled.same(b[0], result[0], node)
        return
    _outputs(coupled, node, w[rows], b, result[0])
    coupled.same(w[columns], x[0], node)
    padding: Any = node.args[4]
    folds = not transposed and isinstance(padding, tuple | list) and not any(padding)  # padded borders see fewer constants
    coupled.contract(Contraction(node, x[0], (x_node, 0), (w_node, columns), (rows, result[0]), folds))


def group_count(node: Node) -> int:
    """How many groups of channels a convolution has; 1 for other operators."""
    if node.target not in (F.conv1d, F.conv2d, F.conv_transpose1d, F.conv_transpose2d):
        return 1
    groups: Any = node.args[_GROUPS]
    return int(groups)


def fewer_groups(node: Node, kept: Kept) -> tuple[Any, ...]:
    groups = group_count(node)
    if groups == 1:
        return node.args
    left = kept(node)[0].reshape(groups, -1)[:, 0]
    return (*node.args[:_GROUPS], int(left.sum()), *node.args[_GROUPS + 1 :])


def transposed_convolution(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    convolution(coupled, node, axes, transposed=True)


def matmul(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    """Of two values, or of a value and a constant matrix on either side."""
    result, a, b = axes
    left, right = node.args[:2]
    if result is None or a is None or b is None:
        return
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    if right in coupled.formats.constants and len(b) == 2 and len(a) == len(result):
        for units, other in zip(result[:-1], a[:-1]):
            coupled.same(units, other, node)
    elif min(len(a), len(b)) >= 2 and len(result) == max(len(a), len(b)):
        broadcast(coupled, node, result[:-2], a[:-2])
        broadcast(coupled, node, result[:-2], b[:-2])
        coupled.same(a[-2], result[-2], node)
    else:
        return
    coupled.same(b[-1], result[-1], node)
    coupled.same(a[-1], b[-2], node)
    first, second = (left, len(a) - 1), (right, len(b) - 2)
    if left in coupled.formats.constants:
        coupled.contract(Contraction(node, a[-1], second, first, (len(a) - 2, result[-2])))
    else:
        coupled.contract(Contraction(node, a[-1], first, second, (len(b) - 1, result[-1])))


# ---- pools and reductions
def pool(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, x, *_ = axes
    assert result is not None
    assert x is not None
    coupled.same(result[0], x[0], node)


def reduction(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, x, *_ = axes
    x_node, reduced = node.args[0], {int(a) - 1 for a in node.args[1]}  # type: ignore[union-attr, arg-type]
    assert result is not None
    assert x is not None
    assert isinstance(x_node, Node)
    keepdim = len(result) == len(x)
    left = [a for a in range(len(x)) if keepdim or a not in reduced]
    for axis, units in zip(left, result):
        if axis not in reduced:
            coupled.same(units, x[axis], node)
    for axis in sorted(reduced):
        if node.target is torch.sum:
            coupled.contract(Contraction(node, x[axis], (x_node, axis)))
