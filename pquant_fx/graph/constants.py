"""Parameter values of a graph as a frozen circuit sees them: evaluated in eval, without gradients."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pquant_fx.errors import LoweringError, PQuantError
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Mask, Quantizer, attribute_at, module_of, op_of
from pquant_fx.graph.info import place

__all__ = ["circuit_inputs", "computes", "constant_values", "evaluating", "live_nodes", "readers", "value_given"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval, and back in its own mode afterwards."""
    modes = {m: m.training for m in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def circuit_inputs(gm: GraphModule, node: Node) -> list[Node]:
    """The nodes that `node` depends on in evaluation, where a BatchCorrection hands its first operand on."""
    if isinstance(module_of(gm, node), BatchCorrection):
        return [a for a in node.args[:1] if isinstance(a, Node)]
    return node.all_input_nodes


def readers(gm: GraphModule, node: Node, live: Container[Node]) -> list[Node]:
    """Who reads `node` in evaluation, among the `live` nodes."""
    return [user for user in node.users if user in live and node in circuit_inputs(gm, user)]


def live_nodes(gm: GraphModule) -> set[Node]:
    """Nodes that an output depends on in evaluation, and the placeholders."""
    live = {n for n in gm.graph.nodes if n.op in ("placeholder", "output")}
    for node in reversed(gm.graph.nodes):
        if node in live:
            live.update(circuit_inputs(gm, node))
    return live


def computes(gm: GraphModule, node: Node) -> bool:
    """Whether the circuit computes `node` or returns it: an operator of the dialect, a module of ours, the output.

    What is opaque is refused itself; how exact its constants are is then no question.
    """
    if node.op == "call_module":
        return isinstance(module_of(gm, node), Quantizer | Mask | BatchCorrection)
    return node.op == "output" or op_of(node) is not None


def constant_values(gm: GraphModule) -> dict[Node, Any]:
    """The value of every live node that depends on parameters and buffers only, in graph order, computed in evaluation.

    Raises LoweringError, with the place of the node, for what a module of ours refuses (a format that was never set).
    """
    values: dict[Node, Any] = {}
    live = live_nodes(gm)
    with torch.no_grad(), evaluating(gm):
        for node in gm.graph.nodes:
            if node in live and _is_constant(gm, node, values):
                values[node] = _checked_value(gm, node, values)
    return values


def value_given(gm: GraphModule, node: Node, given: Mapping[Node, Tensor]) -> Tensor:
    """The value of a node that depends on parameters and buffers only, in evaluation, if some nodes had the `given` values."""
    if node in given:
        return given[node]
    inputs = {n: value_given(gm, n, given) for n in circuit_inputs(gm, node)}
    with torch.no_grad(), evaluating(module_of(gm, node) or nn.Identity()):
        found: Tensor = _value(gm, node, inputs)
    return found


def _is_constant(gm: GraphModule, node: Node, values: dict[Node, Any]) -> bool:
    if node.op in ("placeholder", "output"):
        return False
    return all(used in values for used in circuit_inputs(gm, node))


def _checked_value(gm: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    try:
        return _value(gm, node, values)
    except PQuantError as error:
        raise LoweringError([replace(p, place=place(node)) for p in error.problems]) from error


def _value(gm: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    if node.op == "get_attr":
        found = attribute_at(gm, str(node.target))
        return found.detach() if isinstance(found, Tensor) else found
    args = map_arg(node.args, lambda n: values.get(n))
    kwargs = map_arg(node.kwargs, lambda n: values.get(n))
    if node.op == "call_function" and callable(node.target):
        return node.target(*args, **kwargs)
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args, **kwargs)
    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
