"""EBOPs of every operator of the dialect, as one table: what it costs, and what bits come out of it.

cost: EBOPs of one sample, None for what is free (`costs`). move: where per-element bits go when values are only moved
(`moves`). grow: the exact format of what is computed (`growth`). An operator has either `move` or `grow`, or its result is
off grid until a quantizer rounds it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.estimate import costs, growth, growth_products, scaled
from pquant_fx.estimate.costs import Cost
from pquant_fx.estimate.growth import Growth
from pquant_fx.estimate.moves import MOVES, Move
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.graph.moves import embed

__all__ = ["RULES", "Rule", "rule_of"]


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    cost: Cost | None = None
    move: Move | None = None
    grow: Growth | None = None


RULES: dict[Callable[..., Any], Rule] = {
    F.linear: Rule(costs.linear, grow=growth_products.linear),
    **dict.fromkeys((F.conv1d, F.conv2d), Rule(costs.conv, grow=growth_products.conv)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d), Rule(costs.conv_transpose, grow=growth_products.conv_transpose)),
    torch.matmul: Rule(costs.matmul, grow=growth_products.matmul),
    operator.add: Rule(costs.add, grow=growth.add),
    operator.sub: Rule(costs.sub, grow=growth.sub),
    operator.mul: Rule(costs.mul, grow=growth.mul),
    operator.truediv: Rule(costs.div, grow=growth.div),
    operator.neg: Rule(costs.neg, grow=growth.neg),
    **dict.fromkeys((torch.maximum, torch.minimum), Rule(costs.extreme, grow=growth.union)),
    torch.sum: Rule(costs.reduce_sum, grow=growth.reduce_sum),
    torch.mean: Rule(costs.reduce_sum, grow=growth.mean),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d), Rule(costs.pool, grow=growth.avg_pool)),
    scaled_sum: Rule(scaled.sum_cost, grow=scaled.sum_format),
    scaled_pool: Rule(scaled.pool_cost, grow=scaled.pool_format),
    embed: Rule(grow=growth.embed),
    F.relu: Rule(grow=growth.relu),
    F.relu6: Rule(costs.relu6, grow=growth.relu6),
    F.hardtanh: Rule(costs.hardtanh, grow=growth.hardtanh),
    F.leaky_relu: Rule(costs.leaky_relu, grow=growth.leaky_relu),
    F.prelu: Rule(costs.prelu, grow=growth.prelu),
    **{function: Rule(move=move) for function, move in MOVES.items()},
    **{function: Rule(costs.pool, MOVES[function]) for function in (F.max_pool1d, F.max_pool2d)},
    torch.amax: Rule(costs.amax, MOVES[torch.amax]),
}
_TABLE = Rule(costs.table)


def rule_of(node: Node) -> Rule | None:
    """The row of `node`; None for what is no operator of the dialect."""
    op = op_of(node)
    if op is None or op.kind == "table":
        return None if op is None else _TABLE
    return RULES.get(node.target)  # type: ignore[arg-type]
