"""Masks and quantizers of parameters, those of all layers at once: weights and biases are small, and a call costs more than they do.

    q1(m1(W1)), q2(m2(W2)), ...   ->   (M1, M2, ...) = together((m1, m2, ...), (W1, W2, ...));   together((q1, q2, ...), (M1, M2, ...))

Modules of one class form a group when the class says how they are computed together (`Quantizer.together`, `Mask.together`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from pquant_fx.graph.dialect import Mask, Quantizer, attribute_at, module_of

__all__ = ["definer", "groups_of", "together"]


def groups_of(gm: GraphModule, graph: Graph) -> Mapping[Node, Sequence[Node]]:
    """The nodes of a graph over the tree of `gm` that are computed together with each, itself among them, in the order of the graph.

    A group's inputs are parameters and members of other groups that do not depend on it: it can be computed at any time.
    """
    depths: dict[Node, int] = {}
    groups: dict[tuple[type, int], list[Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and isinstance(attribute_at(gm, str(node.target)), nn.Parameter):
            depths[node] = 0
        elif (kind := _kind(module_of(gm, node))) is not None and len(node.args) == 1 and node.args[0] in depths and not node.kwargs:
            depths[node] = depths[node.args[0]] + 1
            groups.setdefault((kind, depths[node]), []).append(node)
    return {node: members for members in groups.values() for node in members if len(members) > 1}


def together(modules: Sequence[Any], values: Sequence[Tensor]) -> Sequence[Tensor]:
    """What each module gives for its value; modules of one class. One by one where hooks of the user want to see them."""
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules):
        return [module(value) for module, value in zip(modules, values)]
    return cast(Sequence[Tensor], type(modules[0]).together(modules, values))


def definer(module: nn.Module, method: str) -> type:
    """The class that a method of a module comes from."""
    return next(c for c in type(module).__mro__ if method in vars(c))


def _kind(module: nn.Module | None) -> type | None:
    """The class of a module that can be computed with others; a forward of the user's own says more than what it inherits."""
    if not isinstance(module, Mask | Quantizer) or definer(module, "together") in (Mask, Quantizer):
        return None
    return type(module) if issubclass(definer(module, "together"), definer(module, "forward")) else None
