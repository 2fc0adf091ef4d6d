"""LUTs, flip-flops, DSPs, block RAMs and latency of a frozen network, before any tool has run; every figure says where it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pquant_fx.estimate.fabric import Demand
from pquant_fx.estimate.synthesis_fit import cycles_of, fitted, runs
from pquant_fx.tabular import html_table, rich_table, text_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["AdderGraph", "Estimate", "EstimateRow", "estimate"]

HEADERS = ("resource", "estimate", "from", "to", "source")


@dataclass(frozen=True)
class AdderGraph:
    """What alkaid's own circuit says: its cost, the bits of its registers, its clock cycles. version: alkaid's."""

    cost: float
    register_bits: int
    cycles: int
    version: str


@dataclass(frozen=True)
class EstimateRow:
    """One figure with its spread: nine of ten designs that we synthesised were closer when they were left out of the fit."""

    resource: str
    value: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """Of the fully unrolled RTL (`to_rtl`), a result every clock cycle. Not figures of a vendor's tool."""

    rows: tuple[EstimateRow, ...]
    labels: Mapping[str, Any]

    def __getitem__(self, resource: str) -> EstimateRow:
        """EBOPs, LUT, FF, DSP, BRAM or cycles."""
        return next(row for row in self.rows if row.resource == resource)

    @property
    def lut(self) -> float:
        return self["LUT"].value

    @property
    def ff(self) -> float:
        return self["FF"].value

    @property
    def cycles(self) -> float:
        return self["cycles"].value

    def table(self) -> Table:
        cells = [(r.resource, f"{r.value:,.0f}", f"{r.low:,.0f}", f"{r.high:,.0f}", r.source) for r in self.rows]
        clock = f"clock {self.labels['clock_period_ns']:g} ns, latency cutoff {self.labels['latency_cutoff_ns']:g} ns"
        caption = f"fully unrolled, one result a cycle, {clock}\nsyntheses: {self.labels['runs']}"
        return rich_table(HEADERS, cells, "Estimate", caption, HEADERS[1:4])

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return text_of(self.table())

    def to_text(self) -> str:
        return str(self)

    def to_html(self) -> str:
        cells = [(r.resource, f"{r.value:,.0f}", f"{r.low:,.0f}", f"{r.high:,.0f}", r.source) for r in self.rows]
        return html_table(HEADERS, cells, "Estimate of the fully unrolled circuit")

    def to_json(self) -> str:
        return json.dumps({"rows": [asdict(row) for row in self.rows], "labels": dict(self.labels)}, indent=1) + "\n"


def estimate(asked: Demand, ebops: float, clock_period: float, cutoff: float, graph: AdderGraph | None = None) -> Estimate:
    """asked: of the network; ebops: its exact count; clock_period, cutoff in ns; graph: alkaid's circuit, where it was built."""
    known, source = runs()
    ours = f"fitted on {len(known)} syntheses"
    rows = [EstimateRow("EBOPs", ebops, ebops, ebops, "counted")]
    if graph is None:
        rows += [_row("LUT", "lut", asked, cutoff, ours), _row("FF", "ff", asked, cutoff, ours) if cutoff > 0 else _nothing("FF")]
    else:
        theirs = f"alkaid {graph.version}"
        rows += [_row("LUT", "lut_of_cost", Demand(adders=graph.cost), cutoff, f"{theirs}'s cost, {ours}")]
        rows += [EstimateRow("FF", graph.register_bits, graph.register_bits, graph.register_bits, f"{theirs}, counted")]
    rows += [EstimateRow("DSP", asked.dsps, 0.0, asked.dsps, "products of values, of 9 bits or more")]
    rows += [EstimateRow("BRAM", 0.0, 0.0, 0.0, "none: weights are wired, tables are LUTs")]
    if graph is None:
        delay = fitted("delay")
        middle = delay.predict(asked, cutoff)
        value, low, high = (float(cycles_of(middle * by, cutoff)) for by in (1.0, 1 / (1 + delay.spread), 1 + delay.spread))
        rows += [EstimateRow("cycles", value, low, high, ours)]
    else:
        rows += [EstimateRow("cycles", graph.cycles, graph.cycles, graph.cycles, f"{theirs}, counted")]
    return Estimate(tuple(rows), {"clock_period_ns": clock_period, "latency_cutoff_ns": cutoff, "runs": source})


def _row(resource: str, quantity: str, asked: Demand, cutoff: float, source: str) -> EstimateRow:
    fit = fitted(quantity)
    value = fit.predict(asked, cutoff)
    spread = f"{source}; each left out: {fit.median:.0%} off in the median"
    return EstimateRow(resource, value, value / (1 + fit.spread), value * (1 + fit.spread), spread)


def _nothing(resource: str) -> EstimateRow:
    return EstimateRow(resource, 0.0, 0.0, 0.0, "no registers were asked for")
