"""insert_statistics: masks that prune by activations get to see them.

    F.linear(q(x), mask(W), b)              ->  F.linear(statistics(q(x)), mask(W), b)                    what a layer takes in
    F.relu(correction(F.conv2d(x, mask(W))))  ->  F.relu(statistics(correction(F.conv2d(x, mask(W)))))    what it gives to its ReLU

The module is the mask's own (`statistics`): one for all places that read the weight. It runs last, so that what a layer takes in
is quantized already; what a layer gives is looked at before it is.
"""

from __future__ import annotations

from torch.fx import GraphModule

from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.dialect import Mask, is_parameter_value
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import result_of
from pquant_fx.passes.insert_masks import weight_source
from pquant_fx.passes.products import product_of, with_addends
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
            product = product_of(node)
            if product is None or is_parameter_value(node):
                continue
            source = weight_source(product.weight, rw)
            statistics = getattr(rw.module(source, Mask), "statistics", None)
            if source is None or not isinstance(statistics, ActivationStatistics):
                continue
            made = with_addends(result_of(node))
            value = product.data if statistics.of == "input" else normalised(gm, made) or made
            users = [node] if statistics.of == "input" else list(value.users)
            if any(rw.module(n, ActivationStatistics) is statistics for n in (value, *users)):
                continue
            with rw.after(value):
                watched = rw.call_module(f"{source.target}.statistics", value)
            rw.inherit(watched, value)
            for user in users:
                rw.redirect(user, value, watched)
        return rw.changed


insert_statistics = InsertStatistics()
