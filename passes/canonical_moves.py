"""Rules of `canonicalize` for upsampling and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.canonical_form import NotCanonical, Rule, arguments, canonical, is_tensor, sample_shape

__all__ = ["MOVE_RULES"]

T = torch.Tensor
_NEAREST = ("nearest", "nearest-exact")  # the same for whole factors


def interpolation(node: Node, rw: Rewriter) -> Node | None:
    """Nearest by a whole factor along every axis -> upsample; by one along all of them -> nothing."""
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    x, _, scale, mode, *_ = arguments(node, *names, **{**dict.fromkeys(names[1:]), "mode": "nearest"})
    before, after = sample_shape(x)[1:], sample_shape(node)[1:]
    if mode not in _NEAREST or len(before) not in (1, 2) or any(b % a for a, b in zip(before, after)):
        raise NotCanonical
    factors = tuple(b // a for a, b in zip(before, after))
    given = scale if isinstance(scale, (tuple, list)) else [scale] * len(factors)
    if scale is not None and any(float(s) != factor for s, factor in zip(given, factors)):
        raise NotCanonical  # by 2.3, which size and rounding made a whole factor: the elements repeated are not those
    return canonical(node, rw, upsample, x, factors) if max(factors) > 1 else x


def embedding(node: Node, rw: Rewriter) -> Node | None:
    """Plain rows; a cast of the numbers to integers is part of it. What rescales rows or gradients stays opaque."""
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    x, weight, padding, norm, _, by_frequency, sparse = arguments(node, *names, **dict.fromkeys(names[2:]))
    if norm is not None or by_frequency or sparse or not is_tensor(weight):
        raise NotCanonical
    while isinstance(x, Node) and x.target in ("long", "int", T.long, T.int) and len(x.args) == 1:
        x = x.args[0]
    sample_shape(x)
    return canonical(node, rw, embed, x, weight, padding)


MOVE_RULES: dict[Callable[..., Any], Rule] = {F.interpolate: interpolation, F.embedding: embedding}
