"""place_quantizers: a `pq.fixed_point` call in the user's forward is a quantizer of the graph.

    fixed_point(x, 1, 2, 5, "RND", "SAT")   ->   FixedQuantizer(x)          k = 1, i = 2, f = 5
    self.q(x)                                ->   the same, marked as placed, where q is a Quantizer module of the user

The bits are numbers, or tensors that forward makes. Bits that are parameters or buffers may change, so such a call stays a
function: it trains, and freezing refuses it by name. Stochastic rounding rounds deterministically in evaluation from here on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.errors import PassError, PQuantError, Problem
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.info import info, place
from pquant_fx.graph.placed import mark_placed
from pquant_fx.graph.rewriter import OWN, Rewriter, is_own_constant
from pquant_fx.passes.canonical_form import NotCanonical, arguments
from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.quantize.static import FixedQuantizer

__all__ = ["place_quantizers"]


def place_quantizers(gm: GraphModule) -> bool:
    """Replace the calls whose format is constant, and mark what the user placed.

    Raises PassError (PQ306) for impossible formats, all of them at once.
    """
    rw = Rewriter(gm)
    problems: list[Problem] = []
    for node in list(gm.graph.nodes):
        if rw.module(node, Quantizer) is not None and not str(node.target).startswith(f"{OWN}."):
            mark_placed(node)
        if node.op == "call_function" and node.target is fixed_point:
            try:
                _replace(node, rw)
            except PQuantError as error:
                problems += [Problem(p.code, p.what, p.remedy, place(node)) for p in error.problems]
    if problems:
        raise PassError(problems)
    rw.sweep()
    return rw.changed


def _replace(node: Node, rw: Rewriter) -> None:
    names = ("x", "k", "i", "f", "rounding", "overflow", "noise")
    try:
        x, *bits, rounding, overflow, noise = arguments(node, *names, rounding="RND", overflow="SAT", noise=None)
    except NotCanonical:
        return
    values = [_constant(b, rw) for b in bits]
    if noise is not None or not isinstance(x, Node) or any(v is None for v in values):
        return
    k, i, f = (_on_axes(v, len(info(x).shape or ())) for v in values)
    with rw.before(node):
        quantizer = FixedQuantizer(k, i, f, rounding, overflow)
        made = rw.call_module(rw.own(f"{info(node).path}.fixed_point", quantizer), x)
    rw.inherit(made, node)
    mark_placed(made)
    rw.replace(node, made)


def _constant(bits: Any, rw: Rewriter) -> float | Tensor | None:
    """Bits that nothing can change; None for those that something can."""
    if isinstance(bits, Node):
        return rw.attribute(bits) if is_own_constant(bits) else None
    return float(bits) if isinstance(bits, int | float) else None


def _on_axes(bits: Any, rank: int) -> Any:
    """Bits of fewer axes than the value, by torch's broadcasting, with all of them: quantizers count axes from the batch."""
    return bits.reshape((1,) * (rank - bits.dim()) + tuple(bits.shape)) if isinstance(bits, torch.Tensor) and bits.dim() else bits
