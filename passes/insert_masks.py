"""insert_masks: every prunable weight passes through a Mask.

    get_attr conv.weight  ->  Mask(get_attr conv.weight)      of layers, and of products written out: x @ self.weight

The mask acts on the latent weight, before BatchNorm's scale and before the quantizer: a 0/1 mask commutes with both, and
value-changing masks have to come first. Which entries go is decided by the latent weight too, or with `pruning_first: false`,
where masks are 0/1, by the quantized one. One parameter has one mask, however many nodes read it. Biases, BatchNorm
parameters and embeddings are never pruned. A mask that removes whole outputs takes their biases along, which would be
left as constants:

    F.conv2d(x, W, b)           ->  F.conv2d(x, W, UnitMask(b, W))      b: also what a folded BatchNorm adds
    correction(..., beta)       ->  correction(..., UnitMask(beta, W))
    torch.matmul(x, W) + b      ->  torch.matmul(x, W) + UnitMask(b, W)
    bn(F.conv2d(x, W, b))       ->  UnitMask(bn(F.conv2d(x, W, b)), W)      a BatchNorm that is not folded

Whole outputs are removed only where they are no outputs of the network, and by activation only where a ReLU follows directly;
other layers get no such mask, and a note (PQ608) says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pquant_fx.config import Config, PruningSection
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.dialect import Mask, Quantizer
from pquant_fx.graph.info import info, place
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.products import product_of
from pquant_fx.passes.removable_outputs import why_outputs_stay
from pquant_fx.passes.settings import settings_of
from pquant_fx.passes.unit_masks import mask_units
from pquant_fx.prune import Layout, Pruner, make_pruner

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
            product = product_of(node)
            if product is None:
                continue
            settings = settings_of(self.config, gm, node)
            source = weight_source(product.weight, rw)
            if (
                source is None
                or str(source.target) in spared
                or not settings.prune
                or settings.pruning is None
                or rw.module(source, Mask) is not None
                or (node.target is torch.matmul and not isinstance(rw.attribute(source), nn.Parameter))
            ):
                continue
            path = str(source.target)
            if path in masks:
                rw.replace(source, masks[path])
            else:
                mask = self._made(rw, source, node, settings.pruning, settings.sparsity)
                if (why := _why_not(rw, source, mask, layers[path])) is not None:
                    what = f"'{info(node).path or node.name}' is not pruned by {settings.pruning.pruning_method} as asked for: {why}"
                    rw.note("PQ608", what, "give the layer another method in `layers`, or prune: false", node)
                    spared.add(path)
                    continue
                users = list(source.users)
                with rw.after(source):
                    masks[path] = rw.call_module(rw.own(f"{path}_mask", mask), source)
                rw.inherit(masks[path], source)
                for user in users:
                    rw.redirect(user, source, masks[path])
            mask_units(rw, node, masks[path])
        return rw.changed

    def _made(self, rw: Rewriter, source: Node, layer: Node, method: PruningSection, sparsity: float | None) -> Mask:
        weight: Tensor = rw.attribute(source)
        product = product_of(layer)
        layout = product.layout if product is not None and product.layout is not None else Layout()
        try:
            mask = self.make(weight, method, layout, sparsity)
        except ConfigError as error:
            raise ConfigError([Problem(p.code, p.what, p.remedy, place(layer)) for p in error.problems]) from error
        if isinstance(mask, Pruner) and not self.config.training_parameters.pruning_first:
            mask.judge_quantized(weight)
        return mask


def _layers_by_weight(rw: Rewriter) -> dict[str, list[Node]]:
    """The layers that read each weight, by its path."""
    found: dict[str, list[Node]] = {}
    for node in rw.graph.nodes:
        product = product_of(node)
        source = weight_source(product.weight, rw) if product is not None else None
        if source is not None:
            found.setdefault(str(source.target), []).append(node)
    return found


def _why_not(rw: Rewriter, source: Node, mask: Mask, layers: list[Node]) -> str | None:
    """Why the mask has no place here, None where it has."""
    products = [product for layer in layers if (product := product_of(layer)) is not None]
    if any(product.layout is None for product in products):
        return "its axes are not those of the parameter"
    if hasattr(mask, "statistics") and any(layer.target is torch.matmul and product.behind for layer, product in zip(layers, products)):
        return "it measures activations whose features are on the last axis, and here the weight is multiplied from the left"
    if not isinstance(mask, Pruner) or mask.units(rw.attribute(source)) is None:
        return None
    if len({product.layout for product in products}) > 1:
        return "it removes whole outputs, which are on different axes of the weight in the layers that share it"
    why = why_outputs_stay(rw.gm, layers, mask.rectified)
    return None if why is None else f"it removes whole outputs, and {why}"


def weight_source(weight: object, rw: Rewriter) -> Node | None:
    """The `get_attr` (or mask) node at the bottom of a weight: through a quantizer of the user and the first operand of each scaling."""
    while isinstance(weight, Node) and (weight.op == "call_function" or rw.module(weight, Quantizer) is not None):
        weight = weight.args[0]
    return weight if isinstance(weight, Node) and weight.op in ("get_attr", "call_module") else None
