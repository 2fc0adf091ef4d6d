"""What synthesis counted: a table, JSON, and a picture; every figure with the tool and the settings that it comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pquant_fx.errors import ExtraMissingError, Problem
from pquant_fx.tabular import html_table, rich_table, text_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Cells", "Stage", "Synthesis", "cells_of"]

HEADERS = ("stage", "times", "LUT", "INV", "FF", "carry", "mux", "DSP", "BRAM", "SRL", "depth")


@dataclass(frozen=True)
class Cells:
    """lut: LUT1 to LUT6; inv: inverters, counted apart because most vanish into LUTs; ff: flip-flops; carry: CARRY4 and CARRY8;
    mux: MUXF7 to MUXF9; dsp: DSP48; bram: in halves of RAMB36; srl: LUTs that are shift registers.
    """

    lut: int
    inv: int
    ff: int
    carry: int
    mux: int
    dsp: int
    bram: float
    srl: int


@dataclass(frozen=True)
class Stage:
    """One pipeline stage. cells: of one instance; registers: bits held at its end (of the first stage also those of the inputs);
    depth: cells on the longest path, LUTs and carries alike; instances: how often it is in the design.
    """

    name: str
    cells: Cells
    registers: int
    depth: int
    instances: int = 1


def cells_of(counts: Mapping[str, int]) -> Cells:
    """From yosys's cell types."""

    def of(*prefixes: str) -> int:
        return sum(n for name, n in counts.items() if name.startswith(prefixes))

    bram = of("RAMB36") + of("RAMB18") / 2
    return Cells(of("LUT", "RAM32", "RAM64", "RAM128"), of("INV"), of("FD"), of("CARRY"), of("MUXF"), of("DSP"), bram, of("SRL"))


@dataclass(frozen=True)
class Synthesis:
    """A synthesised design. `total` counts everything; labels: tool, version, family, clock period, latency cutoff, ternary adders;
    digest: SHA-256 of the sources; cycles: latency in clock edges.
    """

    total: Cells
    stages: tuple[Stage, ...]
    cycles: int
    labels: Mapping[str, Any]
    digest: str
    seconds: float

    @property
    def depth(self) -> int:
        """The longest path of any stage, in cells."""
        return max((s.depth for s in self.stages), default=0)

    @property
    def summary(self) -> str:
        t = self.total
        text = f"{t.lut:,} LUT, {t.inv:,} INV, {t.ff:,} FF, {t.carry:,} carry, {t.dsp:,} DSP, {t.bram:g} BRAM, {self.cycles} cycles"
        return f"{text}, at most {self.depth} cells a stage"

    @property
    def source(self) -> str:
        """Where the figures come from, in one line."""
        one = self.labels
        ternary = "on" if one["ternary_adders"] else "off"
        structure = {"flat": "flat", "layers": "a module a layer"}[one.get("structure", "flat")]
        stage = f"latency cutoff {one['latency_cutoff_ns']:g} ns, clock {one['clock_period_ns']:g} ns"
        return f"{one['tool']} {one['version']}, {one['command']}; alkaid {one['alkaid']}, {structure}, {stage}, ternary adders {ternary}"

    def table(self) -> Table:
        return rich_table(HEADERS, self._rows(), "Synthesis", f"{self.source}; {self.seconds:.0f} s", HEADERS[1:])

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return text_of(self.table())

    def to_text(self) -> str:
        return str(self)

    def to_html(self) -> str:
        return html_table(HEADERS, self._rows(), self.source)

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [_row(s.name, s.instances, s.cells, s.registers, s.depth) for s in self.stages]
        return [*rows, _row("design", 1, self.total, self.total.ff, self.depth)]

    # ---- files
    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Synthesis:
        """Raises ValueError, KeyError or TypeError for a text that is no result of ours."""
        data = json.loads(text)
        stages = tuple(Stage(**{**s, "cells": Cells(**s["cells"])}) for s in data.pop("stages"))
        return cls(total=Cells(**data.pop("total")), stages=stages, **data)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """A picture (.png, .svg, .pdf): LUTs, registers and depth of every stage. Raises ExtraMissingError (PQ503) without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ExtraMissingError(Problem("PQ503", "pictures need matplotlib", "pip install 'pquant_fx[rtl]'")) from error
        figure = Figure(figsize=(max(5.0, 0.35 * len(self.stages) + 3), 5.5), layout="constrained")
        rows = (
            ("LUT", [s.instances * s.cells.lut for s in self.stages]),
            ("FF", [s.instances * s.registers for s in self.stages]),
            ("depth", [s.depth for s in self.stages]),
        )
        for axes, (name, values) in zip(figure.subplots(3, 1, sharex=True), rows):
            axes.bar(range(len(values)), values, color="#3b6ea5")
            axes.set_ylabel(f"{name} (cells)" if name == "depth" else name)
            axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(range(len(self.stages)))
        axes.set_xlabel("pipeline stage")
        figure.suptitle(f"{self.summary}\n{self.source}", fontsize=7)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
        return target


def _row(name: str, instances: int, cells: Cells, registers: int, depth: int) -> tuple[str, ...]:
    numbers = (instances, cells.lut, cells.inv, registers, cells.carry, cells.mux, cells.dsp)
    return (name, *(f"{n:,}" for n in numbers), f"{cells.bram:g}", f"{cells.srl:,}", str(depth))
