"""lift_numbers: numbers that hardware has to round become constants of the graph, where they get a format.

    x * 0.1     ->  x * c              c = 0.1, a constant of ours that `insert_quantizers` rounds to the weights' width
    x + 0.3     ->  x + c              c = 0.3, rounded to the lsb of what it is added to
    x / 3       ->  x * c              c = 1 / 3
    x / sd      ->  x * (1.0 / sd)     sd a parameter or buffer: its reciprocal is what gets multiplied, so it is quantized

A number of few significant bits (0.5, -3, 1.25) is exact as it is and stays, as does a division by a power of two.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from pquant_fx.config import Config
from pquant_fx.graph.dialect import is_parameter_value
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.settings import settings_of

__all__ = ["LiftNumbers", "significant_bits"]

_OPERATIONS = (operator.add, operator.sub, operator.mul)


@dataclass(frozen=True)
class LiftNumbers:
    """Lift numbers with more significant bits than a weight of the layer holds. Exact: a number has the same value as a constant."""

    config: Config
    name: ClassVar[str] = "lift_numbers"
    exact: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            if node.target not in (*_OPERATIONS, operator.truediv) or is_parameter_value(node):
                continue
            settings = settings_of(self.config, gm, node)
            if settings.quantize:
                _lift(node, rw, settings.weight_bits - 1)
        return rw.changed


def significant_bits(number: float) -> int:
    """Bits from the first to the last that is set: 1 for powers of two, 0 for 0, 52 for 0.1."""
    codes = abs(Fraction(number).numerator)
    return (codes // (codes & -codes)).bit_length() if codes else 0


def _lift(node: Node, rw: Rewriter, bits: int) -> None:
    operands: Any = node.args
    a, b = operands
    if node.target in _OPERATIONS:
        for number in (a, b):
            if _is_number(number) and significant_bits(number) > bits:
                with rw.before(node):
                    made = _constant(node, rw, number)
                rw.set_args(node, *(made if x is number else x for x in node.args))
        return
    with rw.before(node):
        if _is_number(b) and b != 0 and significant_bits(b) > 1:
            inverse = 1 / b
            factor = _constant(node, rw, inverse) if significant_bits(inverse) > bits else inverse
        elif isinstance(b, Node) and is_parameter_value(b):
            factor = rw.call(operator.truediv, 1.0, b)
            set_info(factor, info(factor).with_shape(info(b).shape))
        else:
            return
        rw.replace(node, rw.call(operator.mul, a, factor))


def _constant(node: Node, rw: Rewriter, number: float) -> Node:
    """In float64, without dimensions: torch computes with it as with the number itself."""
    device = next((t.device for t in rw.gm.parameters()), torch.device("cpu"))
    return rw.constant(f"{info(node).path or node.name}.number", torch.tensor(float(number), dtype=torch.float64, device=device))


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
