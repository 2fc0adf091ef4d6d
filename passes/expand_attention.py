"""expand_attention: attention becomes linear layers, products of matrices and a softmax (Vaswani et al. 2017).

    F.scaled_dot_productattention(q, k, v)   ->   softmax(q k' s) v              s = 1 / sqrt(d), after the exact product
    nn.MultiheadAttention(x, x, x)            ->   linear, heads apart, softmax(q k') v, heads together, linear
    nn.TransformerEncoderLayer(x), nn.TransformerEncoder(x)   ->   attention, LayerNorm, linear layers, joins

In nn.MultiheadAttention the scale goes into the query's weights before they are quantized. A mask has to be a constant: what it
excludes is replaced by a score of the same row that it does not, so that it can not be the largest, and its share is multiplied
by 0. Dropout stays, as a module.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.config import Config
from pquant_fx.graph.by_mode import ByMode, Slot
from pquant_fx.graph.operand_marks import mark_opaque
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.attention_layers import attention, encoder, given_arguments, multihead
from pquant_fx.passes.attention_masks import EXCLUDED, fixed_mask
from pquant_fx.passes.layer_writer import CanNotWrite, LayerWriter, is_changed, shape_of
from pquant_fx.passes.settings import settings_of

__all__ = ["ExpandAttention"]

_ENCODERS = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
_FILLS = (torch.masked_fill, torch.Tensor.masked_fill, torch.where)
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class ExpandAttention:
    """Write out every attention whose mask is a constant; others stay opaque, with the reason for `check`."""

    config: Config
    name: ClassVar[str] = "expand_attention"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            write = _writer_of(node, rw)
            if write is None or not settings_of(self.config, gm, node).quantize:
                continue
            try:
                with rw.before(node):
                    write(node, rw)
            except CanNotWrite as error:
                mark_opaque(node, error.what, error.remedy)
        rw.sweep()
        return rw.changed


def _writer_of(node: Node, rw: Rewriter) -> Callable[[Node, Rewriter], None] | None:
    module = rw.module(node)
    if node.target is F.softmax and len(node.args) == 2 and not node.kwargs:
        source = node.args[0]
        if isinstance(source, Node) and source.target is operator.add and any(map(_holds_excluded(rw), source.args[:2])):
            return _added
        return _masked if isinstance(source, Node) and source.target in _FILLS else None
    if node.target is F.scaled_dot_product_attention or getattr(module, "function", None) is F.scaled_dot_product_attention:
        return _functional
    if isinstance(module, nn.MultiheadAttention) and not is_changed(module, nn.MultiheadAttention):
        return multihead
    kind = next((k for k in _ENCODERS if isinstance(module, k)), None)
    return encoder if kind is not None and module is not None and not is_changed(module, kind) else None


# ---- a softmax of what a constant mask lets through
def _masked(node: Node, rw: Rewriter) -> None:
    """softmax(masked_fill(x, mask, -inf)) -> masked_softmax(x, ~mask)."""
    filled, axis = node.args
    assert isinstance(filled, Node)
    values = dict(zip(("input", "mask", "value"), filled.args)) | filled.kwargs
    x, mask, number = values.get("input"), values.get("mask"), values.get("value")
    if filled.target is torch.where:
        mask, x, number = filled.args
    if not isinstance(x, Node) or not isinstance(number, int | float) or number > EXCLUDED or axis != len(shape_of(node)) - 1:
        raise CanNotWrite("its mask lets something through", "fill with -inf, over the last axis")
    found = fixed_mask(rw, mask, shape_of(node), causal=False, true_keeps=filled.target is torch.where)
    rw.replace(node, found.shares(LayerWriter(rw, node, ""), x))


def _holds_excluded(rw: Rewriter) -> Callable[[Any], bool]:
    def holds(mask: Any) -> bool:
        if not isinstance(mask, Node) or mask.op != "get_attr":
            return False
        value = rw.attribute(mask)
        return not isinstance(value, nn.Parameter) and bool((value <= EXCLUDED).any())

    return holds


def _added(node: Node, rw: Rewriter) -> None:
    """softmax(x + mask), with a mask of numbers and -inf -> masked_softmax(x + numbers, places)."""
    added, axis = node.args
    assert isinstance(added, Node)
    x, mask = added.args[:2] if _holds_excluded(rw)(added.args[1]) else reversed(added.args[:2])
    if not isinstance(x, Node) or axis != len(shape_of(node)) - 1:
        raise CanNotWrite("its mask is not over the last axis", "take the softmax over the last axis")
    found = fixed_mask(rw, mask, shape_of(node), causal=False, true_keeps=False)
    rw.replace(node, found.shares(LayerWriter(rw, node, ""), x))


# ---- F.scaled_dot_product_attention
def _functional(node: Node, rw: Rewriter) -> None:
    given = given_arguments(_both_modes(node, rw), _SDPA) if node.op == "call_function" else _both_modesgiven_arguments(node, rw)
    if given.get("enable_gqa"):
        raise CanNotWrite("its heads share keys", "repeat keys and values for every head, and leave enable_gqa out")
    q, k, v = (given[name] for name in _SDPA[:3])
    scale = given.get("scale")
    scale = shape_of(q)[-1] ** -0.5 if scale is None else float(scale)
    w = LayerWriter(rw, node, "")
    sizes = (*shape_of(q)[:-1], shape_of(k)[-2])
    mask = fixed_mask(rw, given.get("attn_mask"), sizes, causal=bool(given.get("is_causal")), true_keeps=True)
    rw.replace(node, attention(w, q, k, v, scale, mask, float(given.get("dropout_p", 0.0)))[0])


def _both_modes(node: Node, rw: Rewriter) -> Node:
    if float(given_arguments(node, _SDPA).get("dropout_p", 0.0)):
        raise CanNotWrite("it drops values in evaluation too", "pass dropout_p=p if self.training else 0.0")
    return node


def _both_modesgiven_arguments(node: Node, rw: Rewriter) -> dict[str, Any]:
    """The arguments of training, of a call that differs in dropout only."""
    module = rw.module(node, ByMode)
    assert module is not None
    found = []
    for call in module.calls:
        left = list(node.args)
        values = [left.pop(0) if a is Slot else a for a in call]
        positional = [a for name, a in zip(module.names, values) if not name]
        found.append({**dict(zip(_SDPA, positional)), **{n: a for n, a in zip(module.names, values) if n}})
    evaluation, training = found
    if evaluation.get("dropout_p", 0.0) or any(training.get(n) is not evaluation.get(n) for n in _SDPA if n != "dropout_p"):
        raise CanNotWrite("training and evaluation differ in more than dropout", "let dropout_p alone depend on self.training")
    return training
