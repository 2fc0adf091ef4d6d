"""What can be said about values from the structure of the graph alone."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import GraphModule, Node

from pquant_fx.graph.dialect import Op, Quantizer, is_parameter_value, module_of, op_of

__all__ = ["data_operands", "is_data_quantizer", "is_join", "non_negative", "output_of", "quantized_source"]


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


def non_negative(node: Node, known: dict[Node, bool] | None = None) -> bool:
    """Whether the value is >= 0 by construction: ReLU and what keeps its sign. Data alone never proves it.

    known: earlier answers on this graph, read and added to; without them every question walks back to the inputs, and
    asking for all values costs the square of the depth. Inserting data quantizers changes no answer.
    """

    def judged(current: Node) -> bool | None:
        op = op_of(current)
        if op is None:
            return None if is_data_quantizer(current) else False
        return False if op.non_negative is None and _negative_constant(current, op) else op.non_negative

    return _holds(node, judged, {} if known is None else known)


def quantized_source(node: Node) -> bool:
    """Whether the value is a data quantizer's output, or such values moved and selected without arithmetic."""

    def judged(current: Node) -> bool | None:
        op = op_of(current)
        if op is None:
            return is_data_quantizer(current)
        return None if op.kind == "grid" else False

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
    return any(isinstance(c, Node) or (isinstance(c, int | float) and c < 0) for c in constants)


_JOINS = ("add", "sub", "maximum", "minimum", "cat")
