"""One emitter per operator of the dialect, shared by the QONNX and the plain ONNX file: graph node -> ONNX nodes.

An emitter writes the standard operator; where a value is computed in double and onnxruntime has no double kernel (Conv), `wide`
takes over. Pools and reductions are in `pools`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.tables import lookup
from pquant_fx.lower.onnx import wide
from pquant_fx.lower.onnx.emission import Emission, Emit, numbers
from pquant_fx.lower.onnx.graph import Value
from pquant_fx.lower.onnx.pools import POOLS

__all__ = ["TABLE"]


def _linear(e: Emission, node: Node) -> Value:
    """y = x w^T + b as MatMul and Add (never Gemm: it takes rank 2 only and hides the accumulator)."""
    x, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
    inputs = [e.data(node, x), e.cast(e.parameter(weight, "transposed"), e.compute(node))]  # type: ignore[arg-type]
    if bias is None:
        return e.result(node, "MatMul", inputs)
    product = e.step(node, "matmul", "MatMul", inputs, e.shape(node))
    return e.result(node, "Add", [product, e.data(node, bias)])


def _conv(e: Emission, node: Node) -> Value:
    x, weight, bias, stride, padding, dilation, groups = node.args
    if e.compute(node) == "float64":
        return wide.conv(e, node)
    inputs = [e.data(node, a) for a in (x, weight, bias) if a is not None]
    return e.result(
        node,
        "Conv",
        inputs,
        dilations=numbers(dilation),
        group=int(groups),  # type: ignore[arg-type]
        kernel_shape=[int(n) for n in inputs[1].shape[2:]],
        pads=numbers(padding) * 2,
        strides=numbers(stride),
    )


def _conv_transpose(e: Emission, node: Node) -> Value:
    """onnxruntime has a float32 kernel only."""
    x, weight, bias, stride, padding, output_padding, groups, dilation = node.args
    if e.compute(node) == "float64":
        return wide.conv_transpose(e, node)
    inputs = [e.data(node, a) for a in (x, weight, bias) if a is not None]
    attributes: dict[str, Any] = {
        "dilations": numbers(dilation),
        "group": int(groups),  # type: ignore[arg-type]
        "kernel_shape": [int(n) for n in inputs[1].shape[2:]],
        "output_padding": numbers(output_padding),
        "pads": numbers(padding) * 2,
        "strides": numbers(stride),
    }
    return e.result(node, "ConvTranspose", inputs, **attributes)


def _binary(operator_name: str) -> Emit:
    def emit(e: Emission, node: Node) -> Value:
        return e.result(node, operator_name, [e.data(node, a, at) for at, a in enumerate(node.args[:2])])

    return emit


def _unary(operator_name: str) -> Emit:
    def emit(e: Emission, node: Node) -> Value:
        return e.result(node, operator_name, [e.data(node, node.args[0])])

    return emit


def _clip(low: float | None = None, high: float | None = None) -> Emit:
    def emit(e: Emission, node: Node) -> Value:
        x = e.data(node, node.args[0])
        bounds = (low, high) if low is not None else node.args[1:3]
        limits = [e.constant(node, what, float(b), x.dtype) for what, b in zip(("low", "high"), bounds)]  # type: ignore[arg-type]
        if x.dtype == "float64":  # onnxruntime 1.31 does not load a Clip of doubles behind a Relu
            return e.result(node, "Min", [e.step(node, "above", "Max", [x, limits[0]], e.shape(node)), limits[1]])
        return e.result(node, "Clip", [x, *limits])

    return emit


def _leaky_relu(e: Emission, node: Node) -> Value:
    slope = float(node.args[1]) if len(node.args) > 1 else 0.01  # type: ignore[arg-type]
    return e.result(node, "LeakyRelu", [e.data(node, node.args[0])], alpha=slope)


def _prelu(e: Emission, node: Node) -> Value:
    """One slope, or one a channel; in double, for which onnxruntime has no kernel, relu(x) - slope relu(-x)."""
    x, slope = e.data(node, node.args[0]), e.data(node, node.args[1], 1)
    shape = e.shape(node)
    if slope.shape and len(shape) > 2:
        column = (int(slope.shape[0]), *(1 for _ in shape[2:]))
        slope = e.step(node, "slopes", "Reshape", [slope, e.constant(node, "slopes_shape", column, "int64")], column)
    if x.dtype == "float32":
        return e.result(node, "PRelu", [x, slope])
    below = e.step(node, "below", "Relu", [e.step(node, "negative", "Neg", [x], shape)], shape)
    scaled = e.step(node, "scaled", "Mul", [below, slope], shape)
    return e.result(node, "Sub", [e.step(node, "above", "Relu", [x], shape), scaled])


def _lookup(e: Emission, node: Node) -> Value:
    """The code of x counted from the first entry, then the entry."""
    x, table = e.data(node, node.args[0]), e.data(node, node.args[1], 1)
    f, low = numbers(node.args[2:])
    codes = e.step(node, "codes", "Mul", [x, e.constant(node, "scale", 2.0**f, x.dtype)], e.shape(node))
    index = e.step(node, "index", "Sub", [codes, e.constant(node, "first", low, x.dtype)], e.shape(node))
    return e.result(node, "Gather", [table, e.cast(index, "int64")], axis=0)


def _upsample(e: Emission, node: Node) -> Value:
    """Resize, for which onnxruntime has no double kernel: there the rows are picked, axis by axis."""
    x, factors = e.data(node, node.args[0]), numbers(node.args[1])
    if x.dtype == "float32":
        inputs = [x, e.constant(node, "roi", np.zeros(0)), e.constant(node, "scales", [1, 1, *factors])]
        modes = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
        return e.result(node, "Resize", inputs, **modes)
    for n, factor in enumerate(factors[:-1]):
        x = _repeated(e, node, x, n + 2, factor)
    index = np.repeat(np.arange(int(x.shape[-1])), factors[-1])
    return e.result(node, "Gather", [x, e.constant(node, "places", index, "int64")], axis=len(x.shape) - 1)


def _repeated(e: Emission, node: Node, x: Value, axis: int, factor: int) -> Value:
    size = int(x.shape[axis])
    index = e.constant(node, f"places{axis}", np.repeat(np.arange(size), factor), "int64")
    return e.step(node, f"axis{axis}", "Gather", [x, index], (*x.shape[:axis], size * factor, *x.shape[axis + 1 :]), axis=axis)


def _embed(e: Emission, node: Node) -> Value:
    table, x = e.data(node, node.args[1], 1), e.data(node, node.args[0])
    return e.result(node, "Gather", [table, e.cast(x, "int64")], axis=0)


def _pad(e: Emission, node: Node) -> Value:
    """torch counts pads from the last axis on, ONNX lists all begins, then all ends."""
    x, pads = e.data(node, node.args[0]), numbers(node.args[1])
    if len(node.args) > 2 and node.args[2] != "constant":
        e.refuse(node, "PQ202", f"padding mode '{node.args[2]}' is not supported", "pad with a constant")
    rank = len(x.shape)
    begins, ends = [0] * rank, [0] * rank
    for n in range(len(pads) // 2):
        begins[rank - 1 - n], ends[rank - 1 - n] = pads[2 * n], pads[2 * n + 1]
    inputs = [x, e.constant(node, "pads", begins + ends, "int64")]
    value = float(node.args[3]) if len(node.args) > 3 and node.args[3] is not None else 0.0  # type: ignore[arg-type]
    if value != 0.0:
        inputs.append(e.constant(node, "value", value, x.dtype))
    return e.result(node, "Pad", inputs, mode="constant")


def _cat(e: Emission, node: Node) -> Value:
    parts = node.args[0]
    assert isinstance(parts, tuple | list)
    return e.result(node, "Concat", [e.data(node, p) for p in parts], axis=int(node.args[1]))  # type: ignore[arg-type]


def _reshape(e: Emission, node: Node) -> Value:
    shape = [-1, *(int(n) for n in e.shape(node)[1:])]
    return e.result(node, "Reshape", [e.data(node, node.args[0]), e.constant(node, "shape", shape, "int64")])


def _permute(e: Emission, node: Node) -> Value:
    return e.result(node, "Transpose", [e.data(node, node.args[0])], perm=numbers(node.args[1]))


def _getitem(e: Emission, node: Node) -> Value:
    x, index = e.data(node, node.args[0]), node.args[1]
    parts: dict[int, tuple[int, int, int]] = {}
    for axis, part in enumerate(index if isinstance(index, tuple) else (index,)):
        if not isinstance(part, slice) or (part.step or 1) < 1:
            e.refuse(node, "PQ202", f"the index {index!r} is no tuple of slices", "select with slices of constant bounds")
            return x
        if axis > 0 and part != slice(None):
            parts[axis] = part.indices(int(x.shape[axis]))
    if not parts:
        return e.result(node, "Identity", [x])
    starts, ends, steps = zip(*parts.values())
    given = {"starts": starts, "ends": ends, "axes": tuple(parts), "steps": steps}
    return e.result(node, "Slice", [x, *(e.constant(node, what, v, "int64") for what, v in given.items())])


TABLE: dict[Callable[..., Any], Emit] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    torch.matmul: _binary("MatMul"),
    operator.add: _binary("Add"),
    operator.sub: _binary("Sub"),
    operator.mul: _binary("Mul"),
    operator.truediv: _binary("Div"),
    operator.neg: _unary("Neg"),
    torch.maximum: _binary("Max"),
    torch.minimum: _binary("Min"),
    F.relu: _unary("Relu"),
    F.relu6: _clip(0.0, 6.0),
    F.hardtanh: _clip(),
    F.leaky_relu: _leaky_relu,
    F.prelu: _prelu,
    lookup: _lookup,
    **POOLS,
    embed: _embed,
    upsample: _upsample,
    F.pad: _pad,
    torch.cat: _cat,
    torch.reshape: _reshape,
    torch.permute: _permute,
    operator.getitem: _getitem,
}
"""Every operator of the dialect but rsqrt, which exists on parameters only, and the functions whose tables `lookup` reads."""
