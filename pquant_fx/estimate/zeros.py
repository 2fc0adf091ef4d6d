"""Zeros in the weights, and how many of them save a multiplier in the strategy that the circuit is built with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.constants import constant_values
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info, place
from pquant_fx.tabular import rich_table, text_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Strategy", "Zeros", "ZerosRow", "zeros_of"]

Strategy = Literal["latency", "resource", "resource_unrolled"]
HEADERS = ("layer", "weights", "zeros", "share", "reuse", "multipliers", "saved", "note")


@dataclass(frozen=True)
class ZerosRow:
    """One layer. multipliers: what it has without any zero, positions of a convolution apart; saved: those that zeros make superfluous."""

    layer: str
    weights: int
    zeros: int
    reuse_factor: int
    multipliers: int
    saved: int

    @property
    def note(self) -> str:
        """Why zeros save nothing; empty where they do, or where there are none."""
        if not self.zeros or self.saved:
            return ""
        if self.reuse_factor == 1:
            return "weights are in memory: a zero is multiplied like any other"
        return f"no {self.reuse_factor} weights that share a multiplier are all zero"

    def cells(self) -> tuple[str, ...]:
        share = f"{self.zeros / max(self.weights, 1):.1%}"
        numbers = (f"{n:,}" for n in (self.reuse_factor, self.multipliers, self.saved))
        return self.layer, f"{self.weights:,}", f"{self.zeros:,}", share, *numbers, self.note


@dataclass(frozen=True)
class Zeros:
    """Zeros of the exported integer weights, layer by layer; `print` shows them as a table.

    latency             a constant that is 0 has no multiplier
    resource            weights come from memory, and zeros are multiplied like any others
    resource_unrolled   a multiplier goes where all weights that it serves in turn are 0: `reuse_factor` of them, in the
                        order output, kernel position, input
    """

    rows: tuple[ZerosRow, ...]
    strategy: Strategy

    @property
    def warnings(self) -> tuple[str, ...]:
        """The layers whose zeros save nothing, and why."""
        return tuple(f"{row.layer}: {row.zeros} zeros save nothing: {row.note}" for row in self.rows if row.note)

    def table(self) -> Table:
        cells = [row.cells() for row in self.rows]
        caption = f"{sum(r.saved for r in self.rows):,} of {sum(r.multipliers for r in self.rows):,} multipliers saved"
        return rich_table(HEADERS, cells, f"Zeros, strategy {self.strategy}", caption, HEADERS[1:7])

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return text_of(self.table())


def zeros_of(gm: GraphModule, strategy: str = "latency", reuse_factor: int | Mapping[str, int] = 1) -> Zeros:
    """Of a frozen graph. reuse_factor: for all layers, or by module path (others: 1).

    Raises ConfigError (PQ405) for an unknown strategy or layer, (PQ407) for a reuse factor that does not divide a layer's weights.
    """
    if strategy not in get_args(Strategy):
        raise ConfigError(Problem("PQ405", f"there is no strategy '{strategy}'", f"use one of {', '.join(get_args(Strategy))}"))
    found = list(_weights(gm))
    factors = dict(reuse_factor) if isinstance(reuse_factor, Mapping) else {info(node).label: reuse_factor for node, _ in found}
    unknown = sorted(factors.keys() - {info(node).label for node, _ in found})
    if unknown:
        known = ", ".join(sorted(info(node).label for node, _ in found))
        raise ConfigError(Problem("PQ405", f"there is no layer '{unknown[0]}' with weights", f"the layers are {known}"))
    rows = [_row(node, weight, str(strategy), factors.get(info(node).label, 1)) for node, weight in found]
    return Zeros(tuple(rows), strategy)  # type: ignore[arg-type]


def _weights(gm: GraphModule) -> Iterator[tuple[Node, Tensor]]:
    values: dict[Node, Any] = constant_values(gm)
    for node in gm.graph.nodes:
        op = op_of(node)
        if op is not None and op.kind == "weighted" and isinstance(values.get(node.args[1]), Tensor):
            yield node, values[node.args[1]]


def _row(node: Node, weight: Tensor, strategy: str, factor: int) -> ZerosRow:
    label, count = info(node).label, weight.numel()
    zeros = int((weight == 0).sum())
    if strategy == "latency":
        return ZerosRow(label, count, zeros, 1, count, zeros)
    if factor < 1 or count % factor:
        what = f"a reuse factor of {factor} does not divide the {count} weights of '{label}'"
        raise ConfigError(Problem("PQ407", what, "give a divisor, by module path for single layers", place(node)))
    if strategy == "resource":
        return ZerosRow(label, count, zeros, 1, math.ceil(count / factor), 0)
    served = _in_order(node, weight).reshape(-1, factor)
    return ZerosRow(label, count, zeros, factor, len(served), int((served == 0).all(1).sum()))


def _in_order(node: Node, weight: Tensor) -> Tensor:
    """The weights as output, kernel position, input, flat."""
    if node.target in (F.conv_transpose1d, F.conv_transpose2d):
        return torch.permute(weight, (1, *range(2, weight.dim()), 0)).reshape(-1)
    return torch.permute(weight, (0, *range(2, weight.dim()), 1)).reshape(-1)
