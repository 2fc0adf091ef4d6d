"""Readers of the ONNX operators that only move values: views, slices, pads, concatenation."""

from __future__ import annotations

import numpy as np

from pquant_fx.lower.hls4ml.net import Concat, Ints, Op, Select, Shape, View
from pquant_fx.lower.hls4ml.read import Node, Reader

__all__ = ["SHAPE_READERS", "view"]


def view(node: Node, source: str, before: Shape, index: Ints, after: Shape) -> View:
    """The node's output as a new order of `source` (sample shape `before`)."""
    if int(np.prod(before)) != int(np.prod(after)) or not after:
        raise node.refuse("PQ202", f"{node.proto.op_type} from {before} to {after}", "keep the batch as the first axis")
    return View(name=node.name, inputs=(source,), output=node.output, shape=after, index=index.reshape(-1))


def _same_order(node: Node, after: Shape) -> list[Op]:
    before = node.shape(0)
    return [view(node, node.inputs[0], before, np.arange(int(np.prod(before))), after)]


def _identity(node: Node) -> list[Op]:
    return _same_order(node, node.shape(0))


def _reshape(node: Node) -> list[Op]:
    before, target = node.shape(0), [int(v) for v in node.integers(1, "shape").reshape(-1)]
    axes = [before[n - 1] if v == 0 and 0 < n <= len(before) else v for n, v in enumerate(target)][1:]
    if axes.count(-1) == 1:
        rest = int(np.prod([a for a in axes if a != -1]))
        axes = [int(np.prod(before)) // rest if a == -1 and rest else a for a in axes]
    return _same_order(node, tuple(axes))


def _flatten(node: Node) -> list[Op]:
    if int(node.attribute("axis", 1)) != 1:
        raise node.refuse("PQ202", "Flatten that merges the batch axis", "flatten from axis 1 on")
    return _same_order(node, (int(np.prod(node.shape(0))),))


def _axes(node: Node, rank: int) -> list[int]:
    given = node.integers(1, "axes").reshape(-1).tolist() if node.has(1) else node.attribute("axes", [])
    axes = sorted(int(a) % rank for a in given)
    if 0 in axes:
        raise node.refuse("PQ202", f"{node.proto.op_type} on the batch axis", "keep the batch as the first axis")
    return axes


def _squeeze(node: Node) -> list[Op]:
    before = node.shape(0)
    axes = _axes(node, len(before) + 1) or [n + 1 for n, size in enumerate(before) if size == 1]
    return _same_order(node, tuple(size for n, size in enumerate(before) if n + 1 not in axes))


def _unsqueeze(node: Node) -> list[Op]:
    after = list(node.shape(0))
    given = node.integers(1, "axes").size if node.has(1) else len(node.attribute("axes", []))
    for axis in _axes(node, len(after) + 1 + given):
        after.insert(axis - 1, 1)
    return _same_order(node, tuple(after))


def _transpose(node: Node) -> list[Op]:
    before = node.shape(0)
    perm = [int(p) for p in node.attribute("perm", range(len(before), -1, -1))]
    if perm[0] != 0:
        raise node.refuse("PQ202", "Transpose moves the batch axis", "keep the batch as the first axis")
    axes = [p - 1 for p in perm[1:]]
    index = np.arange(int(np.prod(before))).reshape(before).transpose(axes)
    return [view(node, node.inputs[0], before, index, index.shape)]


def _select(node: Node, maps: list[Ints]) -> list[Op]:
    if any(m.size == 0 for m in maps):
        raise node.refuse("PQ202", f"{node.proto.op_type} leaves nothing", "keep at least one element of each axis")
    shape = tuple(int(m.size) for m in maps)
    return [Select(name=node.name, inputs=(node.inputs[0],), output=node.output, shape=shape, maps=tuple(maps))]


def _slice(node: Node) -> list[Op]:
    before = node.shape(0)
    starts, ends = (node.integers(n, what).reshape(-1) for n, what in ((1, "starts"), (2, "ends")))
    axes = node.integers(3, "axes").reshape(-1) if node.has(3) else np.arange(starts.size)
    steps = node.integers(4, "steps").reshape(-1) if node.has(4) else np.ones_like(starts)
    maps: list[Ints] = [np.arange(size, dtype=np.int64) for size in before]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = int(axis) % (len(before) + 1)
        if n == 0 or step < 1:
            raise node.refuse("PQ202", "Slice of the batch axis or backwards", "slice the other axes with positive steps")
        maps[n - 1] = np.arange(before[n - 1], dtype=np.int64)[int(start) : int(end) : int(step)]
    return _select(node, maps)


def _pad(node: Node) -> list[Op]:
    before = node.shape(0)
    rank = len(before) + 1
    value = node.reals(2, "value") if node.has(2) else np.zeros(())
    if node.attribute("mode", "constant") != "constant" or value.any():
        raise node.refuse("PQ202", "Pad with something else than zeros", "pad with zeros")
    given = node.integers(1, "pads").reshape(-1)
    axes = [int(a) % rank for a in node.integers(3, "axes").reshape(-1)] if node.has(3) else list(range(rank))
    pads = {axis: (int(given[n]), int(given[n + len(axes)])) for n, axis in enumerate(axes)}
    if any(pads.get(0, (0, 0))):
        raise node.refuse("PQ202", "Pad of the batch axis", "pad the other axes")
    return _select(node, [_padded(size, *pads.get(n + 1, (0, 0))) for n, size in enumerate(before)])


def _padded(size: int, front: int, back: int) -> Ints:
    """The rows of an axis between -1 for zeros; a negative number crops."""
    kept = np.arange(size, dtype=np.int64)[max(-front, 0) : size - max(-back, 0)]
    return np.pad(kept, (max(front, 0), max(back, 0)), constant_values=-1)


def _concat(node: Node) -> list[Op]:
    if any(node.is_constant(n) for n in range(len(node.inputs))):
        raise node.refuse("PQ202", "Concat with a constant", "concatenate computed values only")
    shapes = [node.shape(n) for n in range(len(node.inputs))]
    axis = int(node.attribute("axis", 1)) % (len(shapes[0]) + 1) - 1
    if axis < 0:
        raise node.refuse("PQ202", "Concat of the batch axis", "keep the batch as the first axis")
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    return [Concat(name=node.name, inputs=tuple(node.inputs), output=node.output, shape=tuple(shape), axis=axis)]


SHAPE_READERS: dict[str, Reader] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
}
