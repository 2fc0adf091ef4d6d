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

from pquant_fx.graph.interval_arrays import pool_geometry, spread, turned, windows
from pquant_fx.graph.means import scaled_pool
from pquant_fx.lower.onnx.emission import Emission, numbers
from pquant_fx.lower.onnx.graph import Value

__all__ = ["conv", "conv_transpose", "padded", "pool"]


def conv(e: Emission, node: Node) -> Value:
    """(N, C, *S) -> Pad -> (N, C*S') -> windows and weights contracted."""
    stride, padding, dilation = (numbers(a) for a in node.args[3:6])
    groups = int(node.args[6])  # type: ignore[arg-type]
    data = padded(e, node, e.data(node, node.args[0]), [(p, p) for p in padding])
    rows = e.data(node, node.args[1])
    sample = [int(n) for n in data.shape[1:]]
    numbered = np.arange(math.prod(sample), dtype=np.int64).reshape(1, *sample)
    picks = _picked(numbered, [int(n) for n in rows.shape[2:]], stride, dilation, groups)
    return _contracted(e, node, _reshape(e, node, "flat", data, [numbered.size]), picks, rows)


def conv_transpose(e: Emission, node: Node) -> Value:
    """(N, C, *S) -> (N, 1 + C*S), a zero in front for the places between the values -> windows and turned weights contracted."""
    stride, padding, output_padding = (numbers(a) for a in node.args[3:6])
    groups, dilation = int(node.args[6]), numbers(node.args[7])  # type: ignore[arg-type]
    data, weight = e.data(node, node.args[0]), e.formats.constants[node.args[1]]  # type: ignore[index]
    rows = e.constant(node, "turned", turned(weight.detach().cpu().double().numpy(), groups), "float64")
    sample, kernel = [int(n) for n in data.shape[1:]], [int(n) for n in rows.shape[2:]]
    numbered = np.arange(1, math.prod(sample) + 1, dtype=np.int64).reshape(1, *sample)
    apart = spread(numbered, kernel, stride, padding, output_padding, dilation)
    picks = _picked(apart, kernel, [1] * len(kernel), dilation, groups)
    flat = _reshape(e, node, "flat", data, [numbered.size])
    zero = e.step(node, "zero", "Pad", [flat, e.constant(node, "front", [0, 1, 0, 0], "int64")], (data.shape[0], 1 + numbered.size))
    return _contracted(e, node, zero, picks, rows)


def _contracted(e: Emission, node: Node, flat: Value, picks: npt.NDArray[np.int64], rows: Value) -> Value:
    """(N, L) -> Gather (N, G, P, K) -> MatMul (G, K, O/G) -> Transpose -> (N, O, *out) -> Add; rows (O, C/G, *kernel)."""
    outputs, bias = int(rows.shape[0]), node.args[2]
    groups, positions, volume = picks.shape
    batch, each = flat.shape[0], outputs // groups
    unfolded = e.step(node, "windows", "Gather", [flat, e.constant(node, "indices", picks, "int64")], (batch, *picks.shape), axis=1)
    kernel_shape = e.constant(node, "kernel_shape", [groups, -1, volume], "int64")
    kernels = e.step(node, "kernel", "Reshape", [rows, kernel_shape], (groups, each, volume))
    across = e.step(node, "kernel_t", "Transpose", [kernels], (groups, volume, each), perm=[0, 2, 1])
    summed = e.step(node, "matmul", "MatMul", [unfolded, across], (batch, groups, positions, each))
    moved = e.step(node, "channels", "Transpose", [summed], (batch, groups, each, positions), perm=[0, 1, 3, 2])
    shape = e.constant(node, "shape", [-1, *(int(n) for n in e.shape(node)[1:])], "int64")
    if bias is None:
        return e.result(node, "Reshape", [moved, shape])
    image = e.step(node, "image", "Reshape", [moved, shape], e.shape(node))
    column = (1, outputs, *(1 for _ in rows.shape[2:]))
    added = e.step(node, "bias", "Reshape", [e.data(node, bias), e.constant(node, "bias_shape", column, "int64")], column)
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
    picks = _picked(np.arange(math.prod(image), dtype=np.int64).reshape(1, 1, *image), kernel, stride, dilation, 1)[0]
    flat = _reshape(e, node, "flat", data, [int(data.shape[1]), math.prod(image)])
    index = e.constant(node, "indices", picks, "int64")
    unfolded = e.step(node, "windows", "Gather", [flat, index], (*data.shape[:2], *picks.shape), axis=2)
    out = (*data.shape[:2], len(picks))
    if node.target is scaled_pool:
        sums = e.step(node, "sums", "ReduceSum", [unfolded, e.constant(node, "last", [3], "int64")], out, keepdims=0)
        reduced = e.step(node, "mean", "Mul", [sums, e.constant(node, "reciprocal", float(node.args[6]), x.dtype)], out)  # type: ignore[arg-type]
    else:
        what, reduce = ("max", "ReduceMax") if largest else ("mean", "ReduceMean")
        more, given = e.reduced_over(node, [3])
        reduced = e.step(node, what, reduce, [unfolded, *more], out, keepdims=0, **given)
    return e.result(node, "Reshape", [reduced, e.constant(node, "shape", [-1, *(int(n) for n in e.shape(node)[1:])], "int64")])


def _picked(
    numbered: npt.NDArray[np.int64], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> npt.NDArray[np.int64]:
    """What every window picks of a sample (1, C, *S) of positions: (groups, output positions, C / groups * kernel)."""
    n = len(kernel)
    view = windows(numbered, kernel, stride, dilation)[0]  # (C, *out, *kernel)
    view = view.reshape(groups, numbered.shape[1] // groups, *view.shape[1:])
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
