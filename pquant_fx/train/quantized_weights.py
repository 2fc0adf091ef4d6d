"""q(W) for the masks that decide by it, found between steps, so that no forward quantizes twice.

Behind a folded BatchNorm what is quantized is the scaled weight; decisions are taken on W's own scale: q(s W) / s, and W itself
where s = 0. The format is that of all weights, also of those that are masked now.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.graph.constants import value_given
from pquant_fx.graph.dialect import Mask, Quantizer, is_parameter_value, module_of
from pquant_fx.prune import Pruner

__all__ = ["show_quantized"]


def show_quantized(gm: GraphModule) -> None:
    """Tell every mask that decides by quantized weights, and is not fixed, what they are now."""
    told: set[int] = set()
    for node in gm.graph.nodes:
        mask = module_of(gm, node)
        if isinstance(mask, Pruner) and mask.seen is not None and not mask.is_fixed and id(mask) not in told:
            told.add(id(mask))
            mask.see(_quantized(gm, node))


def _quantized(gm: GraphModule, masked: Node) -> Tensor:
    """The quantized value of the weight that a mask node takes, of its shape; the weight where nothing quantizes it."""
    weight = value_given(gm, masked.all_input_nodes[0], {})
    quantizer = _quantizer_behind(gm, masked)
    if quantizer is None:
        return weight
    value = value_given(gm, quantizer, {masked: weight})
    scale = value_given(gm, quantizer.all_input_nodes[0], {masked: torch.ones_like(weight)})
    return torch.where(scale == 0, weight, value / scale)


def _quantizer_behind(gm: GraphModule, masked: Node) -> Node | None:
    """The first quantizer of what the mask gives, through the scalings of a folded BatchNorm."""
    waiting = [masked]
    while waiting:
        node = waiting.pop(0)
        if isinstance(module_of(gm, node), Quantizer):
            return node
        waiting += [user for user in node.users if is_parameter_value(user) and not isinstance(module_of(gm, user), Mask)]
    return None
