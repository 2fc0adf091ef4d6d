"""Masks of attention that are constants: which scores count, and what is added to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.constants import constant_values
from pquant_fx.graph.dialect import attribute_at, is_parameter_value
from pquant_fx.graph.masked_softmax import masked_softmax
from pquant_fx.graph.operand_marks import mark_exact_operands
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.layer_writer import CanNotWrite, LayerWriter, shape_of

__all__ = ["EXCLUDED", "NO_MASK", "FixedMask", "fixed_mask", "kept_places"]

EXCLUDED = -1e4
"""What is added to a score to exclude it, or less: its share is 0 in float32 as well."""
_DATA = ("its mask is computed from data", "use a constant mask: is_causal=True, or a buffer of True and False or of numbers")


@dataclass(frozen=True)
class FixedMask:
    """kept: 1 where a score counts, 0 elsewhere; None: all count. added: a value that depends on parameters, or numbers."""

    kept: Tensor | None = None
    added: Node | Tensor | None = None

    def shares(self, w: LayerWriter, scores: Node) -> Node:
        """The softmax of scores (N, ..., T, S) over S."""
        axis = len(shape_of(scores)) - 1
        if self.added is not None:
            bias = self.added if isinstance(self.added, Node) else w.constant("attention_bias", self.added)
            scores = mark_exact_operands(w.add(scores, bias))
        if self.kept is None:
            return w.unary(F.softmax, scores, axis)
        return w.unary(masked_softmax, scores, w.constant("attention_mask", self.kept), axis)


NO_MASK = FixedMask()


def fixed_mask(rw: Rewriter, mask: Any, scores: tuple[int, ...], *, causal: bool, true_keeps: bool) -> FixedMask:
    """The mask of scores of that shape, batch first. true_keeps: what True means in a mask of True and False.

    Raises CanNotWrite for one that depends on data or differs between samples, and for a row that excludes everything.
    """
    if causal:
        if mask is not None:
            raise CanNotWrite("it has a mask and is causal", "put both into one mask")
        return FixedMask(kept_places(torch.ones(scores[-2:]).tril(), scores))
    if mask is None:
        return NO_MASK
    if not isinstance(mask, Node) or not is_parameter_value(mask):
        raise CanNotWrite(*_DATA)
    if _learns(rw.gm, mask):
        return FixedMask(added=mask)
    value: Tensor = constant_values(rw.gm)[mask].cpu()
    if value.dtype == torch.bool:
        return FixedMask(kept_places((value if true_keeps else ~value).float(), scores))
    excluded = value <= EXCLUDED
    added = value.masked_fill(excluded, 0.0)
    kept = kept_places((~excluded).float(), scores) if bool(excluded.any()) else None
    return FixedMask(kept, _ranked(added, len(scores)) if bool(added.any()) else None)


def kept_places(kept: Tensor, scores: tuple[int, ...]) -> Tensor:
    """`kept` with the axes of the scores. Raises CanNotWrite unless it fits all samples and leaves something of every row."""
    made = _ranked(kept, len(scores))
    if made.dim() != len(scores) or made.shape[0] != 1 or any(a not in (1, s) for a, s in zip(made.shape[1:], scores[1:])):
        raise CanNotWrite(f"its mask of shape {tuple(kept.shape)} is not the same for all samples", "use a mask of shape (tokens, tokens)")
    if not bool(made.expand(1, *scores[1:]).any(dim=-1).all()):
        raise CanNotWrite("its mask leaves nothing of a row, whose softmax is no number", "let every token attend to one at least")
    return made


def _learns(gm: GraphModule, node: Node) -> bool:
    stack = [node]
    while stack:
        current = stack.pop()
        if current.op == "get_attr" and isinstance(attribute_at(gm, str(current.target)), nn.Parameter):
            return True
        stack += current.all_input_nodes
    return False


def _ranked(x: Tensor, rank: int) -> Tensor:
    """With axes of one in front, so that axis 0 is the batch."""
    return x.reshape((1,) * (rank - x.dim()) + tuple(x.shape))
