"""tabulate: what hardware will read from a table is computed as that table is, once training is over.

    torch.tanh(x)   ->   Tabulated(x)        training: torch.tanh(x); evaluation: fl32(tanh(x)) computed in float64

so that the compiled network in evaluation and the frozen one, whose tables hold these numbers, agree bit for bit.
"""

from __future__ import annotations

from torch.fx import GraphModule

from pquant_fx.graph.dialect import is_parameter_value, op_of
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.tables import Tabulated, lookup
from pquant_fx.passes.settings import own_path

__all__ = ["Tabulate", "tabulate"]


class Tabulate:
    """Replace every table function of data by a leaf. Not exact: results are rounded to float32, of a float64 network as well."""

    name = "tabulate"
    requires = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            op = op_of(node)
            if node.op != "call_function" or op is None or op.kind != "table" or node.target is lookup or is_parameter_value(node):
                continue
            with rw.before(node):
                leaf = rw.own(f"{own_path(node)}.table", Tabulated(op.name, node.args[1:], node.kwargs))
                made = rw.call_module(leaf, node.args[0])
            rw.inherit(made, node)
            rw.replace(node, made)
        return rw.changed


tabulate = Tabulate()
