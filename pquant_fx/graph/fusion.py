"""How a graph is run fast: the same modules and parameters, the same numbers, fewer passes over memory.

    q(relu(x))   ->   q.rectified(x)        an unsigned saturating format clips at 0 by itself

The graph that passes, reports and targets see stays as it is.
"""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.copies import adopt_tree
from pquant_fx.graph.dialect import Quantizer, module_of

__all__ = ["fused"]


def fused(gm: GraphModule) -> GraphModule:
    """A second GraphModule over the very tree of `gm` that computes the same in training and in evaluation."""
    graph = Graph()
    values: dict[Node, Node] = {}
    skipped = {n.args[0] for n in gm.graph.nodes if _is_rectified(gm, n)}
    for node in gm.graph.nodes:
        if node in skipped:
            continue
        if _is_rectified(gm, node):
            quantizer = graph.get_attr(str(node.target))
            values[node] = graph.call_method("rectified", (quantizer, values[node.args[0].args[0]]))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    made = GraphModule(gm, graph)
    adopt_tree(made, gm)
    made.training = gm.training
    return made


def _is_rectified(gm: GraphModule, node: Node) -> bool:
    """Whether `node` quantizes the result of a ReLU that nothing else reads."""
    source = node.args[0] if isinstance(module_of(gm, node), Quantizer) else None
    return isinstance(source, Node) and source.target is F.relu and len(source.users) == 1
