"""What can be said about values from the structure of the graph alone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Op, Quantizer, is_parameter_value, module_of, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.power_of_two import PowerOfTwo

__all__ = [
    "channel_axis",
    "data_operands",
    "is_data_quantizer",
    "is_join",
    "is_power_of_two",
    "is_whole",
    "multiplies_parameter",
    "non_negative",
    "origin_of",
    "output_of",
    "quantized_source",
    "result_of",
    "static_range",
]


def output_of(gm: GraphModule) -> Node:
    """The output node, of which `verify` allows exactly one."""
    return next(n for n in gm.graph.nodes if n.op == "output")


def data_operands(node: Node) -> list[Node]:
    """The data values that an operator of the dialect combines: no weights, biases or other constants."""
    op = op_of(node)
    if op is None:
        return []
    given = node.args[0] if op.data < 0 else node.args[: op.data]
    assert isinstance(given, tuple | list)
    return [a for a in given if isinstance(a, Node) and not is_parameter_value(a)]


def is_data_quantizer(node: Node) -> bool:
    """Whether `node` quantizes data rather than a parameter."""
    gm = node.graph.owning_module
    return gm is not None and isinstance(module_of(gm, node), Quantizer) and not is_parameter_value(node)


def is_join(node: Node) -> bool:
    """Whether `node` brings two or more data values together on one grid: add, sub, maximum, minimum, cat."""
    op = op_of(node)
    return op is not None and op.name in _JOINS and len(data_operands(node)) > 1


def channel_axis(node: Node) -> int:
    """Which axis of a data value counts channels, batch included: 1 around convolutions and pools, the last around Linear and matmul.

    What makes the value decides, then what takes it; 1 where neither says it.
    """
    shape = info(node).shape
    rank = len(shape) if shape is not None else 2
    if rank == 2:
        return 1
    made = _nearest_channels(node, rank, lambda n: n.all_input_nodes)
    return next((axis for axis in (made, _nearest_channels(node, rank, lambda n: list(n.users))) if axis is not None), 1)


def _nearest_channels(node: Node, rank: int, neighbours: Callable[[Node], list[Node]]) -> int | None:
    stack, seen = [node], set[Node]()
    while stack:
        current = stack.pop(0)
        op, shape = op_of(current), info(current).shape
        if current in seen or shape is None or len(shape) != rank or is_parameter_value(current):
            continue
        seen.add(current)
        if op is not None and op.name in ("linear", "matmul", "embed"):
            return rank - 1
        if op is not None and op.name.startswith(("conv", "max_pool", "avg_pool", "scaled_pool", "upsample")):
            return 1
        if op is None or op.name not in ("reshape", "permute"):
            stack.extend(neighbours(current))
    return None


def is_power_of_two(node: Any) -> bool:
    """Whether `node` is a learned power of two, which no quantizer has to round."""
    gm = node.graph.owning_module if isinstance(node, Node) else None
    return gm is not None and isinstance(module_of(gm, node), PowerOfTwo)


def result_of(node: Node) -> Node:
    """The value to quantize where an operator's own is adjusted first: by batch statistics, by a learned power of two."""
    users = list(node.users)
    while len(users) == 1 and origin_of(users[0]) is not users[0]:
        node, users = users[0], list(users[0].users)
    return node


def origin_of(node: Node) -> Node:
    """The operator whose result `node` adjusts: a BatchCorrection or the product with a learned power of two; else `node` itself."""
    gm = node.graph.owning_module
    adjusts = any(is_power_of_two(a) for a in node.args[:2]) if node.target is operator.mul else False
    if gm is not None and (adjusts or isinstance(module_of(gm, node), BatchCorrection)) and isinstance(node.args[0], Node):
        return origin_of(node.args[0])
    return node


def static_range(node: Node) -> tuple[float, float] | None:
    """What the value can not leave, by the operator that makes it (ReLU6, hard tanh, a bounded table); None for the others."""
    op = op_of(node)
    if op is None or op.name != "hardtanh":
        return op.bounds if op is not None else None
    _, low, high = node.args
    return (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else None


def is_whole(node: Node) -> bool:
    """Whether `node` moves or selects values whose formats it keeps (not: one of several parts that an opaque call returned)."""
    op = op_of(node)
    part = node.target is operator.getitem and not isinstance(node.args[1], tuple)
    return op is not None and op.kind == "grid" and not part


def multiplies_parameter(node: Node) -> bool:
    """Whether `node` multiplies data with a parameter of its own, of two axes: what a layer does, also where it is written out."""
    op = op_of(node)
    if op is None or op.name != "matmul":
        return op is not None and op.kind == "weighted"
    constant = [a for a in node.args if isinstance(a, Node) and is_parameter_value(a)]
    return len(constant) == 1 and _rank(constant[0]) == 2


def _rank(node: Node) -> int | None:
    """How many axes a value has; a mask or a quantizer that a pass has just made gives what it takes."""
    while info(node).shape is None and node.op == "call_module" and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    shape = info(node).shape
    return None if shape is None else len(shape)


def non_negative(node: Node, known: dict[Node, bool] | None = None) -> bool:
    """Whether the value is >= 0 by construction: ReLU and what keeps its sign. Data alone never proves it.

    known: earlier answers on this graph, read and added to; without them every question walks back to the inputs, and
    asking for all values costs the square of the depth. Inserting data quantizers changes no answer.
    """

    def judged(current: Node) -> bool | None:
        op = op_of(current)
        if op is None:
            return None if is_data_quantizer(current) else False
        bounds = static_range(current)
        if bounds is not None and bounds[0] >= 0:
            return True
        return False if op.non_negative is None and _negative_constant(current, op) else op.non_negative

    return _holds(node, judged, {} if known is None else known)


def quantized_source(node: Node) -> bool:
    """Whether the value is a data quantizer's output, or such values moved and selected without arithmetic."""

    def judged(current: Node) -> bool | None:
        op = op_of(current)
        if op is None:
            return is_data_quantizer(current)
        return None if op.kind == "grid" else op.kind == "embedding"

    return _holds(node, judged, {})


def _holds(node: Node, judged: Callable[[Node], bool | None], known: dict[Node, bool]) -> bool:
    """Whether a property holds: proven or refuted at a node by `judged`, which answers None to ask the values it takes.

    The answers that this gives go into `known`.
    """
    stack, seen = [node], set[Node]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        verdict = known[current] if current in known else judged(current)
        if verdict is False:
            known[node] = False
            return False
        if verdict is None:
            stack.extend(data_operands(current) if op_of(current) is not None else current.all_input_nodes)
    known.update(dict.fromkeys(seen, True))
    return True


def _negative_constant(node: Node, op: Op) -> bool:
    """Whether a constant operand could make the result negative."""
    if op.kind != "arithmetic":
        return False
    constants = [a for a in node.args[: op.data] if not isinstance(a, Node) or is_parameter_value(a)]
    return any(c < 0 if isinstance(c, int | float) else isinstance(c, Node) and not is_power_of_two(c) for c in constants)


_JOINS = ("add", "sub", "maximum", "minimum", "cat")
