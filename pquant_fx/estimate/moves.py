"""Where the bits of each element go when an operator only moves and selects values.

A move takes one tensor of per-element numbers for each data operand (rank of the operand, size 1 where shared), the operands'
sample shapes, the operator's arguments, and the number that stands for a padded constant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pquant_fx.estimate.bits import Shape
from pquant_fx.graph.moves import upsample

__all__ = ["MERGES", "MOVES", "Move", "is_uniform"]

Move: TypeAlias = Callable[[Sequence[Tensor], Sequence[Shape], tuple[Any, ...], float], Tensor]


def is_uniform(t: Tensor, axes: int) -> bool:
    """Whether the last `axes` axes share their numbers."""
    return math.prod(t.shape[t.dim() - axes :]) == 1


def _reshape(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    (t,), (shape,) = tensors, shapes
    made = (1, *(int(s) for s in args[1][1:]))
    return t.reshape((1,) * len(made)) if t.numel() == 1 else t.expand(shape).reshape(made)


def _permute(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    return tensors[0].permute(tuple(args[1]))


def _getitem(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    t = tensors[0]
    return t[tuple(slice(None) if size == 1 else s for s, size in zip(args[1], t.shape))]


def _cat(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    rank = len(shapes[0])
    axis = args[1] % rank
    varied = [d == axis or any(t.shape[d] != 1 for t in tensors) for d in range(rank)]
    parts = [t.expand([size if v else 1 for v, size in zip(varied, shape)]) for t, shape in zip(tensors, shapes)]
    return torch.cat(parts, axis)


def _pad(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    (t,), (shape,), given = tensors, shapes, args[1]
    sizes, pads = list(t.shape), [0] * len(given)
    for n in range(len(given) // 2):
        axis = len(shape) - 1 - n
        if max(given[2 * n : 2 * n + 2]) > 0:
            sizes[axis] = shape[axis]
        if sizes[axis] != 1 or shape[axis] == 1:  # what is shared along an axis stays shared when that axis is cropped
            pads[2 * n : 2 * n + 2] = given[2 * n : 2 * n + 2]
    return F.pad(t.expand(sizes), pads, "constant", filler)


def _max_pool(pool: Callable[..., Tensor], axes: int) -> Move:
    """The largest number in each window, of i and of f: the union of the formats."""

    def move(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
        (t,), (shape,) = tensors, shapes
        return t if is_uniform(t, axes) else pool(t.expand(*t.shape[:-axes], *shape[-axes:]), *args[1:])

    return move


def _amax(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    return tensors[0].amax(tuple(args[1]), keepdim=len(args) > 2 and bool(args[2]))


def _upsample(tensors: Sequence[Tensor], shapes: Sequence[Shape], args: tuple[Any, ...], filler: float) -> Tensor:
    t, factors = tensors[0], args[1]
    for axis, factor in zip(range(t.dim() - len(factors), t.dim()), factors):
        t = t if t.shape[axis] == 1 else t.repeat_interleave(factor, axis)
    return t


MOVES: dict[Callable[..., Any], Move] = {
    torch.reshape: _reshape,
    torch.permute: _permute,
    operator.getitem: _getitem,
    torch.cat: _cat,
    F.pad: _pad,
    F.max_pool1d: _max_pool(F.max_pool1d, 1),
    F.max_pool2d: _max_pool(F.max_pool2d, 2),
    torch.amax: _amax,
    upsample: _upsample,
}
MERGES: Mapping[Any, Callable[[Tensor, tuple[Any, ...]], bool]] = {
    F.max_pool1d: lambda t, args: not is_uniform(t, 1),
    F.max_pool2d: lambda t, args: not is_uniform(t, 2),
    torch.amax: lambda t, args: any(t.shape[a] != 1 for a in args[1]),
}
"""Whether elements of different formats become one, whose format is the union of theirs."""
