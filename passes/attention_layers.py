"""What torch's attention layers consist of: nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.operand_marks import mark_exact_operands
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.attention_masks import FixedMask, fixed_mask
from pquant_fx.passes.layer_writer import CanNotWrite, LayerWriter, shape_of

__all__ = ["attention", "encoder", "given_arguments", "multihead"]

_BATCH_FIRST = ("its batch is not the first axis", "use batch_first=True")
_MHA = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
_LAYER = ("src", "src_mask", "src_key_padding_mask", "is_causal")
_STACK = ("src", "mask", "src_key_padding_mask", "is_causal")
_PADDING = (
    "a padding mask comes with the data",
    "pass samples of one length; let padded entries be zeros that the network learns to ignore",
)


def given_arguments(node: Node, names: tuple[str, ...], **defaults: Any) -> dict[str, Any]:
    return {**defaults, **dict(zip(names, node.args)), **node.kwargs}


def attention(w: LayerWriter, q: Node, k: Node, v: Node, scale: float, mask: FixedMask, dropout: float) -> tuple[Node, Node]:
    """(values, shares) for q (N, ..., T, d), k (N, ..., S, d), v (N, ..., S, e) with the same axes in front."""
    rank = len(shape_of(q))
    if not 3 <= rank <= 4 or any(len(shape_of(x)) != rank or shape_of(x)[:-2] != shape_of(q)[:-2] for x in (k, v)):
        raise CanNotWrite(
            f"its operands have the shapes {[shape_of(x) for x in (q, k, v)]}", "use (batch, tokens, d) or (batch, heads, tokens, d)"
        )
    scores = w.matmul(q, w.permute(k, *range(rank - 2), rank - 1, rank - 2))
    if scale != 1:
        scores = mark_exact_operands(w.mul(scores, scale))
    shares = w.dropout(mask.shares(w, scores), dropout)
    return w.matmul(shares, v), shares


# ---- nn.MultiheadAttention
def multihead(node: Node, rw: Rewriter) -> None:
    given = given_arguments(node, _MHA, key_padding_mask=None, need_weights=True, attn_mask=None, average_attn_weights=True)
    w = LayerWriter(rw, node)
    sizes = (shape_of(given["query"])[0], w.module.num_heads, shape_of(given["query"])[1], shape_of(given["key"])[1])
    mask = _mask(rw, given, "attn_mask", "key_padding_mask", sizes)
    if any(user.target is not operator.getitem or user.args[1] not in (0, 1) for user in node.users):
        raise CanNotWrite("its result is used as a whole", "take it apart: y, weights = attention(x, x, x)")
    values, shares = _heads(w, given["query"], given["key"], given["value"], mask)
    for user in list(node.users):
        if user.args[1] == 0:
            w.replace(user, values)
        elif user.users:
            with rw.before(user):
                w.replace(user, _averaged(w, shares) if given["average_attn_weights"] else shares)
    rw.erase_if_dead(node)


def _averaged(w: LayerWriter, shares: Node) -> Node:
    """(N, heads, T, S) -> (N, T, S)."""
    batch, _, *rest = shape_of(shares)
    return w.call(torch.mean, (batch, *rest), shares, (1,), False)


def _mask(rw: Rewriter, given: dict[str, Any], mask: str, padding: str, sizes: tuple[int, ...]) -> FixedMask:
    """`is_causal` is only a hint beside a mask here, and without one an error of torch's own."""
    if given.get(padding) is not None:
        raise CanNotWrite(*_PADDING)
    return fixed_mask(rw, given.get(mask), sizes, causal=False, true_keeps=False)


def _heads(w: LayerWriter, query: Node, key: Node, value: Node, mask: FixedMask) -> tuple[Node, Node]:
    """(N, T, E) -> ((N, T, E), shares (N, heads, T, S))."""
    m: nn.MultiheadAttention = w.module
    if not m.batch_first:
        raise CanNotWrite(*_BATCH_FIRST)
    if m.bias_k is not None or m.add_zero_attn:
        raise CanNotWrite("it adds a key of its own", "leave add_bias_kv and add_zero_attn out")
    if any(len(shape_of(x)) != 3 for x in (query, key, value)):
        raise CanNotWrite("its inputs have no batch axis", "pass (batch, tokens, features)")
    size, heads = m.embed_dim, m.num_heads
    projected = _projected(w, m, query, key, value)

    def apart(x: Node) -> Node:
        return w.permute(w.reshape(x, shape_of(x)[1], heads, size // heads), 0, 2, 1, 3)

    q, k, v = map(apart, projected)
    values, shares = attention(w, q, k, v, 1.0, mask, m.dropout)
    together = w.reshape(w.permute(values, 0, 2, 1, 3), shape_of(query)[1], size)
    out = w.at("out_proj")
    weight = out.parameter("weight")
    assert weight is not None
    return out.linear(together, weight, out.parameter("bias")), shares


def _projected(w: LayerWriter, m: nn.MultiheadAttention, query: Node, key: Node, value: Node) -> list[Node]:
    """Queries, already scaled, keys and values (N, T, E): of one value by one layer, of several by a layer each."""
    size, scale = m.embed_dim, (m.embed_dim // m.num_heads) ** -0.5
    weight, bias = w.parameter("in_proj_weight"), w.parameter("in_proj_bias")
    like = next(m.parameters())
    factors = torch.cat([like.new_full((size,), scale), like.new_ones(2 * size)]).detach()
    scaling = w.constant("scale", factors)
    bias = None if bias is None else w.of_parameters(operator.mul, (3 * size,), bias, scaling)
    if weight is not None:
        column = w.of_parameters(torch.reshape, (3 * size, 1), scaling, (-1, 1))
        weight = w.of_parameters(operator.mul, (3 * size, size), weight, column)
        if query is key and key is value:
            joint = w.linear(query, weight, bias)
            return [w.cut(joint, 2, n * size, (n + 1) * size) for n in range(3)]
    made = []
    for n, x in enumerate((query, key, value)):
        part = (n * size, (n + 1) * size)
        own = w.parameter(f"{'qkv'[n]}_proj_weight") if weight is None else w.rows(weight, *part)
        assert own is not None
        if weight is None and n == 0:
            own = w.of_parameters(operator.mul, shape_of(own), own, scale)
        made.append(w.linear(x, own, None if bias is None else w.rows(bias, *part)))
    return made


# ---- nn.TransformerEncoder and its layers
def encoder(node: Node, rw: Rewriter) -> None:
    w = LayerWriter(rw, node)
    stack = isinstance(w.module, nn.TransformerEncoder)
    given = given_arguments(node, _STACK if stack else _LAYER)
    x: Node = given["src"]
    if len(shape_of(x)) != 3:
        raise CanNotWrite("its input has no batch axis", "pass (batch, tokens, features)")
    heads = (w.module.layers[0] if stack else w.module).self_attn.num_heads
    sizes = (shape_of(x)[0], heads, shape_of(x)[1], shape_of(x)[1])
    mask = _mask(rw, given, "mask" if stack else "src_mask", "src_key_padding_mask", sizes)
    if not stack:
        w.replace(node, _encoder_layer(w, x, mask))
        return
    for n, layer in enumerate(w.module.layers):
        if type(layer) is not nn.TransformerEncoderLayer:
            raise CanNotWrite(f"its layers are of type {type(layer).__name__}", "call them one after the other")
        x = _encoder_layer(w.at(f"layers.{n}"), x, mask)
    w.replace(node, x if w.module.norm is None else _norm(w.at("norm"), x))


def _encoder_layer(w: LayerWriter, x: Node, mask: FixedMask) -> Node:
    m: nn.TransformerEncoderLayer = w.module

    def attend(v: Node) -> Node:
        return w.at("dropout1").dropout(_heads(w.at("self_attn"), v, v, v, mask)[0], m.dropout1.p)

    def feed(v: Node) -> Node:
        first, second = w.at("linear1"), w.at("linear2")
        hidden = _activation(w, first.linear(v, *_weights(first)), m.activation)
        return w.at("dropout2").dropout(second.linear(w.at("dropout").dropout(hidden, m.dropout.p), *_weights(second)), m.dropout2.p)

    for step, norm in ((attend, w.at("norm1")), (feed, w.at("norm2"))):
        x = w.add(x, step(_norm(norm, x))) if m.norm_first else _norm(norm, w.add(x, step(x)))
    return x


def _weights(w: LayerWriter) -> tuple[Node, Node | None]:
    weight = w.parameter("weight")
    assert weight is not None
    return weight, w.parameter("bias")


def _norm(w: LayerWriter, x: Node) -> Node:
    m = w.module
    if type(m) is not nn.LayerNorm:
        raise CanNotWrite(f"its norm is a {type(m).__name__}", "use nn.LayerNorm, or call the norm after the encoder")
    return w.unary(F.layer_norm, x, tuple(m.normalized_shape), w.parameter("weight"), w.parameter("bias"), m.eps)


def _activation(w: LayerWriter, x: Node, activation: Any) -> Node:
    if activation in (F.relu, torch.relu) or type(activation) is nn.ReLU:
        return w.unary(F.relu, x)
    if activation is F.gelu or (type(activation) is nn.GELU and activation.approximate == "none"):
        return w.unary(F.gelu, x)
    name = getattr(activation, "__name__", type(activation).__name__)
    raise CanNotWrite(f"its activation is {name}", "use 'relu' or 'gelu'")
