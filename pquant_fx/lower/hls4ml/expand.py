"""One operation that hls4ml lacks -> several that it has: selections and means as convolutions, n-ary joins as trees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pquant_fx.errors import LoweringError
from pquant_fx.graph.interval_arrays import upsample
from pquant_fx.lower.hls4ml.net import Array, Concat, Conv, Copy, Dense, Ints, Op, Pool, Select, Shape, Upsample, View, refusal

__all__ = ["expand"]


def expand(op: Op, io_type: str, shapes: Mapping[str, Shape], nonnegative: set[str]) -> list[Op]:
    """`op` itself, or what stands for it. shapes: of the tensors made so far; nonnegative: tensors that are never below 0.

    Raises LoweringError (PQ202) naming the node.
    """
    stream = io_type == "io_stream"
    made = _expanded(op, stream, shapes, nonnegative)
    return [_two_rows(one) if stream and isinstance(one, Conv) else one for one in made]


def _expanded(op: Op, stream: bool, shapes: Mapping[str, Shape], nonnegative: set[str]) -> list[Op]:
    if isinstance(op, Select):
        before = shapes[op.inputs[0]]
        return [_copy(op, before) if stream and _is_regular(op, before) else _picked(op, before)]
    if isinstance(op, Copy) and stream and shapes[op.inputs[0]] == (*op.shape[:-1], 1):
        return [_repeated(op)]
    if isinstance(op, Upsample) and not stream:
        return [_repeated_pixels(op, shapes[op.inputs[0]])]
    if isinstance(op, Concat) and len(op.inputs) != 2:
        return _concat_tree(op, shapes)
    if isinstance(op, Pool) and op.mode == "Average" and (any(op.pads) or (stream and op.kernel != op.strides)):
        return [_mean(op)]
    if isinstance(op, Pool) and op.mode == "Max":
        return _maximum(op, stream, shapes, nonnegative)
    return [op]


def _two_rows(op: Conv) -> Conv:
    """hls4ml 1.3 streams a kernel of one row and several columns through its 1-d code, which takes no step from row to row: a second
    row of zeros, and one of padding for it, make it an ordinary one.
    """
    height, *width = op.weight.shape[2:]
    if not width or height > 1 or width[0] == 1 or op.strides[0] == 1:
        return op
    top, left, bottom, right = op.pads
    return replace(op, weight=np.pad(op.weight, [(0, 0), (0, 0), (0, 1), (0, 0)]), pads=(top, left, bottom + 1, right))


def _repeated_pixels(op: Upsample, before: Shape) -> Copy:
    elements = upsample(np.arange(int(np.prod(before))).reshape(before), op.factors)
    return Copy(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, index=elements.reshape(-1))


def _concat_tree(op: Concat, shapes: Mapping[str, Shape]) -> list[Op]:
    """hls4ml joins two values at a time; one value alone is itself."""
    if len(op.inputs) == 1:
        return [View(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, index=np.arange(int(np.prod(op.shape))))]
    ops: list[Op] = []
    left, shape = op.inputs[0], list(shapes[op.inputs[0]])
    for n, right in enumerate(op.inputs[1:], 1):
        shape[op.axis] += shapes[right][op.axis]
        part = "" if n == len(op.inputs) - 1 else f"/join{n}"
        ops.append(replace(op, name=op.name + part, inputs=(left, right), output=op.output + part, shape=tuple(shape)))
        left = ops[-1].output
    return ops


def _mean(op: Pool) -> Conv:
    """A mean over 2^m elements is a convolution with the weights 2^-m, which may pad and overlap as it likes."""
    channels = op.shape[0]
    weight = np.zeros((channels, channels, *op.kernel))
    weight[np.arange(channels), np.arange(channels)] = 1 / np.prod(op.kernel)
    return Conv(
        name=op.name, inputs=op.inputs, output=op.output, shape=op.shape,
        weight=weight, bias=np.zeros(channels), strides=op.strides, pads=op.pads,
    )  # fmt: skip


def _maximum(op: Pool, stream: bool, shapes: Mapping[str, Shape], nonnegative: set[str]) -> list[Op]:
    """hls4ml pads a maximum with the most negative code, which an unsigned type does not have: zeros are padded before it."""
    if stream and (op.kernel != op.strides or (any(op.pads) and op.inputs[0] not in nonnegative)):
        return _apart(op, shapes[op.inputs[0]])
    if not any(op.pads) or op.inputs[0] not in nonnegative:
        return [op]
    before, half = shapes[op.inputs[0]], len(op.kernel)
    rows = [np.pad(np.arange(before[n + 1]), (op.pads[n], op.pads[n + half]), constant_values=-1) for n in range(half)]
    padded = f"{op.output}/padded"
    shape = (before[0], *(int(r.size) for r in rows))
    pad = Select(name=f"{op.name}/pad", inputs=op.inputs, output=padded, shape=shape, maps=(np.arange(before[0]), *rows))
    return [_copy(pad, before) if stream else _picked(pad, before), replace(op, inputs=(padded,), pads=(0,) * 2 * half)]


def _apart(op: Pool, before: Shape) -> list[Op]:
    """Windows side by side, so that none overlap; for what lies beyond the border a window repeats an element of its own."""
    rows = [
        np.clip((np.arange(out)[:, None] * stride + np.arange(kernel) - front).reshape(-1), 0, size - 1)
        for size, out, kernel, stride, front in zip(before[1:], op.shape[1:], op.kernel, op.strides, op.pads)
    ]
    shape = (before[0], *(int(r.size) for r in rows))
    windows = Select(
        name=f"{op.name}/windows", inputs=op.inputs, output=f"{op.output}/windows", shape=shape, maps=(np.arange(before[0]), *rows)
    )
    return [_picked(windows, before), replace(op, inputs=(windows.output,), strides=op.kernel, pads=(0,) * 2 * len(op.kernel))]


def _picked(op: Select, before: Shape) -> Op:
    """A slice or pad as a choice of elements."""
    if op.shape == before and all((rows == np.arange(rows.size)).all() for rows in op.maps):
        return View(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, index=np.arange(int(np.prod(op.shape))))
    elements = np.arange(int(np.prod(before))).reshape(before)
    absent = np.zeros((1,) * len(before), dtype=np.bool_)
    for axis, rows in enumerate(op.maps):
        elements = np.take(elements, np.maximum(rows, 0), axis=axis)
        absent = absent | (rows < 0).reshape([-1 if n == axis else 1 for n in range(len(before))])
    index = np.where(absent, -1, elements).reshape(-1)
    return Copy(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, index=index)


def _repeated(op: Copy) -> Dense:
    """One value repeated along the last axis: a row of ones."""
    count = op.shape[-1]
    weight, bias = np.ones((1, count)), np.zeros(count)
    return Dense(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, weight=weight, bias=bias, copies=True)


def _copy(op: Select, before: Shape) -> Op:
    """A slice or pad as a layer whose weights are 0 and 1: exact, and free of multipliers once synthesised."""
    if op.shape == before and all((rows == np.arange(rows.size)).all() for rows in op.maps):
        return View(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, index=np.arange(int(np.prod(op.shape))))
    channels = _matrix(op.maps[0], before[0])
    bias = np.zeros(channels.shape[0])
    if len(before) == 1:
        return Dense(name=op.name, inputs=op.inputs, output=op.output, shape=op.shape, weight=channels.T, bias=bias, copies=True)
    windows = [_window(op, rows, size) for rows, size in zip(op.maps[1:], before[1:], strict=True)]
    weight = np.zeros((*channels.shape, *(w[0] for w in windows)))
    taps: list[Any] = [w[1] for w in windows]
    weight[(slice(None), slice(None), *taps)] = channels
    pads = (*(w[3] for w in windows), *(w[4] for w in windows))
    return Conv(
        name=op.name, inputs=op.inputs, output=op.output, shape=op.shape,
        weight=weight, bias=bias, strides=tuple(w[2] for w in windows), pads=pads, copies=True,
    )  # fmt: skip


def _matrix(rows: Ints, size: int) -> Array:
    matrix = np.zeros((rows.size, size))
    kept = np.flatnonzero(rows >= 0)
    matrix[kept, rows[kept]] = 1
    return matrix


def _is_regular(op: Select, before: Shape) -> bool:
    """Whether windows with constant steps pick these rows."""
    try:
        for rows, size in zip(op.maps[1:], before[1:], strict=True):
            _window(op, rows, size)
    except LoweringError:
        return False
    return True


def _window(op: Select, rows: Ints, size: int) -> tuple[int, int, int, int, int]:
    """(kernel, tap, stride, pad before, pad after) of a window that picks exactly these rows out of `size`.

    Row r must be the input's row stride * r + shift wherever that exists, and zeros elsewhere.
    """
    kept = np.flatnonzero(rows >= 0)
    if kept.size == 0:
        raise refusal("PQ202", "a pad that leaves nothing but zeros", "remove it", op.name)
    stride = int(rows[kept[1]] - rows[kept[0]]) // int(kept[1] - kept[0]) if kept.size > 1 else max(size, rows.size)
    shift = int(rows[kept[0]]) - stride * int(kept[0])
    source = stride * np.arange(rows.size) + shift
    if stride < 1 or (np.where((source >= 0) & (source < size), source, -1) != rows).any():
        raise refusal("PQ202", "a slice or pad that keeps no regular grid of rows", "split it into plain slices and pads", op.name)
    before = max(0, -shift)
    tap = shift + before
    kernel, after = tap + 1, 0
    room = size + before - kernel
    if room < (rows.size - 1) * stride:
        after = (rows.size - 1) * stride - room
    elif room >= rows.size * stride:
        kernel += room - rows.size * stride + 1
    return kernel, tap, stride, before, after
