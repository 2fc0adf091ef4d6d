"""expand_softmax: a softmax becomes operators that hardware has.

    F.softmax(x, axis)   ->   d = Quantizer(amax(x, axis) - x)      never negative; a format of its own, see below
                              e = exp_neg(d)                        a table; e lies in (0, 1]
                              e * inverse_sum(sum(e, axis))         a table; the sum is at least 1

Subtracting the maximum changes nothing but the range (e^(x - m) / sum e^(x - m)), so that tables of few bits are enough. d
saturates where e^-d falls below half an lsb of a share in [0, 1): what lies beyond is all the same, and the bits that data
would have asked for there serve the large shares. Places that a mask leaves out take the score of one that it does not, and then the
share 0. e, the sum and its reciprocal get their formats like any other value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.config import Config
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.masked_softmax import masked_softmax
from pquant_fx.graph.operand_marks import mark_exact_operands
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.tables import MAX_ENTRIES, exp_neg, inverse_sum
from pquant_fx.passes.layer_writer import LayerWriter
from pquant_fx.passes.settings import own_path, settings_of
from pquant_fx.quantize.quantizers import FixedQuantizer

__all__ = ["ExpandSoftmax"]


@dataclass(frozen=True)
class ExpandSoftmax:
    """Expand every softmax over one axis of a sample; others (over the batch, in another type) stay opaque."""

    config: Config
    name: ClassVar[str] = "expand_softmax"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            canonical = (node.target is F.softmax and len(node.args) == 2 and not node.kwargs) or node.target is masked_softmax
            settings = settings_of(self.config, gm, node)
            if canonical and settings.quantize and info(node).shape is not None:
                with rw.before(node):
                    new = _expanded(node, rw, settings.data_bits)
                rw.replace(node, new)
        return rw.changed


def _expanded(node: Node, rw: Rewriter, bits: int) -> Node:
    x, axis, kept = node.args[0], node.args[-1], node.args[1] if node.target is masked_softmax else None
    shape = info(node).shape or ()
    assert isinstance(x, Node)
    writer = LayerWriter(rw, node, info(node).path)
    x = x if kept is None else _stood_in(writer, x, kept, axis)
    one = tuple(1 if n == axis else size for n, size in enumerate(shape))

    def step(function: Callable[..., Any], *args: Any, sizes: tuple[int, ...] = shape) -> Node:
        return _sized(rw.call(function, *args), node, sizes)

    below = step(operator.sub, step(torch.amax, x, (axis,), True, sizes=one), x)
    path = rw.own(f"{own_path(node)}.quantizer", _exponent_format(bits))
    share = step(exp_neg, _sized(rw.call_module(path, below), node, shape))
    share = share if not isinstance(kept, Node) else writer.mul(share, kept)
    inverse = step(inverse_sum, step(torch.sum, share, (axis,), True, sizes=one), sizes=one)
    return rw.call(operator.mul, share, inverse)


def _stood_in(w: LayerWriter, x: Node, kept: Any, axis: Any) -> Node:
    """x with one that counts in the place of those of its row that do not: its range is theirs, and the largest one counts."""
    places = w.rw.attribute(kept).detach()
    first = torch.zeros_like(places).scatter(axis, places.argmax(axis, keepdim=True), 1.0)

    def chosen(values: Node, chosen_places: Node) -> Node:
        return mark_exact_operands(w.mul(values, chosen_places))

    if bool((first.select(axis, 0) == 1).all()):
        stand_in = w.cut(x, axis, 0, 1)
    else:
        stand_in = w.sum(chosen(x, w.constant("stand_in", first)), (axis,))
    return w.add(chosen(x, kept), chosen(stand_in, w.constant("excluded", 1 - places)))


def _sized(made: Node, like: Node, shape: tuple[int, ...]) -> Node:
    set_info(made, info(like).with_shape(shape))
    return made


def _exponent_format(bits: int) -> FixedQuantizer:
    """Unsigned, of so many bits, up to the first power of two D with e^-D < 2^-(bits + 1)."""
    width = min(bits, MAX_ENTRIES.bit_length() - 1)
    i = math.ceil(math.log2((bits + 1) * math.log(2)))
    return FixedQuantizer(0, i, width - i)
