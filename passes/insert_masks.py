"""insert_masks: every prunable weight passes through a Mask.

    get_attr conv.weight  ->  Mask(get_attr conv.weight)

The mask acts on the latent weight, before BatchNorm's scale and before the quantizer: a 0/1 mask commutes with both, and
value-changing masks have to come first. One parameter has one mask, however many nodes read it. Biases, BatchNorm
parameters and embeddings are never pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.config import Config
from pquant_fx.graph.dialect import Mask, Quantizer, op_of
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.settings import settings_of

__all__ = ["InsertMasks"]


@dataclass(frozen=True)
class InsertMasks:
    """Insert the masks that `make(weight, sparsity)` builds, where the configuration prunes a layer."""

    config: Config
    make: Callable[[Tensor, float | None], Mask]
    name: ClassVar[str] = "insert_masks"
    exact: ClassVar[bool] = True  # a new mask keeps every weight
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        masks: dict[str, Node] = {}
        for node in list(gm.graph.nodes):
            op = op_of(node)
            if op is None or op.kind != "weighted":
                continue
            settings = settings_of(self.config, gm, node)
            source = _weight_source(node.args[1], rw)
            if source is None or not settings.prune or rw.module(source, Mask) is not None:
                continue
            path = str(source.target)
            if path in masks:
                rw.replace(source, masks[path])
                continue
            users = list(source.users)
            with rw.after(source):
                made = rw.own(f"{path}_mask", self.make(rw.attribute(source), settings.sparsity))
                masks[path] = rw.call_module(made, source)
            for user in users:
                rw.redirect(user, source, masks[path])
        return rw.changed


def _weight_source(weight: object, rw: Rewriter) -> Node | None:
    """The `get_attr` (or mask) node at the bottom of a weight: through a quantizer of the user and the first operand of each scaling."""
    while isinstance(weight, Node) and (weight.op == "call_function" or rw.module(weight, Quantizer) is not None):
        weight = weight.args[0]
    return weight if isinstance(weight, Node) and weight.op in ("get_attr", "call_module") else None
