"""use_running_statistics: in a frozen network BatchNorm's statistics are its running buffers.

    getitem(BatchStatistics(y, running_mean, running_var, batches), 0)  ->  running_mean     (1 -> running_var)

The convolution that only fed the batch statistics dies with it.
"""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from pquant_fx.graph.batch_statistics import BatchStatistics
from pquant_fx.graph.rewriter import Rewriter

__all__ = ["use_running_statistics"]


def use_running_statistics(gm: GraphModule) -> bool:
    """Replace every BatchStatistics node; exact in evaluation, which is all that a frozen network does."""
    rw = Rewriter(gm)
    for node in list(gm.graph.nodes):
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, Node) and rw.module(source, BatchStatistics) is not None:
            buffer = source.args[1 + node.args[1]]
            assert isinstance(buffer, Node)
            rw.replace(node, buffer)
    rw.sweep()
    return rw.changed
