"""round_slopes: the slope of a leaky ReLU becomes a number that hardware can multiply with exactly.

    F.leaky_relu(x, 0.2)    ->   F.leaky_relu(x, 26 * 2^-7)        the grid of a weight of 8 bits
    F.leaky_relu(x, 0.01)   ->   F.leaky_relu(x, 5 * 2^-9)         three significant bits at least

A slope of few significant bits (0.125, 0.75) stays. Every fraction bit of a slope is one more of the exact result, which is
why a small one does not get as many significant bits as a weight has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.config import Config
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.lift_numbers import significant_bits
from pquant_fx.passes.settings import settings_of

__all__ = ["RoundSlopes"]

_LEAST = 3  # significant bits: a slope changes by 1/16 of itself at most


@dataclass(frozen=True)
class RoundSlopes:
    """Round slopes to the grid of the layer's weights (lsb 2^-(bits - 1)), with a note (PQ605) for each."""

    config: Config
    name: ClassVar[str] = "round_slopes"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            settings = settings_of(self.config, gm, node)
            if node.target is F.leaky_relu and settings.quantize:
                _round(node, rw, max(settings.weight_bits - 1, 1))
        return rw.changed


def _round(node: Node, rw: Rewriter, bits: int) -> None:
    x, slope = node.args
    if not isinstance(slope, float) or not math.isfinite(slope) or significant_bits(slope) <= bits:
        return
    mantissa, exponent = math.frexp(slope)
    bits = min(bits, max(bits + exponent, _LEAST))
    rounded = math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
    rw.note("PQ605", f"the slope {slope} of '{node.name}' became {rounded}", "give a dyadic slope such as 0.125, or more weight_bits", node)
    rw.set_args(node, x, rounded)
