"""insert_statistics: masks that prune by activations get to see them.

    F.linear(q(x), mask(W), b)              ->  F.linear(statistics(q(x)), mask(W), b)                    what a layer takes in
    F.relu(correction(F.conv2d(x, mask(W))))  ->  F.relu(statistics(correction(F.conv2d(x, mask(W)))))    what it gives to its ReLU

The module is the mask's own (`statistics`): one for all places that read the weight. It runs last, so that what a layer takes in
is quantized already; what a layer gives is looked at before it is.
"""

from __future__ import annotations

from torch.fx import GraphModule

from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.dialect import Mask, is_parameter_value, op_of
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import result_of
from pquant_fx.passes.insert_masks import weight_source
from pquant_fx.passes.removable_outputs import normalised

__all__ = ["InsertStatistics", "insert_statistics"]


class InsertStatistics:
    """Insert the statistics of every mask that has some."""

    name = "insert_statistics"
    exact = True
    requires = ("insert_masks",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            op = op_of(node)
            if op is None or op.kind != "weighted" or is_parameter_value(node):
                continue
            source = weight_source(node.args[1], rw)
            statistics = getattr(rw.module(source, Mask), "statistics", None)
            if source is None or not isinstance(statistics, ActivationStatistics):
                continue
            value = node.args[0] if statistics.of == "input" else normalised(gm, result_of(node)) or result_of(node)
            users = [node] if statistics.of == "input" else list(value.users)
            if any(rw.module(n, ActivationStatistics) is statistics for n in (value, *users)):
                continue
            with rw.after(value):
                made = rw.call_module(f"{source.target}.statistics", value)
            rw.inherit(made, value)
            for user in users:
                rw.redirect(user, value, made)
        return rw.changed


insert_statistics = InsertStatistics()
