"""Products with a weight: MatMul, Gemm, convolutions, and BatchNormalization where its factors are exact."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch.fx import Node as FxNode
from torch.nn import functional as F

from pquant_fx.graph.intervals import CONSTANT_BITS, Inexact, constant
from pquant_fx.lower.hls4ml.net import Array
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Draft
from pquant_fx.lower.qonnx_file.padding import padding_of

__all__ = ["WEIGHTED_READERS"]

Nodes = Mapping[str, Node]


def _matmul(d: Draft, node: Node, nodes: Nodes) -> None:
    """x @ W with a matrix W is a linear layer of any rank; any other product stays a product."""
    if node.is_constant(1) and not node.is_constant(0) and np.ndim(node.constants[node.inputs[1]]) == 2:
        d.call(node, F.linear, d.values[node.inputs[0]], d.parameter(node.inputs[1], _transposed), None)
        return
    operands = [d.values[t] if t in d.values else d.parameter(t) for t in node.inputs[:2]]
    d.call(node, torch.matmul, *operands)


def _gemm(d: Draft, node: Node, nodes: Nodes) -> None:
    plain = node.attribute("alpha", 1.0) == 1.0 and node.attribute("beta", 1.0) == 1.0 and not node.attribute("transA", 0)
    if not plain or node.is_constant(0) or not node.is_constant(1):
        raise node.refuse("PQ202", "Gemm with alpha, beta, transA or a weight that is no constant", "write it as MatMul and Add")
    weight = d.parameter(node.inputs[1], None if node.attribute("transB", 0) else _transposed)
    bias = None
    if node.has(2):
        bias = _vector(d, node, 2, d.shape(weight)[0]) if node.is_constant(2) else None
        if bias is None:
            raise node.refuse("PQ202", "Gemm that adds a computed value", "write it as MatMul and Add")
    d.call(node, F.linear, d.values[node.inputs[0]], weight, bias)


def _vector(d: Draft, node: Node, position: int, size: int) -> FxNode:
    """A bias of shape (size,), which a file may hold as (1, size) or as one number."""
    shape = np.shape(node.constants[node.inputs[position]])
    if shape == (size,):
        return d.parameter(node.inputs[position])
    if math.prod(shape) not in (1, size):
        raise node.refuse("PQ202", f"a bias of shape {shape} for {size} outputs", "give one number an output")
    return d.parameter(node.inputs[position], lambda a: np.broadcast_to(a.reshape(-1), (size,)).copy())


def _conv(d: Draft, node: Node, nodes: Nodes) -> None:
    x, weight, half = _image(d, node)
    x, pads = padding_of(d, node, x, np.shape(node.constants[node.inputs[1]])[2:], half)
    group = int(node.attribute("group", 1))
    bias = _vector(d, node, 2, d.shape(weight)[0]) if node.has(2) else None
    function = F.conv1d if half == 1 else F.conv2d
    d.call(node, function, x, weight, bias, _numbers(node, "strides", half), pads, _numbers(node, "dilations", half), group)


def _conv_transpose(d: Draft, node: Node, nodes: Nodes) -> None:
    x, weight, half = _image(d, node)
    group = int(node.attribute("group", 1))
    pads = [int(p) for p in node.attribute("pads", [0] * 2 * half)]
    if node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or node.attribute("output_shape") or pads[:half] != pads[half:]:
        raise node.refuse("PQ202", "ConvTranspose with auto_pad, output_shape or uneven pads", "write even padding as numbers")
    bias = _vector(d, node, 2, d.shape(weight)[1] * group) if node.has(2) else None
    more = tuple(int(p) for p in node.attribute("output_padding", [0] * half))
    function = F.conv_transpose1d if half == 1 else F.conv_transpose2d
    steps, dilation = _numbers(node, "strides", half), _numbers(node, "dilations", half)
    d.call(node, function, x, weight, bias, steps, tuple(pads[:half]), more, group, dilation)


def _image(d: Draft, node: Node) -> tuple[FxNode, FxNode, int]:
    if not node.is_constant(1) or (node.has(2) and not node.is_constant(2)):
        raise node.refuse("PQ202", f"{node.proto.op_type} with a computed weight or bias", "make them constants of the file")
    half = len(node.shape(0)) - 1
    if half not in (1, 2) or np.ndim(node.constants[node.inputs[1]]) != half + 2:
        raise node.refuse("PQ202", f"{node.proto.op_type} of a value of shape {node.shape(0)}", "use 1-d or 2-d convolutions")
    return d.values[node.inputs[0]], d.parameter(node.inputs[1]), half


def _numbers(node: Node, name: str, half: int) -> tuple[int, ...]:
    return tuple(int(n) for n in node.attribute(name, [1] * half))


def _batchnorm(d: Draft, node: Node, nodes: Nodes) -> None:
    """y = x * s + t with s = scale / sqrt(var + epsilon), t = bias - mean * s, where both are exact."""
    gamma, beta, mean, var = (node.reals(n, what).reshape(-1) for n, what in enumerate(("scale", "bias", "mean", "variance"), 1))
    epsilon = Fraction(float(np.float32(node.attribute("epsilon", 1e-5))))
    scale = [_quotient(Fraction(g), Fraction(v) + epsilon) for g, v in zip(gamma, var, strict=True)]
    shift = [Fraction(b) - Fraction(m) * s if s is not None else None for b, m, s in zip(beta, mean, scale, strict=True)]
    column = (1, gamma.size, *(1 for _ in node.shape(0)[1:]))
    made = []
    for what, numbers in (("scale", scale), ("shift", shift)):
        values = _exact(numbers)
        if values is None:
            remedy = "fold it into the layer in front before quantizing (Brevitas: merge_bn; QKeras: QConv2DBatchnorm, QDenseBatchnorm)"
            raise node.refuse("PQ202", f"BatchNormalization whose {what} needs more than {CONSTANT_BITS} bits to be exact", remedy)
        made.append(d.made(node, what, values.reshape(column)))
    product = d.call(node, operator.mul, d.values[node.inputs[0]], made[0], name=f"{node.name}.product")
    d.call(node, operator.add, product, made[1])


def _quotient(a: Fraction, square: Fraction) -> Fraction | None:
    """a / sqrt(square), None where that is no rational number."""
    if a == 0:
        return Fraction(0)
    n, m = math.isqrt(max(square.numerator, 0)), math.isqrt(square.denominator)
    return a * Fraction(m, n) if n and n * n == square.numerator and m * m == square.denominator else None


def _exact(numbers: list[Fraction | None]) -> Array | None:
    values = np.array([float("nan") if n is None else float(n) for n in numbers])
    if any(n is None or Fraction(float(n)) != n for n in numbers):
        return None
    try:
        constant(values, CONSTANT_BITS)
    except Inexact:
        return None
    return values


def _transposed(a: Array) -> Array:
    return a.T


WEIGHTED_READERS: dict[str, Any] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batchnorm,
}
