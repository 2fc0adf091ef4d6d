"""SyncBatchNorm, also on a network that is compiled already."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import module_of

__all__ = ["follow_synchronised"]


def follow_synchronised(gm: GraphModule) -> None:
    """Let each folded BatchNorm take its statistics over all ranks (of the `process_group`) iff its module is a SyncBatchNorm.

    torch.nn.SyncBatchNorm.convert_sync_batchnorm exchanges the user's modules, which a compiled graph no longer calls.
    """
    for node in gm.graph.nodes:
        correction = module_of(gm, node)
        if not isinstance(correction, BatchCorrection):
            continue
        running_mean = node.args[1]
        assert isinstance(running_mean, Node)
        norm = gm.get_submodule(str(running_mean.target).rpartition(".")[0])
        correction.synchronised = isinstance(norm, nn.SyncBatchNorm)
        correction.group = getattr(norm, "process_group", None)
