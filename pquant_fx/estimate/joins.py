"""What the policies for joins cost: each add, maximum and concat under `align`, `shared` and `requant`, side by side.

    align     the branches' own formats meet; the result grows
    shared    both branches in one format, the smallest that holds either; the result grows from there
    requant   the branches' own formats meet; the result goes into the format of its quantizer, or where it has none into the
              one that `shared` would give the branches

EBOPs are those of the join itself (the rules of `costs`), the result's bits what each of its consumers pays for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.estimate.bits import NOTHING, Bits, Format, Sign, aligned, check_sign, total
from pquant_fx.estimate.ebops import number
from pquant_fx.estimate.exact import Exact
from pquant_fx.estimate.rules import rule_of
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.values import data_operands, is_data_quantizer, is_join
from pquant_fx.tabular import html_table, rich_table, text_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["JoinCost", "JoinCosts", "join_costs"]

HEADERS = ("join", "module", "op", "policy", "EBOPs", "bits of the result")
_GROWS = ("add", "sub")


@dataclass(frozen=True)
class JoinCost:
    """One join under one policy. result_bits: stored bits of its result, the mean over the elements; chosen: the graph has it."""

    node: str
    module: str
    op: str
    policy: str
    ebops: float
    result_bits: float
    chosen: bool

    def cells(self) -> tuple[str, ...]:
        mark = f"{self.policy} *" if self.chosen else self.policy
        return self.node, self.module, self.op, mark, number(self.ebops), f"{self.result_bits:.2f}"


@dataclass(frozen=True)
class JoinCosts:
    """Three rows a join, in the order of the graph; a star marks the policy that the graph has."""

    rows: tuple[JoinCost, ...]

    def __rich__(self) -> Table:
        return rich_table(HEADERS, self._cells(), "Joins", "* as compiled", right=HEADERS[-2:])

    def to_text(self) -> str:
        return text_of(self.__rich__())

    def to_html(self) -> str:
        """A `<table>` element."""
        return html_table(HEADERS, self._cells(), "Joins (* as compiled)")

    def _repr_html_(self) -> str:
        return self.to_html()

    def __str__(self) -> str:
        return self.to_text()

    def _cells(self) -> Sequence[tuple[str, ...]]:
        return [row.cells() for row in self.rows]


def join_costs(gm: GraphModule, formats: FormatMap | None = None, *, sign: str = "weights_unsigned") -> JoinCosts:
    """The joins of a compiled or frozen graph, at the formats that their branches have now.

    formats: what `analyse(gm)` found, to save the time. sign: as for EBOPs. Joins of values without a format are left out.
    Raises ConfigError (PQ405) for an unknown sign convention.
    """
    formats = analyse(gm) if formats is None else formats
    live, convention = live_nodes(gm), check_sign(sign)
    rows: list[JoinCost] = []
    for node in gm.graph.nodes:
        known = node in live and is_join(node) and all(formats.intervals.get(n) is not None for n in (node, *data_operands(node)))
        if known:
            rows += _rows(node, gm, formats, convention)
    return JoinCosts(tuple(rows))


def _rows(node: Node, gm: GraphModule, formats: FormatMap, sign: Sign) -> Iterator[JoinCost]:
    op = op_of(node)
    assert op is not None
    own = Exact(gm, formats, sign)
    shape = own.shape(node)
    common = _union([own.format(v) for v in data_operands(node)], len(shape), elementwise=op.name != "cat")
    shared = _Common(gm, formats, sign, dict.fromkeys(data_operands(node), common))
    grown = common._replace(i=common.i + (common.i > NOTHING)) if op.name in _GROWS else common
    chosen = _policy(node)
    requantized = own.format(next(iter(node.users))) if chosen == "requant" else common
    for policy, reader, result in (("align", own, own.format(node)), ("shared", shared, grown), ("requant", own, requantized)):
        bits = float(total(aligned(result.bits.total, len(shape)).expand(shape), shape)) / max(math.prod(shape), 1)
        yield JoinCost(node.name, info(node).label, op.name, policy, _cost(reader, node), bits, policy == chosen)


def _cost(reader: Exact, node: Node) -> float:
    rule = rule_of(node)
    cost: Any = None if rule is None or rule.cost is None else rule.cost(reader, node, *node.args)
    return 0.0 if cost is None else float(cost)


class _Common(Exact):
    """The same network with one format for some of its values."""

    def __init__(self, gm: GraphModule, formats: FormatMap, sign: Sign, given: Mapping[Any, Format]) -> None:
        super().__init__(gm, formats, sign)
        self._given = given

    def bits(self, value: Any) -> Bits:
        return self._given[value].bits if value in self._given else super().bits(value)

    def format(self, value: Any) -> Format:
        return self._given[value] if value in self._given else super().format(value)


def _union(formats: Sequence[Format], rank: int, elementwise: bool) -> Format:
    """The smallest format that holds every one of them; one for all elements where they stand in different places."""

    def largest(parts: Sequence[Tensor]) -> Tensor:
        if not elementwise:
            return torch.stack([p.amax() for p in parts]).amax()
        result = aligned(parts[0], rank)
        for part in parts[1:]:
            result = torch.maximum(result, aligned(part, rank))
        return result

    return Format(*(largest(parts) for parts in zip(*formats)))


def _policy(node: Node) -> str:
    """What the graph does at the join."""
    operands = data_operands(node)
    if all(map(is_data_quantizer, operands)) and len({str(o.target) for o in operands}) == 1:
        return "shared"
    return "requant" if node.users and all(map(is_data_quantizer, node.users)) else "align"
