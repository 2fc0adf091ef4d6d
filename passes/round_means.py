"""round_means: a mean over P elements that are no power of two becomes their exact sum times a fixed-point reciprocal.

    torch.mean(x, (2, 3), False)                ->   scaled_sum(x, (2, 3), False, r)
    F.avg_pool2d(x, (3, 3), (3, 3), ...)        ->   scaled_pool(x, (3, 3), (3, 3), ..., r)

r is 1/P rounded to W + ceil(log2 P) + 1 fraction bits, W the width of the data here: less than a quarter of an lsb of a result
of W bits. Means over 2^n elements stay as they are: there the division moves the binary point. Windows that divide by different
numbers (padding left out, ceil_mode) stay as well, for `unsupported` to refuse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.config import Config
from pquant_fx.graph.dialect import is_parameter_value
from pquant_fx.graph.info import info
from pquant_fx.graph.interval_means import uniform_windows
from pquant_fx.graph.intervals import Inexact
from pquant_fx.graph.means import fixed_reciprocal, scaled_pool, scaled_sum
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.settings import settings_of

__all__ = ["RoundMeans"]


@dataclass(frozen=True)
class RoundMeans:
    """Rewrite every mean of data whose place is quantized. Not exact: the reciprocal is rounded."""

    config: Config
    name: ClassVar[str] = "round_means"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            count = None if is_parameter_value(node) else _averaged(node)
            if count is None or count & (count - 1) == 0:
                continue
            settings = settings_of(self.config, gm, node)
            if settings.quantize:
                with rw.before(node):
                    function = scaled_sum if node.target is torch.mean else scaled_pool
                    made = rw.call(function, *node.args, fixed_reciprocal(count, settings.data_bits))
                rw.replace(node, made)
                _note(rw, node, count, settings.data_bits)
        return rw.changed


def _note(rw: Rewriter, node: Node, count: int, bits: int) -> None:
    what = f"'{node.name}' takes {fixed_reciprocal(count, bits)!r} for 1/{count}"
    rw.note("PQ605", what, "average over 2^n elements for an exact mean, or give it more data_bits", node)


def _averaged(node: Node) -> int | None:
    """Over how many elements the mean goes; None for other nodes, and where windows divide by different numbers."""
    arguments: Any = node.args
    shape = info(arguments[0]).shape if arguments and isinstance(arguments[0], Node) else None
    if shape is None or node.target not in (torch.mean, F.avg_pool1d, F.avg_pool2d):
        return None
    if node.target is torch.mean:
        return math.prod(shape[a] for a in arguments[1])
    try:
        uniform_windows(shape[2:], *arguments[1:])
    except Inexact:
        return None
    return math.prod(arguments[1])
