"""Operators that only move or select values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pquant_fx.graph.moves import upsample
from pquant_fx.lower.hls4ml.net import Array
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Draft
from pquant_fx.lower.qonnx_file.elements import table

__all__ = ["MOVES", "MOVE_READERS"]

Nodes = Mapping[str, Node]


def _alias(d: Draft, node: Node, nodes: Nodes) -> None:
    d.alias(node)


def _reshaped(d: Draft, node: Node, shape: list[int]) -> None:
    """torch.reshape(x, (-1, *sample)); refused where samples would mix."""
    before = node.shape(0)
    if not shape or shape[0] not in (d.batch, -1, 0) or int(np.prod(shape[1:])) != int(np.prod(before)):
        raise node.refuse("PQ202", f"{node.proto.op_type} from {('N', *before)} to {tuple(shape)}", "keep the batch as the first axis")
    if len(shape) == 1:
        raise node.refuse(
            "PQ202", f"{node.proto.op_type} leaves the samples without an axis of their own", "keep one axis behind the batch"
        )
    d.call(node, torch.reshape, d.values[node.inputs[0]], (-1, *shape[1:]))


def _reshape(d: Draft, node: Node, nodes: Nodes) -> None:
    before = [d.batch, *node.shape(0)]
    target = [int(v) for v in node.integers(1, "shape").reshape(-1)]
    if not node.attribute("allowzero", 0):
        target = [before[n] if v == 0 and n < len(before) else v for n, v in enumerate(target)]
    if target.count(-1) > 1 or min(target, default=0) < -1:
        raise node.refuse("PQ202", f"Reshape to {tuple(target)}", "name every size but one")
    if -1 in target[1:] and target[0] != -1:
        rest = abs(int(np.prod(target)))
        target[target.index(-1)] = int(np.prod(before)) // max(rest, 1)
    _reshaped(d, node, target)


def _flatten(d: Draft, node: Node, nodes: Nodes) -> None:
    if int(node.attribute("axis", 1)) % (len(node.shape(0)) + 1) != 1:
        raise node.refuse("PQ202", "Flatten that merges the batch axis", "flatten from axis 1 on")
    _reshaped(d, node, [-1, int(np.prod(node.shape(0)))])


def _resize(d: Draft, node: Node, nodes: Nodes) -> None:
    """Nearest upsampling by whole factors, pixels counted from the corner."""
    modes = {name: node.attribute(name, default) for name, default in _RESIZE.items()}
    scales = node.reals(2, "scales").reshape(-1).tolist() if node.has(2) else []
    factors = [int(s) for s in scales[2:]]
    exact = modes == {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    if not exact or scales[:2] != [1, 1] or scales[2:] != factors or len(factors) not in (1, 2) or min(factors) < 1:
        what = f"Resize by {scales or 'sizes'}, {modes['mode']}, {modes['coordinate_transformation_mode']}, {modes['nearest_mode']}"
        remedy = "use nearest upsampling by whole factors, written with scales, asymmetric and floor"
        raise node.refuse("PQ202", what, remedy)
    d.call(node, upsample, d.values[node.inputs[0]], tuple(factors))


_RESIZE = {"mode": "nearest", "nearest_mode": "round_prefer_floor", "coordinate_transformation_mode": "half_pixel"}
"""What ONNX takes where the file says nothing."""


def _axes(node: Node, rank: int) -> list[int]:
    given = node.integers(1, "axes").reshape(-1).tolist() if node.has(1) else node.attribute("axes", [])
    axes = sorted(int(a) % rank for a in given)
    if 0 in axes:
        raise node.refuse("PQ202", f"{node.proto.op_type} on the batch axis", "keep the batch as the first axis")
    return axes


def _squeeze(d: Draft, node: Node, nodes: Nodes) -> None:
    before = node.shape(0)
    axes = _axes(node, len(before) + 1) or [n + 1 for n, size in enumerate(before) if size == 1]
    _reshaped(d, node, [-1, *(size for n, size in enumerate(before) if n + 1 not in axes)])


def _unsqueeze(d: Draft, node: Node, nodes: Nodes) -> None:
    after = list(node.shape(0))
    count = node.integers(1, "axes").size if node.has(1) else len(node.attribute("axes", []))
    for axis in _axes(node, len(after) + 1 + count):
        after.insert(axis - 1, 1)
    _reshaped(d, node, [-1, *after])


def _transpose(d: Draft, node: Node, nodes: Nodes) -> None:
    rank = len(node.shape(0)) + 1
    perm = tuple(int(p) for p in node.attribute("perm", range(rank - 1, -1, -1)))
    if perm[0] != 0:
        raise node.refuse("PQ202", "Transpose moves the batch axis", "keep the batch as the first axis")
    if perm == tuple(range(rank)):
        d.alias(node)
    else:
        d.call(node, torch.permute, d.values[node.inputs[0]], perm)


def _concat(d: Draft, node: Node, nodes: Nodes) -> None:
    axis = int(node.attribute("axis", 1)) % (len(_data_shape(node)) + 1)
    if axis == 0:
        raise node.refuse("PQ202", "Concat of the batch axis", "keep the batch as the first axis")
    if any(t in d.constants for t in node.inputs):
        raise node.refuse("PQ202", "Concat with a constant", "concatenate computed values only")
    parts = [d.values[t] for t in node.inputs]
    d.call(node, torch.cat, tuple(parts), axis) if len(parts) > 1 else d.alias(node)


def _data_shape(node: Node) -> tuple[int, ...]:
    return next(node.shapes[t] for t in node.inputs if t in node.shapes)


def _slice(d: Draft, node: Node, nodes: Nodes) -> None:
    before = node.shape(0)
    if node.has(1):
        starts, ends = (node.integers(n, what).reshape(-1).tolist() for n, what in ((1, "starts"), (2, "ends")))
        axes = node.integers(3, "axes").reshape(-1).tolist() if node.has(3) else list(range(len(starts)))
        steps = node.integers(4, "steps").reshape(-1).tolist() if node.has(4) else [1] * len(starts)
    else:
        starts, ends = ([int(v) for v in node.attribute(what, [])] for what in ("starts", "ends"))
        axes, steps = [int(v) for v in node.attribute("axes", range(len(starts)))], [1] * len(starts)
    index = [slice(None)] * (len(before) + 1)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = int(axis) % len(index)
        if n == 0 and (start, step) == (0, 1) and end >= d.batch:
            continue
        if n == 0 or step < 1:
            raise node.refuse("PQ202", "Slice of the batch axis or backwards", "slice the other axes with positive steps")
        index[n] = slice(*slice(start, end, step).indices(before[n - 1]))
    _selected(d, node, node.output, index)


def _selected(d: Draft, node: Node, output: str, index: list[slice]) -> None:
    sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], node.shape(0))]
    if 0 in sizes:
        raise node.refuse("PQ202", f"{node.proto.op_type} leaves nothing", "keep at least one element of each axis")
    d.call(node, operator.getitem, d.values[node.inputs[0]], tuple(index), output=output)


def _split(d: Draft, node: Node, nodes: Nodes) -> None:
    outputs = [str(o) for o in node.proto.output]
    rank = len(node.shape(0)) + 1
    axis = int(node.attribute("axis", 0)) % rank
    if axis == 0:
        raise node.refuse("PQ202", "Split of the batch axis", "split the other axes")
    size = node.shape(0)[axis - 1]
    equal = -(-size // len(outputs))
    given = node.integers(1, "split").reshape(-1).tolist() if node.has(1) else node.attribute("split", None)
    parts = [int(v) for v in given] if given is not None else [min(equal, size - n * equal) for n in range(len(outputs))]
    start = 0
    for output, part in zip(outputs, parts, strict=True):
        index = [slice(None)] * rank
        index[axis] = slice(start, start + part, 1)
        start += part
        if output:
            _selected(d, node, output, index)


def _gather(d: Draft, node: Node, nodes: Nodes) -> None:
    """A table, or a choice of elements along an axis at even distances."""
    if node.is_constant(0):
        table(d, node)
        return
    rank = len(node.shape(0)) + 1
    axis, picks = int(node.attribute("axis", 0)) % rank, node.integers(1, "indices")
    if axis == 0 or picks.ndim > 1:
        raise node.refuse("PQ202", "Gather of the batch axis or by a table of indices", "use Slice")
    chosen = [int(p) % node.shape(0)[axis - 1] for p in picks.reshape(-1)]
    step = chosen[1] - chosen[0] if len(chosen) > 1 else 1
    if step < 1 or any(b - a != step for a, b in pairwise(chosen)):
        raise node.refuse("PQ202", f"Gather of the elements {chosen}", "choose elements at even distances, in order (Slice)")
    index = [slice(None)] * rank
    index[axis] = slice(chosen[0], chosen[-1] + 1, step)
    _selected(d, node, node.output, index)
    if picks.ndim == 0:
        made = d.values[node.output]
        shape = [n for at, n in enumerate(d.shape(made)) if at != axis]
        d.call(node, torch.reshape, made, (-1, *shape[1:]))


def _pad(d: Draft, node: Node, nodes: Nodes) -> None:
    rank = len(node.shape(0)) + 1
    value = np.asarray(node.constant(2, "value") if node.has(2) else float(node.attribute("value", 0.0)), dtype=np.float64)
    given = [int(p) for p in (node.integers(1, "pads").reshape(-1) if node.has(1) else node.attribute("pads", []))]
    axes = [int(a) % rank for a in node.integers(3, "axes").reshape(-1)] if node.has(3) else list(range(rank))
    pads = {axis: (given[n], given[n + len(axes)]) for n, axis in enumerate(axes)}
    if any(pads.get(0, (0, 0))):
        raise node.refuse("PQ202", "Pad of the batch axis", "pad the other axes")
    after = nodes.get(node.output)
    if (value == -np.inf).all() and after is not None and after.proto.op_type == "MaxPool" and d.readers[node.output] == 1:
        begins, ends = ([pads.get(axis, (0, 0))[side] for axis in range(2, rank)] for side in (0, 1))
        d.padded[node.output] = (begins, ends)
        d.alias(node)
        return
    if node.attribute("mode", "constant") != "constant" or value.any():
        raise node.refuse("PQ202", "Pad with something else than zeros", "pad with zeros")
    first = min((axis for axis, pair in pads.items() if any(pair)), default=rank)
    sides = tuple(side for axis in range(rank - 1, first - 1, -1) for side in pads.get(axis, (0, 0)))
    d.call(node, F.pad, d.values[node.inputs[0]], sides, "constant", 0) if sides else d.alias(node)


def _constant_transpose(node: Node) -> Callable[[Array], Array]:
    perm = node.attribute("perm")
    return lambda a: np.transpose(a, perm)


def _constant_reshape(node: Node) -> Callable[[Array], Array]:
    shape = [int(v) for v in node.integers(1, "shape").reshape(-1)]
    return lambda a: a.reshape([a.shape[n] if v == 0 else v for n, v in enumerate(shape)])


def _constant_axes(node: Node) -> Callable[[Array], Array]:
    given = node.integers(1, "axes").reshape(-1).tolist() if node.has(1) else list(node.attribute("axes", []))
    if node.proto.op_type == "Squeeze":
        return lambda a: np.squeeze(a, tuple(given) or None)
    return lambda a: np.expand_dims(a, tuple(given))


def _constant_alias(node: Node) -> Callable[[Array], Array]:
    return lambda a: a


MOVES: Mapping[str, Callable[[Node], Callable[[Array], Array]]] = {
    "Transpose": _constant_transpose,
    "Reshape": _constant_reshape,
    "Squeeze": _constant_axes,
    "Unsqueeze": _constant_axes,
    "Identity": _constant_alias,
}
"""What the operator does to a constant: the parameter's format moves with its values."""

MOVE_READERS: dict[str, Any] = {
    "Identity": _alias,
    "Dropout": _alias,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Concat": _concat,
}
