"""Readers of sums and maxima over any axes: a row of ones in a dense layer, and a window as long as the row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pquant_fx.lower.hls4ml.net import Dense, Ints, Op, Pool, Shape, View
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.shapes import view
from pquant_fx.lower.hls4ml.windows import global_mean, power_of_two

__all__ = ["REDUCTION_READERS"]


def _sum(node: Node) -> list[Op]:
    """Sums and means: over a whole image a mean of 2^n pixels, else rows times ones, or times 2^-n."""
    shape = node.shape(0)
    axes, rows, count, out = _reduced(node)
    pixels = int(np.prod(shape[1:]))
    if len(shape) > 1 and axes == list(range(1, len(shape))) and not pixels & (pixels - 1):
        return global_mean(node)
    sums = _rows(node, (shape,), rows, (rows.size // count, count))
    if node.proto.op_type == "ReduceMean":
        power_of_two(node, count)
    each = 1 / count if node.proto.op_type == "ReduceMean" else 1.0
    weight, bias, made = np.full((count, 1), each), np.zeros(1), (rows.size // count, 1)
    if len(out) == 1 and rows.size == count:
        sums = _rows(node, (shape,), rows, (count,))
        return [sums, Dense(name=node.name, inputs=(sums.output,), output=node.output, shape=(1,), weight=weight, bias=bias)]
    dense = Dense(name=node.name, inputs=(sums.output,), output=f"{node.output}/sums", shape=made, weight=weight, bias=bias)
    return [sums, dense, view(node, dense.output, made, np.arange(made[0]), out)]


def _largest(node: Node) -> list[Op]:
    """An image with one row for every result."""
    _, rows, count, out = _reduced(node)
    results = rows.size // count
    image = (1, count) if results == 1 else (1, results, count)
    kernel, after = image[1:] if results == 1 else (1, count), (*image[:-1], 1)
    row = _rows(node, (node.shape(0),), rows, image)
    pool = Pool(
        name=node.name, inputs=(row.output,), output=f"{node.output}/max", shape=after,
        mode="Max", kernel=kernel, strides=kernel, pads=(0,) * 2 * len(kernel),
    )  # fmt: skip
    return [row, pool, view(node, pool.output, after, np.arange(results), out)]


def _reduced(node: Node) -> tuple[list[int], Ints, int, Shape]:
    """(axes of the sample, elements with those of one result in a row, how many these are, the shape of the results)."""
    shape = node.shape(0)
    given = node.integers(1, "axes").reshape(-1).tolist() if node.has(1) else node.attribute("axes", [])
    axes = sorted(int(a) % (len(shape) + 1) - 1 for a in given)
    if not axes or axes[0] < 0:
        raise node.refuse("PQ202", f"{node.proto.op_type} over the batch axis", "name the axes of the sample")
    kept = [n for n in range(len(shape)) if n not in axes]
    keep = bool(node.attribute("keepdims", 1))
    out = tuple(1 if n in axes else size for n, size in enumerate(shape) if keep or n not in axes)
    rows = np.arange(int(np.prod(shape))).reshape(shape).transpose(*kept, *axes).reshape(-1)
    return axes, rows, int(np.prod([shape[n] for n in axes])), out or (1,)


def _rows(node: Node, before: tuple[Shape], rows: Ints, after: Shape) -> View:
    made = view(node, node.inputs[0], before[0], rows, after)
    return replace(made, name=f"{node.name}/row", output=f"{node.output}/row")


REDUCTION_READERS: dict[str, Reader] = {"ReduceMean": _sum, "ReduceSum": _sum, "ReduceMax": _largest}
