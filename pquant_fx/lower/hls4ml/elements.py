"""Readers of the ONNX operators that work element by element."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pquant_fx.lower.hls4ml.net import Affine, Array, Copy, Merge, Op, Relu, Shape
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.shapes import view

__all__ = ["ELEMENT_READERS", "affine"]

_ZERO = np.zeros(())
_ONE = np.ones(())


def affine(node: Node, source: str, output: str, shape: Shape, scale: Array, bias: Array, suffix: str = "") -> Affine:
    """x * scale + bias of a node, both broadcast to `shape`. Raises LoweringError (PQ202) where they would enlarge the value."""
    if np.broadcast_shapes(shape, scale.shape, bias.shape) != shape:
        raise node.refuse("PQ202", f"{node.proto.op_type} makes its input larger by broadcasting", "expand the input before")
    scale, bias = np.broadcast_to(scale, shape), np.broadcast_to(bias, shape)
    return Affine(name=node.name + suffix, inputs=(source,), output=output, shape=shape, scale=scale, bias=bias)


def _by_constants(node: Node, data: int, scale: Array, bias: Array) -> list[Op]:
    """x * scale + bias; where the constants have more elements, x is copied first."""
    source, before = node.inputs[data], node.shape(data)
    try:
        shape = np.broadcast_shapes(before, scale.shape, bias.shape)
    except ValueError:
        shape = ()
    if shape == before or len(shape) != len(before):
        return [affine(node, source, node.output, before, scale, bias)]
    copied = _copied(node, source, before, shape, "/copies")
    return [copied, affine(node, copied.output, node.output, shape, scale, bias)]


def _copied(node: Node, source: str, before: Shape, shape: Shape, part: str) -> Copy:
    index = np.broadcast_to(np.arange(int(np.prod(before))).reshape(before), shape).reshape(-1)
    return Copy(name=f"{node.name}{part}", inputs=(source,), output=f"{node.output}{part}", shape=shape, index=index)


def _merge(node: Node, operation: Literal["add", "subtract", "multiply", "maximum", "minimum"]) -> list[Op]:
    """Two values; what is missing in one of them by broadcasting is copied to all of its places."""
    shapes, inputs, ops = (node.shape(0), node.shape(1)), list(node.inputs[:2]), list[Op]()
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError:
        shape = ()
    if len(shapes[0]) != len(shapes[1]) or not shape:  # with the batch in front, a missing axis would be another one
        raise node.refuse("PQ202", f"{node.proto.op_type} of {shapes[0]} and {shapes[1]}", "give both operands the same axes")
    for at in (0, 1):
        if shapes[at] != shape:
            ops.append(_copied(node, inputs[at], shapes[at], shape, f"/copies{at or ''}"))
            inputs[at] = ops[-1].output
    return [*ops, Merge(name=node.name, inputs=(inputs[0], inputs[1]), output=node.output, shape=shape, operation=operation)]


def _add(node: Node) -> list[Op]:
    for constant, data in ((1, 0), (0, 1)):
        if node.is_constant(constant):
            bias = node.sample(constant, "operand")
            return _by_constants(node, data, _ONE, bias)
    return _merge(node, "add")


def _sub(node: Node) -> list[Op]:
    if node.is_constant(1):
        return _by_constants(node, 0, _ONE, -node.sample(1, "operand"))
    if node.is_constant(0):
        return _by_constants(node, 1, -_ONE, node.sample(0, "operand"))
    return _merge(node, "subtract")


def _mul(node: Node) -> list[Op]:
    for constant, data in ((1, 0), (0, 1)):
        if node.is_constant(constant):
            scale = node.sample(constant, "operand")
            return _by_constants(node, data, scale, _ZERO)
    return _merge(node, "multiply")


def _div(node: Node) -> list[Op]:
    divisor = node.sample(1, "divisor")
    if not (np.frexp(np.abs(divisor))[0] == 0.5).all():
        raise node.refuse("PQ202", "division by a number that is no power of two", "multiply by a quantized reciprocal instead")
    return [affine(node, node.inputs[0], node.output, node.shape(0), 1 / divisor, _ZERO)]


def _neg(node: Node) -> list[Op]:
    return [affine(node, node.inputs[0], node.output, node.shape(0), -_ONE, _ZERO)]


def _extreme(node: Node) -> list[Op]:
    """Max and Min; with a number as operand through ReLU: max(x, c) = relu(x - c) + c."""
    if len(node.inputs) != 2:
        raise node.refuse("PQ202", f"{node.proto.op_type} of {len(node.inputs)} values", "write it with two operands at a time")
    maximum = node.proto.op_type == "Max"
    for constant, data in ((1, 0), (0, 1)):
        if node.is_constant(constant):
            bound = node.sample(constant, "operand")
            return _bounded(node, node.inputs[data], node.shape(data), bound if maximum else None, None if maximum else bound)
    return _merge(node, "maximum" if maximum else "minimum")


def _clip(node: Node) -> list[Op]:
    low = node.sample(1, "low") if node.has(1) else None
    high = node.sample(2, "high") if node.has(2) else None
    shape = node.shape(0)
    if low is not None and high is not None and (low >= high).all():
        return [affine(node, node.inputs[0], node.output, shape, _ZERO, high)]
    return _bounded(node, node.inputs[0], shape, low, high)


def _bounded(node: Node, source: str, shape: Shape, low: Array | None, high: Array | None) -> list[Op]:
    """min(max(x, low), high) by two ReLUs: relu(x - low) + low, then high - relu(high - y). Exact: constants only move the zero."""
    ops: list[Op] = []

    def step(scale: Array, bias: Array) -> None:
        if (scale == 1).all() and (bias == 0).all():
            return
        name = f"{node.output}/step{len(ops)}"
        ops.append(affine(node, ops[-1].output if ops else source, name, shape, scale, bias, f"/step{len(ops)}"))

    def relu() -> None:
        name = f"{node.output}/step{len(ops)}"
        last = ops[-1].output if ops else source
        ops.append(Relu(name=f"{node.name}/step{len(ops)}", inputs=(last,), output=name, shape=shape))

    if low is not None:
        step(_ONE, -low)
        relu()
        step(_ONE, low)
    if high is not None:
        step(-_ONE, high)
        relu()
        step(-_ONE, high)
    return [*ops, view(node, ops[-1].output if ops else source, shape, np.arange(int(np.prod(shape))), shape)]


def _relu(node: Node) -> list[Op]:
    return [Relu(name=node.name, inputs=(node.inputs[0],), output=node.output, shape=node.shape(0))]


def _leaky_relu(node: Node) -> list[Op]:
    return _sloped(node, np.full((), float(node.attribute("alpha", 0.01))))


def _prelu(node: Node) -> list[Op]:
    return _sloped(node, node.sample(1, "slope"))


def _sloped(node: Node, slope: Array) -> list[Op]:
    """max(x, slope x) where all slopes lie between 0 and 1; else relu(x) - slope relu(-x)."""
    x, shape, out = node.inputs[0], node.shape(0), node.output
    if ((slope >= 0) & (slope <= 1)).all():
        scaled = affine(node, x, f"{out}/scaled", shape, slope, _ZERO, "/scaled")
        return [scaled, Merge(name=node.name, inputs=(x, scaled.output), output=out, shape=shape, operation="maximum")]
    above = Relu(name=f"{node.name}/above", inputs=(x,), output=f"{out}/above", shape=shape)
    negative = affine(node, x, f"{out}/negative", shape, -_ONE, _ZERO, "/negative")
    below = Relu(name=f"{node.name}/below", inputs=(negative.output,), output=f"{out}/below", shape=shape)
    scaled = affine(node, below.output, f"{out}/scaled", shape, -slope, _ZERO, "/scaled")
    merged = Merge(name=node.name, inputs=(above.output, scaled.output), output=out, shape=shape, operation="add")
    return [above, negative, below, scaled, merged]


ELEMENT_READERS: dict[str, Reader] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Max": _extreme,
    "Min": _extreme,
    "Clip": _clip,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
}
