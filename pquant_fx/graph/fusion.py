"""How a graph is run fast: the same modules and parameters, the same numbers, fewer passes over memory.

    q(relu(x))                          an unsigned saturating format clips at 0 by itself
    q(relu(correction(y) + shortcut))   what BatchCorrection gives is overwritten, and computed again for the gradient; with or
                                        without the ReLU and the join

Statistics that nobody collects are left out. The graph that passes, reports and targets see stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.copies import adopt_tree
from pquant_fx.graph.dialect import Quantizer, module_of

__all__ = ["corrected", "fused", "rectified", "statistics_of"]


def fused(gm: GraphModule) -> GraphModule:
    """A second GraphModule over the very tree of `gm` that computes the same in training and in evaluation, as long as no
    `statistics_of` it begins or stops to collect."""
    gm = _without_idle(gm)
    graph = Graph()
    values: dict[Node, Node] = {}
    found = {node: match for node in gm.graph.nodes if (match := _match(gm, node))}
    inside = {skipped for match in found.values() for skipped in match}
    for node in gm.graph.nodes:
        if node in inside:
            continue
        if node not in found:
            values[node] = graph.node_copy(node, values.__getitem__)
            continue
        chain = found[node]
        first, called = chain[-1], [n.target for n in chain]
        inputs = [values[arg] if isinstance(arg, Node) else arg for arg in first.args]
        if first.op != "call_module":
            values[node] = graph.call_function(rectified, (graph.get_attr(str(node.target)), *inputs))
            continue
        quantizer, correction = (graph.get_attr(str(n.target)) for n in (node, first))
        added = next((values[arg] for n in chain if n.target is operator.add for arg in n.all_input_nodes if arg is not first), None)
        values[node] = graph.call_function(corrected, (quantizer, correction, F.relu in called, added, *inputs))
    made = GraphModule(gm, graph)
    adopt_tree(made, gm)
    made.training = gm.training
    return made


def statistics_of(gm: GraphModule) -> list[ActivationStatistics]:
    """The nodes that measure activations, whether they collect now or not."""
    found = [module_of(gm, n) for n in gm.graph.nodes if n.op == "call_module"]
    return [m for m in found if isinstance(m, ActivationStatistics)]


def _without_idle(gm: GraphModule) -> GraphModule:
    """The same over the very tree of `gm`, without the nodes that hand on their input and do nothing else."""
    if all(statistics.is_collecting for statistics in statistics_of(gm)):
        return gm
    graph = Graph()
    values: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        module, source = module_of(gm, node), node.args[0] if node.args else None
        if isinstance(module, ActivationStatistics) and not module.is_collecting and isinstance(source, Node):
            values[node] = values[source]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    made = GraphModule(gm, graph)
    adopt_tree(made, gm)
    made.training = gm.training
    return made


def _match(gm: GraphModule, quantized: Node) -> list[Node]:
    """The nodes before a quantizer that are run together with it, the nearest first: [relu], or [relu?, add?, correction]."""
    quantizer = module_of(gm, quantized)
    if not isinstance(quantizer, Quantizer) or not issubclass(_definer(quantizer, "pointwise"), _definer(quantizer, "forward")):
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
    return all(n < node for n in gm.graph.find_nodes(op="get_attr") if n.target in statistics)


def _definer(module: nn.Module, method: str) -> type:
    return next(c for c in type(module).__mro__ if method in vars(c))


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
