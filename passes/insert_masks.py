"""insert_masks: every prunable weight passes through a Mask.

    get_attr conv.weight  ->  Mask(get_attr conv.weight)

The mask acts on the latent weight, before BatchNorm's scale and before the quantizer: a 0/1 mask commutes with both, and
value-changing masks have to come first. One parameter has one mask, however many nodes read it. Biases, BatchNorm
parameters and embeddings are never pruned. A mask that removes whole outputs takes their biases along, which would be
left as constants:

    F.conv2d(x, W, b)           ->  F.conv2d(x, W, UnitMask(b, W))      b: also what a folded BatchNorm adds
    correction(..., beta)       ->  correction(..., UnitMask(beta, W))
    bn(F.conv2d(x, W, b))       ->  UnitMask(bn(F.conv2d(x, W, b)), W)      a BatchNorm that is not folded

Whole outputs are removed only where they are no outputs of the network, and by activation only where a ReLU follows directly;
other layers get no such mask, and a note (PQ608) says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.config import Config, PruningSection
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Mask, Quantizer, op_of
from pquant_fx.graph.info import info, place
from pquant_fx.graph.rewriter import OWN, Rewriter
from pquant_fx.passes.removable_outputs import normalised, why_outputs_stay
from pquant_fx.passes.settings import settings_of
from pquant_fx.prune import Layout, Pruner, UnitMask, layout_of, make_pruner

__all__ = ["InsertMasks", "MakeMask", "weight_source"]

MakeMask = Callable[[Tensor, PruningSection, Layout, float | None], Mask]
"""Makes the mask of a weight from the method's settings, the weight's axes, and the layer's own goal (None: the method's)."""


@dataclass(frozen=True)
class InsertMasks:
    """Insert a mask where the configuration prunes a layer."""

    config: Config
    make: MakeMask = make_pruner
    name: ClassVar[str] = "insert_masks"
    exact: ClassVar[bool] = True  # a new mask keeps every weight
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        masks: dict[str, Node] = {}
        layers = _layers_by_weight(rw)
        spared: set[str] = set()
        for node in list(gm.graph.nodes):
            op = op_of(node)
            if op is None or op.kind != "weighted":
                continue
            settings = settings_of(self.config, gm, node)
            source = weight_source(node.args[1], rw)
            if (
                source is None
                or str(source.target) in spared
                or not settings.prune
                or settings.pruning is None
                or rw.module(source, Mask) is not None
            ):
                continue
            path = str(source.target)
            if path in masks:
                rw.replace(source, masks[path])
            else:
                mask = self._made(rw, source, node, settings.pruning, settings.sparsity)
                if (why := _why_not(rw, source, mask, layers[path])) is not None:
                    method = settings.pruning.pruning_method
                    what = f"'{info(node).path or node.name}' is not pruned, because {method} removes whole outputs here: {why}"
                    rw.note("PQ608", what, "give the layer another method in `layers`, or prune: false", node)
                    spared.add(path)
                    continue
                users = list(source.users)
                with rw.after(source):
                    masks[path] = rw.call_module(rw.own(f"{path}_mask", mask), source)
                for user in users:
                    rw.redirect(user, source, masks[path])
            _mask_units(rw, node, masks[path])
        return rw.changed

    def _made(self, rw: Rewriter, source: Node, layer: Node, method: PruningSection, sparsity: float | None) -> Mask:
        try:
            return self.make(rw.attribute(source), method, layout_of(layer), sparsity)
        except ConfigError as error:
            raise ConfigError([Problem(p.code, p.what, p.remedy, place(layer)) for p in error.problems]) from error


def _mask_units(rw: Rewriter, layer: Node, mask: Node) -> None:
    """Let what a layer adds to its outputs go with them, where its mask removes outputs."""
    pruner, weight = rw.module(mask, Mask), mask.all_input_nodes[0]
    if not isinstance(pruner, Pruner) or pruner.units(rw.attribute(weight)) is None:
        return
    label = str(mask.target).removeprefix(f"{OWN}.").removesuffix("_mask")
    bias = layer.args[2]
    if isinstance(bias, Node):
        with rw.before(layer):
            masked = rw.call_module(rw.own(f"{label}_unit_mask", UnitMask(pruner)), bias, weight)
        rw.set_args(layer, *layer.args[:2], masked, *layer.args[3:])
    for user in list(layer.users):
        if rw.module(user, BatchCorrection) is not None and isinstance(user.args[5], Node):
            with rw.before(user):
                offset = rw.call_module(rw.own(f"{label}_offset_mask", UnitMask(pruner)), user.args[5], weight)
            rw.set_args(user, *user.args[:5], offset)
    norm = normalised(rw.gm, layer)
    if norm is not None:
        users, shape = list(norm.users), info(norm).shape
        with rw.after(norm):
            unit_mask = UnitMask(pruner, trailing=len(shape) - 2 if shape is not None else 0)
            made = rw.call_module(rw.own(f"{label}_norm_mask", unit_mask), norm, weight)
        rw.inherit(made, norm)
        for user in users:
            rw.redirect(user, norm, made)


def _layers_by_weight(rw: Rewriter) -> dict[str, list[Node]]:
    """The layers that read each weight, by its path."""
    found: dict[str, list[Node]] = {}
    for node in rw.graph.nodes:
        op = op_of(node)
        source = weight_source(node.args[1], rw) if op is not None and op.kind == "weighted" else None
        if source is not None:
            found.setdefault(str(source.target), []).append(node)
    return found


def _why_not(rw: Rewriter, source: Node, mask: Mask, layers: list[Node]) -> str | None:
    """Why a mask that removes whole outputs has no place here; None for any other mask."""
    if not isinstance(mask, Pruner) or mask.units(rw.attribute(source)) is None:
        return None
    return why_outputs_stay(rw.gm, layers, mask.rectified)


def weight_source(weight: object, rw: Rewriter) -> Node | None:
    """The `get_attr` (or mask) node at the bottom of a weight: through a quantizer of the user and the first operand of each scaling."""
    while isinstance(weight, Node) and (weight.op == "call_function" or rw.module(weight, Quantizer) is not None):
        weight = weight.args[0]
    return weight if isinstance(weight, Node) and weight.op in ("get_attr", "call_module") else None
