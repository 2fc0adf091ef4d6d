"""The rows of a configuration template: everything in a graph that a rule can name."""

from __future__ import annotations

from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.config.template import LayerRow
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.values import multiplies_parameter
from pquant_fx.passes.settings import type_name

__all__ = ["layer_rows"]


def layer_rows(gm: GraphModule) -> list[LayerRow]:
    """One row for each place with settings of its own: layers with weights, activations, arithmetic, pools; in graph order."""
    rows = []
    for node in gm.graph.nodes:
        op = op_of(node)
        kind = op.kind if op is not None else "table" if node.target is F.softmax else "grid"
        if kind != "grid":
            record = info(node)
            kind = "weighted" if multiplies_parameter(node) else kind
            rows.append(LayerRow(record.path or node.name, type_name(gm, node), record.site, kind, record.shape))
    return rows
