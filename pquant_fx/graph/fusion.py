"""How a graph is run fast: the same modules and parameters, the same numbers, fewer passes over memory.

    q(relu(x))                          an unsigned saturating format clips at 0 by itself
    q(relu(correction(y) + shortcut))   what BatchCorrection gives is overwritten, and computed again for the gradient; with or
                                        without the ReLU and the join

    q(mask(W)), of all layers           one call a kind of mask or quantizer: see `together`

Statistics that nobody collects are left out. The graph that passes, reports and targets see stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.copies import adopt_tree
from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.together import definer, groups_of, together

__all__ = ["corrected", "fused", "rectified", "statistics_of"]


def fused(gm: GraphModule) -> GraphModule:
    """A second GraphModule over the very tree of `gm` that computes the same in training and in evaluation, as long as no
    `statistics_of` it begins or stops to collect."""
    graph = _without_idle(gm)
    chains = {node: match for node in graph.nodes if (match := _match(gm, node))}
    running = _Running(chains, groups_of(gm, graph))
    inside = {skipped for match in chains.values() for skipped in match}
    for node in graph.nodes:
        if node not in inside:
            running.add(node)
    made = GraphModule(gm, running.graph)
    adopt_tree(made, gm)
    made.training = gm.training
    return made


class _Running:
    """The graph that is run, as it grows; `values`: what stands in it for each node of the other."""

    def __init__(self, chains: Mapping[Node, Sequence[Node]], groups: Mapping[Node, Sequence[Node]]) -> None:
        self._chains, self._groups = chains, groups
        self.graph = Graph()
        self.values: dict[Node, Node] = {}

    def add(self, node: Node) -> Node:
        """Compute the node, with what runs together with it, unless that was done; returns what stands for it."""
        if node not in self.values:
            if node in self._groups:
                self._add_group(self._groups[node])
            elif node in self._chains:
                self.values[node] = self._chain(node, self._chains[node])
            else:
                self.values[node] = self.graph.node_copy(node, self.add)
        return self.values[node]

    def _add_group(self, members: Sequence[Node]) -> None:
        inputs = tuple(self.add(n.all_input_nodes[0]) for n in members)
        modules = tuple(self.graph.get_attr(str(n.target)) for n in members)
        results = self.graph.call_function(together, (modules, inputs))
        for index, node in enumerate(members):
            self.values[node] = self.graph.call_function(operator.getitem, (results, index))

    def _chain(self, quantized: Node, chain: Sequence[Node]) -> Node:
        first, called = chain[-1], [n.target for n in chain]
        inputs = [self.add(arg) if isinstance(arg, Node) else arg for arg in first.args]
        if first.op != "call_module":
            return self.graph.call_function(rectified, (self.graph.get_attr(str(quantized.target)), *inputs))
        quantizer, correction = (self.graph.get_attr(str(n.target)) for n in (quantized, first))
        others = (arg for n in chain if n.target is operator.add for arg in n.all_input_nodes if arg is not first)
        added = next((self.add(arg) for arg in others), None)
        return self.graph.call_function(corrected, (quantizer, correction, F.relu in called, added, *inputs))


def statistics_of(gm: GraphModule) -> list[ActivationStatistics]:
    """The nodes that measure activations, whether they collect now or not."""
    found = [module_of(gm, n) for n in gm.graph.nodes if n.op == "call_module"]
    return [m for m in found if isinstance(m, ActivationStatistics)]


def _without_idle(gm: GraphModule) -> Graph:
    """A copy of the graph, without the nodes that hand on their input and do nothing else."""
    graph = Graph()
    values: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        module, source = module_of(gm, node), node.args[0] if node.args else None
        idle = isinstance(module, ActivationStatistics) and not module.is_collecting
        values[node] = values[source] if idle and isinstance(source, Node) else graph.node_copy(node, values.__getitem__)
    return graph


def _match(gm: GraphModule, quantized: Node) -> list[Node]:
    """The nodes before a quantizer that are run together with it, the nearest first: [relu], or [relu?, add?, correction]."""
    quantizer = module_of(gm, quantized)
    if not isinstance(quantizer, Quantizer) or not issubclass(definer(quantizer, "pointwise"), definer(quantizer, "forward")):
        return []  # a forward of the user's own says more than the `pointwise` that it inherits
    chain: list[Node] = []
    source = quantized.args[0]
    if isinstance(source, Node) and source.target is F.relu and len(source.users) == 1:
        chain.append(source)
        source = source.args[0]
    if _is_correction(source, gm):
        return [*chain, source]
    if isinstance(source, Node) and source.target is operator.add and len(source.users) == 1 and len(source.all_input_nodes) == 2:
        return next(([*chain, source, n] for n in source.all_input_nodes if _is_correction(n, gm)), chain)
    return chain


def _is_correction(node: Any, gm: GraphModule) -> TypeGuard[Node]:
    """Whether it is a BatchCorrection that may run later: nothing else reads its result, or its statistics after it."""
    if not isinstance(node, Node) or len(node.users) > 1 or not isinstance(module_of(gm, node), BatchCorrection):
        return False
    statistics = {arg.target for arg in node.args[1:4] if isinstance(arg, Node)}
    return all(n < node for n in node.graph.find_nodes(op="get_attr") if n.target in statistics)


def rectified(quantizer: Quantizer, x: Tensor) -> Tensor:
    """q(relu(x))."""
    whole = quantizer.pointwise(x, rectify=True)
    result: Tensor = quantizer(F.relu(x)) if whole is None else whole(x)
    return result


def corrected(quantizer: Quantizer, correction: BatchCorrection, rectify: bool, added: Tensor | None, y: Tensor, *args: Any) -> Tensor:
    """q(correction(y, *args) + added), with a ReLU between them where asked for."""
    whole = quantizer.pointwise(y, rectify)
    alike = added is None or (added.shape, added.dtype) == (y.shape, y.dtype)
    if whole is not None and alike and not correction._forward_hooks:
        return correction(y, *args, added=added, then=whole)
    x: Tensor = correction(y, *args)
    x = x if added is None else x + added
    return quantizer(F.relu(x) if rectify else x)
