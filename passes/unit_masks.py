"""What goes along where a mask removes whole outputs: biases, constants that are added, offsets of BatchNorm (see `insert_masks`)."""

from __future__ import annotations

from torch.fx import Node

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Mask
from pquant_fx.graph.info import info
from pquant_fx.graph.rewriter import OWN, Rewriter
from pquant_fx.passes.products import added_constants, product_of, with_addends
from pquant_fx.passes.removable_outputs import normalised
from pquant_fx.prune import Pruner, UnitMask

__all__ = ["mask_units"]


def mask_units(rw: Rewriter, layer: Node, mask: Node) -> None:
    """Let what a layer adds to its outputs go with them, where its mask removes outputs."""
    pruner, weight = rw.module(mask, Mask), mask.all_input_nodes[0]
    product = product_of(layer)
    if product is None or not isinstance(pruner, Pruner) or pruner.units(rw.attribute(weight)) is None:
        return
    label = str(mask.target).removeprefix(f"{OWN}.").removesuffix("_mask")
    bias = layer.args[2] if len(layer.args) > 2 else None
    if isinstance(bias, Node):
        with rw.before(layer):
            masked = rw.call_module(rw.own(f"{label}_unit_mask", UnitMask(pruner)), bias, weight)
        rw.set_args(layer, *layer.args[:2], masked, *layer.args[3:])
    sums = list(added_constants(layer))
    for added, at in sums:
        operand = added.args[at]
        assert isinstance(operand, Node)
        with rw.before(added):
            made = rw.call_module(rw.own(f"{label}_added_mask", UnitMask(pruner, product.behind)), operand, weight)
        rw.set_args(added, *(made if n == at else a for n, a in enumerate(added.args)))
    for user in list([layer, *(added for added, _ in sums)][-1].users):
        if rw.module(user, BatchCorrection) is not None and isinstance(user.args[5], Node):
            with rw.before(user):
                offset = rw.call_module(rw.own(f"{label}_offset_mask", UnitMask(pruner)), user.args[5], weight)
            rw.set_args(user, *user.args[:5], offset)
    norm = normalised(rw.gm, with_addends(layer))
    if norm is not None:
        users, shape = list(norm.users), info(norm).shape
        with rw.after(norm):
            unit_mask = UnitMask(pruner, trailing=len(shape) - 2 if shape is not None else 0)
            made = rw.call_module(rw.own(f"{label}_norm_mask", unit_mask), norm, weight)
        rw.inherit(made, norm)
        for user in users:
            rw.redirect(user, norm, made)
