"""The rules of a graph that every pass relies on."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from pquant_fx.errors import PassError, Problem
from pquant_fx.graph.dialect import Mask, Quantizer, forget_answers, is_parameter_value
from pquant_fx.graph.info import place

__all__ = ["verify"]


def verify(gm: GraphModule) -> None:
    """Check the rules that every pass relies on; raises PassError (PQ601) with all violations.

    Every node's inputs exist and precede it, every target resolves, every Quantizer and Mask has one input, a Mask only
    acts on a parameter value, and there is exactly one output.
    """
    problems = []
    forget_answers(gm.graph)

    def wrong(node: Node, what: str) -> None:
        problems.append(Problem("PQ601", what, "mend the pass that ran last; `Pipeline` names it", place(node)))

    seen: set[Node] = set()
    for node in gm.graph.nodes:
        for used in node.all_input_nodes:
            if used not in seen:
                wrong(node, f"'{node.name}' uses '{used.name}' before it is computed")
        seen.add(node)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            if not hasattr(gm.get_submodule(owner) if _has(gm, owner) else None, name):
                wrong(node, f"there is no parameter or buffer '{node.target}'")
        elif node.op == "call_module":
            if not _has(gm, str(node.target)):
                wrong(node, f"there is no module '{node.target}'")
                continue
            module = gm.get_submodule(str(node.target))
            if isinstance(module, Quantizer | Mask) and (len(node.args) != 1 or node.kwargs):
                wrong(node, f"a {type(module).__name__} takes exactly one value")
            elif isinstance(module, Mask) and not is_parameter_value(node.args[0]):
                wrong(node, "a Mask acts on a parameter, not on data")
        elif node.op == "call_method":
            wrong(node, f"method call '{node.target}' survived canonicalize")
    outputs = [n for n in gm.graph.nodes if n.op == "output"]
    if len(outputs) != 1:
        problems.append(Problem("PQ601", f"the graph has {len(outputs)} output nodes", "keep exactly one output node"))
    if problems:
        raise PassError(problems)


def _has(gm: GraphModule, path: str) -> bool:
    try:
        gm.get_submodule(path)
    except AttributeError:
        return False
    return True
