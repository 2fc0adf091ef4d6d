"""use_running_statistics: in a frozen network BatchNorm has its running statistics, which are folded already.

BatchCorrection(y, ...)  ->  y
"""

from __future__ import annotations

from torch.fx import GraphModule

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.rewriter import Rewriter

__all__ = ["use_running_statistics"]


def use_running_statistics(gm: GraphModule) -> bool:
    """Remove every BatchCorrection; exact in evaluation, which is all that a frozen network does."""
    rw = Rewriter(gm)
    for node in list(gm.graph.nodes):
        if rw.module(node, BatchCorrection) is not None:
            rw.remove(node)
    rw.sweep()
    return rw.changed
