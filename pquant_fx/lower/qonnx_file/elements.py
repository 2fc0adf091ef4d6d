"""Operators that work element by element, and tables."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.fx import Node as FxNode
from torch.nn import functional as F

from pquant_fx.graph.tables import lookup
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Draft
from pquant_fx.lower.qonnx_file.quantizers import half_of_the_next_floor

__all__ = ["ELEMENT_READERS"]

Nodes = Mapping[str, Node]
Read = Callable[[Draft, Node, Nodes], None]
_REALS, _INTEGERS = (1, 10, 11, 16), (6, 7)  # TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16; INT32, INT64


def _binary(function: Callable[..., Any]) -> Read:
    def read(d: Draft, node: Node, nodes: Nodes) -> None:
        operands = [d.operand(node, n) for n in range(len(node.inputs))]
        if len(operands) != 2:
            raise node.refuse("PQ202", f"{node.proto.op_type} of {len(operands)} values", "write it with two operands at a time")
        if function in (torch.maximum, torch.minimum):
            operands = [d.parameter(t) if t in d.constants else d.values[t] for t in node.inputs]
        d.call(node, function, *operands)

    return read


def _add(d: Draft, node: Node, nodes: Nodes) -> None:
    """The sum of a product without bias and a constant of its own shape is that layer's bias."""
    for constant, data in ((1, 0), (0, 1)):
        tensor = node.inputs[data]
        if not node.is_constant(constant) or half_of_the_next_floor(d, node, node.inputs[constant], nodes):
            continue
        product, shape = d.single(tensor), np.shape(node.constants[node.inputs[constant]])
        if product is not None and product.target is F.linear and product.args[2] is None and shape == (d.shape(product)[-1],):
            x, weight, _ = product.args
            d.call(node, F.linear, x, weight, d.parameter(node.inputs[constant]))
            return
    _binary(operator.add)(d, node, nodes)


def _unary(function: Callable[..., Any], *attributes: tuple[str, float]) -> Read:
    def read(d: Draft, node: Node, nodes: Nodes) -> None:
        d.call(node, function, d.values[node.inputs[0]], *(float(node.attribute(name, default)) for name, default in attributes))

    return read


def _div(d: Draft, node: Node, nodes: Nodes) -> None:
    divisor = node.reals(1, "divisor")
    if not (np.frexp(np.abs(divisor))[0] == 0.5).all():
        raise node.refuse("PQ202", "division by a number that is no power of two", "multiply by a quantized reciprocal instead")
    d.call(node, operator.truediv, d.values[node.inputs[0]], d.operand(node, 1))


def _clip(d: Draft, node: Node, nodes: Nodes) -> None:
    """Clip between two numbers; a quantizer of zero width, which `to_qonnx` writes so, is one again."""
    low, high = (_bound(node, position, name) for position, name in ((1, "min"), (2, "max")))
    x = d.values[node.inputs[0]]
    if low is None or high is None:
        if low == 0.0:
            d.call(node, F.relu, x)
        elif low is None and high is None:
            d.alias(node)
        else:
            function, bound = (torch.maximum, low) if high is None else (torch.minimum, high)
            d.call(node, function, x, d.made(node, "bound", np.full((1,) * (len(node.shape(0)) + 1), bound)))
        return
    if low >= high == 0.0:
        d.nothing(node, x)
    else:
        d.call(node, F.hardtanh, x, low, high)


def _bound(node: Node, position: int, name: str) -> float | None:
    """A limit of a Clip: an input since opset 11, an attribute before."""
    if not node.has(position):
        given = node.attribute(name)
        return None if given is None else float(given)
    value = node.reals(position, name)
    if value.size != 1:
        raise node.refuse("PQ202", f"Clip with a limit of shape {value.shape}", "use one number")
    return float(value.reshape(()))


def _prelu(d: Draft, node: Node, nodes: Nodes) -> None:
    """Slopes of shape (), (1,) or one a channel, as (C, 1, 1) in a file."""
    slope = node.reals(1, "slope")
    channels = node.shape(0)[0]
    if slope.size not in (1, channels) or (slope.size > 1 and slope.ndim and slope.shape[-len(node.shape(0))] != channels):
        raise node.refuse("PQ202", f"PRelu with slopes of shape {slope.shape}", "use one slope, or one a channel")
    d.call(node, F.prelu, d.values[node.inputs[0]], d.parameter(node.inputs[1], lambda a: a.reshape(-1)))


def _cast(d: Draft, node: Node, nodes: Nodes) -> None:
    """A Cast to an integer is taken for the index of a table: `Gather` looks at what is in front of it."""
    if int(node.attribute("to", 0)) not in (*_REALS, *_INTEGERS):
        raise node.refuse(
            "PQ202", f"Cast to the element type {node.attribute('to', 0)}", "cast to float, or to int64 for the index of a Gather"
        )
    if int(node.attribute("to", 0)) in _INTEGERS:
        after = nodes.get(node.output) or next((n for n in nodes.values() if node.output in n.inputs), None)
        if after is None or after.proto.op_type != "Gather":
            raise node.refuse("PQ202", "Cast to an integer that is no index of a table", "round with a Quant node")
    d.alias(node)


def table(d: Draft, node: Node) -> None:
    """Gather(entries, Cast(x 2^f - first)) -> lookup(x, entries, f, first)."""
    entries = node.reals(0, "table")
    if entries.ndim != 1 or int(node.attribute("axis", 0)) != 0 or not entries.size:
        raise node.refuse("PQ202", f"Gather from a table of shape {entries.shape}", "gather from one row of numbers")
    x, f, first = d.values[node.inputs[1]], 0, 0
    while isinstance(x, FxNode) and x.target in (operator.sub, operator.mul) and isinstance(x.args[1], float):
        number = x.args[1]
        if x.target is operator.sub and number == int(number) and f == 0:
            first += int(number)
        elif x.target is operator.mul and np.frexp(number)[0] == 0.5:
            f += int(np.frexp(number)[1]) - 1
        else:
            break
        x = x.args[0]  # type: ignore[assignment]
    d.call(node, lookup, x, d.parameter(node.inputs[0]), f, first)


ELEMENT_READERS: dict[str, Read] = {
    "Add": _add,
    "Sub": _binary(operator.sub),
    "Mul": _binary(operator.mul),
    "Div": _div,
    "Neg": _unary(operator.neg),
    "Max": _binary(torch.maximum),
    "Min": _binary(torch.minimum),
    "Clip": _clip,
    "Relu": _unary(F.relu),
    "LeakyRelu": _unary(F.leaky_relu, ("alpha", 0.01)),
    "PRelu": _prelu,
    "Cast": _cast,
    "Tanh": _unary(torch.tanh),
    "Sigmoid": _unary(torch.sigmoid),
    "Elu": _unary(F.elu, ("alpha", 1.0)),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Exp": _unary(torch.exp),
    "Erf": _unary(torch.erf),
    "HardSwish": _unary(F.hardswish),
}
"""Functions that are no polynomials become tables when a quantizer stands in front of them and one behind."""
