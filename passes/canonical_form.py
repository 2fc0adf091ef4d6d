"""What the rules of `canonicalize` share: reading the arguments of a call however they were spelled, and making the canonical call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from pquant_fx.graph.batch import has_batch_axis, mark_without_batch_axis
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.rewriter import Rewriter

__all__ = [
    "NotCanonical",
    "Rule",
    "arguments",
    "axes_of",
    "axis_of",
    "canonical",
    "each",
    "is_tensor",
    "reshaped",
    "sample_shape",
    "shape_of",
    "sizes_of",
]

Rule = Callable[[Node, Rewriter], "Node | None"]
_SPELLINGS = {"axis": "dim", "keepdims": "keepdim", "self": "input", "x1": "input", "x2": "other"}


class NotCanonical(Exception):
    """The call has no canonical form: it stays as it is, opaque to every target."""


def arguments(node: Node, *names: str, **defaults: Any) -> tuple[Any, ...]:
    """The arguments of a call in the order of `names`; raises NotCanonical for others, and for missing ones."""
    if len(node.args) > len(names):
        raise NotCanonical
    values = {**defaults, **dict(zip(names, node.args))}
    for name, value in node.kwargs.items():
        name = name if name in names else _SPELLINGS.get(name, name)
        if name not in names:
            raise NotCanonical
        values[name] = value
    if len(values) < len(names):
        raise NotCanonical
    return tuple(values[name] for name in names)


def canonical(node: Node, rw: Rewriter, function: Callable[..., Any], *args: Any) -> Node | None:
    """The call `function(*args)` in the place of `node`; None when `node` is that call already."""
    if node.op == "call_function" and node.target is function and not node.kwargs and _same(node.args, args):
        return None
    return rw.call(function, *args)


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a value, batch first."""
    shape = info(value).shape if isinstance(value, Node) else None
    if shape is None:
        raise NotCanonical
    return shape


def is_tensor(value: Any) -> bool:
    """Whether `value` is a node whose shape is known."""
    return isinstance(value, Node) and info(value).shape is not None


def sample_shape(*values: Any) -> tuple[int, ...]:
    """The shape of one sample of the first value; raises NotCanonical unless axis 0 of all of them is the batch."""
    if not all(isinstance(v, Node) and has_batch_axis(v) for v in values) or not shape_of(values[0]):
        raise NotCanonical
    return shape_of(values[0])[1:]


def axis_of(axis: Any, rank: int) -> int:
    """A single axis as a number from 0."""
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise NotCanonical
    return axis % rank


def axes_of(axes: Any, rank: int) -> tuple[int, ...]:
    """Sorted axes from 0, of one or several."""
    if axes is None or (isinstance(axes, Sequence) and not axes):
        raise NotCanonical
    return tuple(sorted({axis_of(a, rank) for a in ((axes,) if isinstance(axes, int) else axes)}))


def sizes_of(node: Node) -> tuple[Any, ...]:
    """The numbers after the first argument, given one by one or as a tuple: x.view(a, b), x.view((a, b)), size=(a, b)."""
    rest: Any = node.args[1:] or tuple(node.kwargs.values())
    return tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else tuple(rest)


def each(value: Any, n: int) -> tuple[int, ...]:
    """One number for each of n spatial axes: 3 -> (3, 3)."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    values = values * n if len(values) == 1 else values
    if len(values) != n or not all(isinstance(v, int) for v in values):
        raise NotCanonical
    return values


def reshaped(node: Node, rw: Rewriter, x: Node, shape: Sequence[int]) -> Node | None:
    """`torch.reshape(x, (-1, *shape))`, `shape` being that of a sample; x itself when it has this shape."""
    if shape_of(x)[1:] == tuple(shape) and node.target is not torch.reshape:
        return x
    if math.prod(shape) == 0:
        raise NotCanonical
    return canonical(node, rw, torch.reshape, x, (-1, *shape))


def described(new: Node, like: Node, shape: tuple[int, ...]) -> Node:
    """Give an intermediate node the shape that later rules ask for."""
    set_info(new, info(like).with_shape(shape))
    if not has_batch_axis(like):
        mark_without_batch_axis(new)
    return new


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return a is b or (type(a) is type(b) and not isinstance(a, Node) and bool(a == b))
