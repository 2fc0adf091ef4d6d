"""Names and shapes that the ONNX files carry over from the graph: module paths for tensors, forward's own names outside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.info import info, place
from pquant_fx.graph.rewriter import OWN

__all__ = ["containers", "input_name", "node_name", "output_names", "parameter_name", "sample_shapes"]


def containers(gm: GraphModule) -> frozenset[str]:
    """Module paths whose children appear in the graph: a node that carries such a path was called in that module's forward."""
    paths = {info(node).path for node in gm.graph.nodes}
    return frozenset(path[:at] for path in paths for at, letter in enumerate(path) if letter == ".")


def node_name(node: Node, inside: frozenset[str]) -> str:
    """`conv1` for the call of a module, `layer1.0.add_1` for a function called in a container's forward, `add_1` at the top.

    inside: the `containers` of the graph. Quantizers go by the name of what they quantize.
    """
    if node.op == "call_module":
        return _own_name(str(node.target))
    record = info(node)
    site = f"@{record.site}" if record.site > 1 else ""
    if not record.path:
        return node.name
    return f"{record.path}{site}.{node.name}" if record.path in inside else f"{record.path}{site}"


def parameter_name(node: Node) -> str:
    """The state-dict name of the parameter that `node` (a parameter value) comes from."""
    current = node
    while current.op != "get_attr" and current.all_input_nodes:
        current = current.all_input_nodes[0]
    if current.op != "get_attr":
        return node.name
    target = str(current.target)
    return _own_name(target).removesuffix(".value") if target.startswith(f"{OWN}.") else target


def input_name(node: Node) -> str:
    """The name of forward's argument."""
    return str(node.target).lstrip("*")


def output_names(output: Node) -> list[tuple[str, Node]]:
    """(name, value) of everything that forward returns, in order.

    Keys of a dict, fields of a NamedTuple, else `output` or `output_0`, `output_1`; nested names are joined by `_`.
    Raises LoweringError (PQ202) for a result that is no tensor.
    """
    result = output.args[0]
    plain = isinstance(result, tuple | list) and not hasattr(result, "_fields")
    found = list(_flatten(result, "output" if plain or isinstance(result, Node) else ""))
    wrong = [name for name, value in found if not isinstance(value, Node)]
    if wrong or not found:
        what = f"the result '{wrong[0]}' is no tensor" if wrong else "forward returns no tensor"
        raise LoweringError(Problem("PQ202", what, "return tensors only, alone or in tuples and dicts", place(output)))
    return found


def sample_shapes(gm: GraphModule, constants: Mapping[Node, Tensor], batch: int) -> dict[Node, tuple[int, ...]]:
    """Shape of every value for a batch of that size, without computing one.

    Raises LoweringError (PQ409) when an input's shape is unknown.
    """
    values: dict[Node, Any] = {}
    live = live_nodes(gm)
    for node in gm.graph.nodes:
        if node not in live:
            continue
        if node in constants:
            values[node] = torch.empty(constants[node].shape, device="meta")
        elif node.op == "placeholder":
            shape = info(node).shape
            if shape is None:
                raise LoweringError(Problem("PQ409", "the shape of this input is not known", "compile with example inputs", place(node)))
            values[node] = torch.empty((batch, *shape[1:]), device="meta")
        elif node.op == "call_module":
            values[node] = values[node.args[0]]
        elif node.op == "call_function":
            args = map_arg(node.args, lambda n: values[n])
            values[node] = node.target(*args)
    return {node: tuple(value.shape) for node, value in values.items()}


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    prefix = f"{name}_" if name else ""
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}{key}")
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", range(len(value)))
        for field, item in zip(fields, value):
            yield from _flatten(item, f"{prefix}{field}")
    else:
        yield name or "output", value


def _own_name(target: str) -> str:
    """The path of a module of ours as the user would write it: no reserved child, `layers.0` instead of `layers._0`."""
    return re.sub(r"(^|\.)_(?=\d)", r"\1", target.removeprefix(f"{OWN}."))
