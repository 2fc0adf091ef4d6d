"""Rules of `canonicalize` for what moves or selects values: reshape, permute, slices, splits, concatenation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.fx import Node

from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.canonical_form import (
    NotCanonical,
    Rule,
    arguments,
    axis_of,
    canonical,
    described,
    is_tensor,
    reshaped,
    sample_shape,
    shape_of,
    sizes_of,
)

__all__ = ["SHAPE_RULES"]

T = torch.Tensor


def reshape(node: Node, rw: Rewriter) -> Node | None:
    """flatten, view, squeeze, unsqueeze, ... that keep the batch on axis 0 -> torch.reshape(x, (-1, *sample))."""
    x = node.args[0]
    sample_shape(x)
    return reshaped(node, rw, x, sample_shape(node))  # type: ignore[arg-type]


def expand(node: Node, rw: Rewriter) -> Node | None:
    """An expand that changes nothing is dropped."""
    x = node.args[0]
    if sample_shape(x) != sample_shape(node):
        raise NotCanonical
    return x  # type: ignore[return-value]


def permute(node: Node, rw: Rewriter) -> Node | None:
    """x.permute(...) with the batch in place."""
    x, rank = node.args[0], len(sample_shape(node.args[0])) + 1
    return _permuted(node, rw, x, [axis_of(a, rank) for a in sizes_of(node)])


def transpose(node: Node, rw: Rewriter) -> Node | None:
    x, first, second = arguments(node, "input", "dim0", "dim1")
    rank = len(sample_shape(x)) + 1
    axes = list(range(rank))
    a, b = axis_of(first, rank), axis_of(second, rank)
    axes[a], axes[b] = b, a
    return _permuted(node, rw, x, axes)


def movedim(node: Node, rw: Rewriter) -> Node | None:
    x, source, to = arguments(node, "input", "source", "destination")
    rank = len(sample_shape(x)) + 1
    sources, targets = ([axis_of(a, rank) for a in ((v,) if isinstance(v, int) else v)] for v in (source, to))
    axes: list[int] = [a for a in range(rank) if a not in sources]
    for target, source_axis in sorted(zip(targets, sources)):
        axes.insert(target, source_axis)
    return _permuted(node, rw, x, axes)


def attribute(node: Node, rw: Rewriter) -> Node | None:
    """x.mT -> permute; x.data -> detach."""
    x, name = node.args[0], node.args[1]
    if name == "data":
        return rw.call(T.detach, x)
    if name != "mT":
        raise NotCanonical
    rank = len(sample_shape(x)) + 1
    return _permuted(node, rw, x, [*range(rank - 2), rank - 1, rank - 2])


def _permuted(node: Node, rw: Rewriter, x: Any, axes: list[int]) -> Node | None:
    if axes == sorted(axes):
        return x
    if not axes or axes[0] != 0:
        raise NotCanonical
    return canonical(node, rw, torch.permute, x, tuple(axes))


def index(node: Node, rw: Rewriter) -> Node | None:
    """x[:, 0, 2:], x[..., None] -> one slice per axis, then the shape."""
    x, wanted = arguments(node, "input", "index")
    sizes, out = sample_shape(x), sample_shape(node)
    parts = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
    if not all(p is None or p is Ellipsis or type(p) is int or _is_static(p) for p in parts):
        raise NotCanonical
    given = sum(p is not None and p is not Ellipsis for p in parts)
    at = next((n for n, p in enumerate(parts) if p is Ellipsis), len(parts))
    parts[at : at + 1] = [slice(None)] * (len(sizes) + 1 - given)
    axes = [p for p in parts if p is not None]
    if len(axes) != len(sizes) + 1 or axes[0] != slice(None) or not isinstance(parts[0], slice):
        raise NotCanonical
    ranges = []
    for p, size in zip(axes[1:], sizes):
        start, stop, step = (p % size, p % size + 1, 1) if isinstance(p, int) else p.indices(size)
        ranges.append((start, max(start, stop), step))
    return _sliced(node, rw, x, ranges, out)


def narrow(node: Node, rw: Rewriter) -> Node | None:
    x, axis, start, length = arguments(node, "input", "dim", "start", "length")
    return _sliced(node, rw, x, _one_axis(x, axis, start, length), sample_shape(node))


def select(node: Node, rw: Rewriter) -> Node | None:
    x, axis, at = arguments(node, "input", "dim", "index")
    if not isinstance(at, int):
        raise NotCanonical
    size = shape_of(x)[axis_of(axis, len(shape_of(x)))]
    return _sliced(node, rw, x, _one_axis(x, axis, at % size, 1), sample_shape(node))


def part(node: Node, rw: Rewriter) -> Node | None:
    """Part i of chunk, split, unbind -> its slice; other selections from a tuple stay."""
    source, i = node.args
    if not isinstance(source, Node) or source.op not in ("call_function", "call_method") or not isinstance(i, int):
        return index(node, rw) if is_tensor(source) else None
    splitter = _SPLITS.get(source.target) if callable(source.target) else None
    if splitter is None:
        return index(node, rw) if is_tensor(source) else None
    x, axis, sizes = splitter(source)
    i %= len(sizes)
    start = [0, *accumulate(sizes)][i]
    return _sliced(node, rw, x, _one_axis(x, axis, start, sizes[i]), sample_shape(node))


def _is_static(p: Any) -> bool:
    return isinstance(p, slice) and all(v is None or type(v) is int for v in (p.start, p.stop, p.step))


def _one_axis(x: Any, axis: Any, start: Any, length: Any) -> list[tuple[int, int, int]]:
    sizes = sample_shape(x)
    a = axis_of(axis, len(sizes) + 1) - 1
    if a < 0 or not isinstance(start, int) or not isinstance(length, int):
        raise NotCanonical
    start %= sizes[a]
    return [(start, start + length, 1) if n == a else (0, s, 1) for n, s in enumerate(sizes)]


def _sliced(node: Node, rw: Rewriter, x: Any, ranges: list[tuple[int, int, int]], out: tuple[int, ...]) -> Node | None:
    sizes = sample_shape(x)
    taken = tuple(len(range(*r)) for r in ranges)
    if 0 in taken:
        raise NotCanonical
    if taken == sizes:
        return reshaped(node, rw, x, out)
    slices = (slice(None, None, None), *(slice(*r) for r in ranges))
    cut = canonical(node, rw, operator.getitem, x, slices)
    if cut is None or taken == out:
        return cut
    return reshaped(node, rw, described(cut, x, (shape_of(x)[0], *taken)), out)


def _chunk(node: Node) -> tuple[Any, int, list[int]]:
    x, chunks, axis = arguments(node, "input", "chunks", "dim", dim=0)
    size = shape_of(x)[axis_of(axis, len(shape_of(x)))]
    return x, axis, _pieces(size, -(-size // chunks))


def _split(node: Node) -> tuple[Any, int, list[int]]:
    names = {"split_size_or_sections": "split_size"}
    kwargs = {names.get(k, k): v for k, v in node.kwargs.items()}
    x, wanted = node.args[0], node.args[1] if len(node.args) > 1 else kwargs.get("split_size", kwargs.get("split_sizes"))
    axis = node.args[2] if len(node.args) > 2 else kwargs.get("dim", 0)
    size = shape_of(x)[axis_of(axis, len(shape_of(x)))]
    if isinstance(wanted, int):
        return x, axis, _pieces(size, wanted)  # type: ignore[return-value]
    if not isinstance(wanted, (tuple, list)) or not all(isinstance(s, int) for s in wanted):
        raise NotCanonical
    return x, axis, list(wanted)  # type: ignore[return-value]


def _unbind(node: Node) -> tuple[Any, int, list[int]]:
    x, axis = arguments(node, "input", "dim", dim=0)
    return x, axis, [1] * shape_of(x)[axis_of(axis, len(shape_of(x)))]


def _pieces(size: int, step: int) -> list[int]:
    return [min(step, size - start) for start in range(0, size, step)]


def cat(node: Node, rw: Rewriter) -> Node | None:
    tensors, axis = arguments(node, "tensors", "dim", dim=0)
    rank = len(sample_shape(node, *tensors)) + 1
    axis = axis_of(axis, rank)
    if axis == 0:
        raise NotCanonical
    return canonical(node, rw, torch.cat, tuple(tensors), axis)


def stack(node: Node, rw: Rewriter) -> Node | None:
    """torch.stack -> every value gets the new axis, then cat."""
    tensors, axis = arguments(node, "tensors", "dim", dim=0)
    sample = sample_shape(*tensors)
    axis = axis_of(axis, len(sample) + 2)
    if axis == 0 or 0 in sample:
        raise NotCanonical
    shape = (*sample[: axis - 1], 1, *sample[axis - 1 :])
    widened = [described(rw.call(torch.reshape, t, (-1, *shape)), t, (shape_of(t)[0], *shape)) for t in tensors]
    return rw.call(torch.cat, tuple(widened), axis)


_SPLITS: dict[Callable[..., Any], Callable[[Node], tuple[Any, int, list[int]]]] = {
    torch.chunk: _chunk,
    T.chunk: _chunk,
    torch.split: _split,
    T.split: _split,
    torch.split_with_sizes: _split,
    T.split_with_sizes: _split,
    torch.unbind: _unbind,
    T.unbind: _unbind,
}

SHAPE_RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys((torch.reshape, T.reshape, T.view, torch.flatten, T.flatten, T.view_as, T.reshape_as), reshape),
    **dict.fromkeys((torch.squeeze, T.squeeze, torch.unsqueeze, T.unsqueeze, torch.unflatten, T.unflatten), reshape),
    **dict.fromkeys((T.expand, T.expand_as), expand),
    **dict.fromkeys((torch.permute, T.permute), permute),
    **dict.fromkeys((torch.transpose, T.transpose, torch.swapaxes, T.swapaxes, torch.swapdims, T.swapdims), transpose),
    **dict.fromkeys((torch.movedim, T.movedim, torch.moveaxis, T.moveaxis), movedim),
    getattr: attribute,
    T.__getitem__: index,
    operator.getitem: part,
    **dict.fromkeys((torch.narrow, T.narrow), narrow),
    **dict.fromkeys((torch.select, T.select), select),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), cat),
    torch.stack: stack,
}
