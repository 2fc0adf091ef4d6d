"""Convolutions and average pools in double precision from operators that have a double kernel: Gather + MatMul / ReduceMean.

The padded input is flattened, one Gather picks every window (its indices are an initializer), and the contraction is
exact while the accumulator stays under 2^53.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.interval_arrays import pool_geometry, windows
from pquant_fx.lower.onnx.emission import Emission, numbers
from pquant_fx.lower.onnx.graph import Value

__all__ = ["conv", "padded", "pool"]


def conv(e: Emission, node: Node) -> Value:
    """(N, C, *S) -> Pad -> (N, C*S') -> Gather (N, G, P, K) -> MatMul (G, K, O/G) -> Transpose -> (N, O, *out) -> Add."""
    x, weight, bias = node.args[:3]
    stride, padding, dilation = (numbers(a) for a in node.args[3:6])
    groups = int(node.args[6])  # type: ignore[arg-type]
    data = padded(e, node, e.data(node, x), [(p, p) for p in padding])
    rows = e.data(node, weight)
    outputs, kernel = int(rows.shape[0]), [int(n) for n in rows.shape[2:]]
    picks = _window_indices([int(n) for n in data.shape[1:]], kernel, stride, dilation, groups)
    positions, volume = picks.shape[1:]
    flat = _reshape(e, node, "flat", data, [int(np.prod([int(n) for n in data.shape[1:]]))])
    index = e.constant(node, "indices", picks, "int64")
    unfolded = e.step(node, "windows", "Gather", [flat, index], (data.shape[0], *picks.shape), axis=1)
    each = outputs // groups
    kernel_shape = e.constant(node, "kernel_shape", [groups, -1, volume], "int64")
    kernels = e.step(node, "kernel", "Reshape", [rows, kernel_shape], (groups, each, volume))
    turned = e.step(node, "kernel_t", "Transpose", [kernels], (groups, volume, each), perm=[0, 2, 1])
    summed = e.step(node, "matmul", "MatMul", [unfolded, turned], (data.shape[0], groups, positions, each))
    moved = e.step(node, "channels", "Transpose", [summed], (data.shape[0], groups, each, positions), perm=[0, 1, 3, 2])
    shape = e.constant(node, "shape", [-1, *(int(n) for n in e.shape(node)[1:])], "int64")
    if bias is None:
        return e.result(node, "Reshape", [moved, shape])
    image = e.step(node, "image", "Reshape", [moved, shape], e.shape(node))
    offset = e.data(node, bias)
    column = (1, outputs, *(1 for _ in kernel))
    added = e.step(node, "bias", "Reshape", [offset, e.constant(node, "bias_shape", column, "int64")], column)
    return e.result(node, "Add", [image, added])


def pool(e: Emission, node: Node) -> Value:
    """(N, C, *S) -> Pad -> (N, C, S') -> Gather (N, C, P, K) -> ReduceMean or ReduceMax -> (N, C, *out)."""
    largest = node.target in (F.max_pool1d, F.max_pool2d)
    kernel, stride, padding = (numbers(a) for a in node.args[1:4])
    x = e.data(node, node.args[0])
    dilation, ceil_mode = (numbers(node.args[4]), bool(node.args[5])) if largest else ([1] * len(kernel), bool(node.args[4]))
    pads = pool_geometry([int(n) for n in x.shape[2:]], kernel, stride, padding, dilation, ceil_mode)
    data = padded(e, node, x, pads, float("-inf") if largest else 0.0)
    image = [int(n) for n in data.shape[2:]]
    picks = _window_indices([1, *image], kernel, stride, dilation, 1)[0]
    flat = _reshape(e, node, "flat", data, [int(data.shape[1]), math.prod(image)])
    index = e.constant(node, "indices", picks, "int64")
    unfolded = e.step(node, "windows", "Gather", [flat, index], (*data.shape[:2], *picks.shape), axis=2)
    what, reduce = ("max", "ReduceMax") if largest else ("mean", "ReduceMean")
    reduced = e.step(node, what, reduce, [unfolded], (*data.shape[:2], len(picks)), axes=[3], keepdims=0)
    return e.result(node, "Reshape", [reduced, e.constant(node, "shape", [-1, *(int(n) for n in e.shape(node)[1:])], "int64")])


def _window_indices(
    sample: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> npt.NDArray[np.int64]:
    """Positions in the flattened sample (C, *S) of every window: (groups, output positions, C / groups * kernel)."""
    n = len(kernel)
    numbered = np.arange(math.prod(sample), dtype=np.int64).reshape(1, *sample)
    view = windows(numbered, kernel, stride, dilation)[0]  # (C, *out, *kernel)
    view = view.reshape(groups, sample[0] // groups, *view.shape[1:])
    moved = np.moveaxis(view, 1, 1 + n)  # (G, *out, C/G, *kernel)
    return np.ascontiguousarray(moved.reshape(groups, math.prod(moved.shape[1 : 1 + n]), -1))


def padded(e: Emission, node: Node, x: Value, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Value:
    """x with (before, after) pads on its spatial axes; negative ones crop."""
    if not any(a or b for a, b in pads):
        return x
    spatial = [int(n) + a + b for n, (a, b) in zip(x.shape[2:], pads)]
    ends = [0, 0, *(a for a, _ in pads), 0, 0, *(b for _, b in pads)]
    inputs = [x, e.constant(node, "pads", ends, "int64")]
    if value != 0.0:
        inputs.append(e.constant(node, "value", value, x.dtype))
    return e.step(node, "padded", "Pad", inputs, (*x.shape[:2], *spatial), mode="constant")


def _reshape(e: Emission, node: Node, what: str, x: Value, sample: Sequence[int]) -> Value:
    return e.step(node, what, "Reshape", [x, e.constant(node, f"{what}_shape", [-1, *sample], "int64")], (x.shape[0], *sample))
