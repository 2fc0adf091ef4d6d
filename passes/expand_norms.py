"""expand_norms: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019) become sums, products and a table.

    F.layer_norm(x, shape, w, b, eps)   ->   c = t x - 2^-m sum(x)              n elements, m = ceil(log2 n), t = n 2^-m
                                             c * inverse_root(q(sum(c c)), 1 / n, t^2 eps) * w + b
    F.rms_norm(x, shape, w, eps)        ->   x * inverse_root(q(sum(x x)), 1 / n, eps) * w

c = t (x - mean) is exact for every n, no rounded 1 / n is needed: the table undoes the factor t. Centred values, squares and their
sum are exact, and so is the product up to the consumer, which rounds once. Table and sum have more bits than other data: the
root of a small sum is as important as that of a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log2, prod
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.config import Config, LayerSettings
from pquant_fx.graph.info import info
from pquant_fx.graph.operand_marks import mark_exact_operands, mark_opaque, mark_quantized_operands
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.tables import MAX_ENTRIES, inverse_root
from pquant_fx.passes.layer_writer import CanNotWrite, LayerWriter, shape_of
from pquant_fx.passes.quantizer_choice import data_quantizer
from pquant_fx.passes.settings import own_path, settings_of

__all__ = ["ExpandNorms"]

_RMS = ("input", "normalized_shape", "weight", "eps")
_MORE_BITS = 4
"""Of the sum of squares and its root, beyond `data_bits`: sums spread over decades."""


@dataclass(frozen=True)
class ExpandNorms:
    """Write out every norm over the last axes of a sample. Behind `lift_numbers`, which would round t."""

    config: Config
    name: ClassVar[str] = "expand_norms"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            if node.target not in (F.layer_norm, F.rms_norm):
                continue
            settings = settings_of(self.config, gm, node)
            if not settings.quantize:
                continue
            try:
                with rw.before(node):
                    work = _Norm(LayerWriter(rw, node, info(node).path), self.config, settings)
                    rw.replace(node, work.layer() if node.target is F.layer_norm else work.root_mean_square())
            except CanNotWrite as error:
                mark_opaque(node, error.what, error.remedy)
        return rw.changed


class _Norm:
    """One norm: its writer and settings."""

    def __init__(self, w: LayerWriter, config: Config, settings: LayerSettings) -> None:
        self.w, self.config, self.settings = w, config, settings
        names = ("input", "normalized_shape", "weight", "bias", "eps") if w.node.target is F.layer_norm else _RMS
        given: dict[str, Any] = {"weight": None, "bias": None, **dict(zip(names, w.node.args)), **w.node.kwargs}
        self.x: Node = given["input"]
        self.weight, self.bias = given["weight"], given["bias"]
        shape, wanted = shape_of(self.x), tuple(given["normalized_shape"])
        self.axes = tuple(range(len(shape) - len(wanted), len(shape)))
        if not self.axes or self.axes[0] < 1 or shape[self.axes[0] :] != wanted:
            raise CanNotWrite(f"it normalises {wanted} of {shape}", "normalise over the last axes of a sample")
        self.count = prod(wanted)
        eps = given.get("eps", 1e-5 if w.node.target is F.layer_norm else None)
        self.eps = torch.finfo(torch.float32).eps if eps is None else float(eps)
        if self.count < 2 or self.eps <= 0:
            raise CanNotWrite(f"it normalises {self.count} elements with eps = {self.eps}", "use two elements at least, and eps > 0")

    def layer(self) -> Node:
        w, shift = self.w, ceil(log2(self.count))
        t = self.count * 2.0**-shift
        total = mark_quantized_operands(w.sum(self.x, self.axes))
        scaled = self.x if t == 1 else mark_quantized_operands(w.mul(self.x, t))
        centred = w.sub(scaled, mark_exact_operands(w.mul(total, 2.0**-shift)))
        made = self._divided(centred, t * t * self.eps)
        return made if self.bias is None else w.add(made, self.bias)

    def root_mean_square(self) -> Node:
        return self._divided(self.x, self.eps, mark_quantized_operands)

    def _divided(self, x: Node, eps: float, mark: Callable[[Node], Node] = mark_exact_operands) -> Node:
        """x / sqrt(mean of x x + eps) * weight; mark: of the square."""
        w = self.w
        sums = self._wide(w.sum(mark(w.mul(x, x)), self.axes))
        root = self._wide(w.unary(inverse_root, sums, 1 / self.count, eps))
        made = mark_exact_operands(w.mul(x, root))
        return made if self.weight is None else mark_exact_operands(w.mul(made, self.weight))

    def _wide(self, x: Node) -> Node:
        """Quantized to more bits than other values of the layer, as many as a table can have."""
        bits = min(self.settings.data_bits + _MORE_BITS, MAX_ENTRIES.bit_length() - 1)
        settings = replace(self.settings, data_bits=max(bits, self.settings.data_bits), data_format=None)
        path = self.w.rw.own(f"{own_path(x)}.quantizer", data_quantizer(settings, self.config, x, unsigned=True))
        return self.w.module_call(path, x)
