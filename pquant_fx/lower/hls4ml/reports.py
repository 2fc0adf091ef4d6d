"""What synthesis said, read from the directory where the vendor's tools ran, on this machine or another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pquant_fx.errors import InputError, Problem
from pquant_fx.lower.hls4ml.report_files import DamagedReport, csynth, timing, utilization

__all__ = ["SynthesisReports", "SynthesisStage", "read_reports"]

_COLUMNS = ("lut", "ff", "dsp", "bram_18k", "uram", "latency_min", "latency_max", "interval_min", "interval_max")
_CLOCKS = ("clock_period", "clock_estimate", "slack", "hold_slack")


@dataclass(frozen=True)
class SynthesisStage:
    """One report. stage: `csynth` (HLS's estimate), `vsynth` (after logic synthesis), `routed` or `timing`; file: where it is from.

    Counts are whole numbers but for half block RAMs; latency and interval in cycles; clocks and slacks in ns. None: not in it.
    """

    stage: str
    file: Path
    part: str = ""
    lut: float | None = None
    ff: float | None = None
    dsp: float | None = None
    bram_18k: float | None = None
    uram: float | None = None
    latency_min: float | None = None
    latency_max: float | None = None
    interval_min: float | None = None
    interval_max: float | None = None
    clock_period: float | None = None
    clock_estimate: float | None = None
    slack: float | None = None
    hold_slack: float | None = None
    available: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> dict[str, float]:
        """Share of the part that is used, by resource."""
        return {name: getattr(self, name) / there for name, there in self.available.items() if there and getattr(self, name) is not None}


@dataclass(frozen=True)
class SynthesisReports:
    """The stages that were found, in the order of the flow; each also by its name (`reports.csynth`), None when absent."""

    stages: tuple[SynthesisStage, ...]

    def _stage(self, name: str) -> SynthesisStage | None:
        return next((one for one in self.stages if one.stage == name), None)

    @property
    def csynth(self) -> SynthesisStage | None:
        return self._stage("csynth")

    @property
    def vsynth(self) -> SynthesisStage | None:
        return self._stage("vsynth")

    @property
    def routed(self) -> SynthesisStage | None:
        return self._stage("routed")

    @property
    def timing(self) -> SynthesisStage | None:
        return self._stage("timing")

    def __str__(self) -> str:
        shown = [name for name in (*_COLUMNS, *_CLOCKS) if any(getattr(one, name) is not None for one in self.stages)]
        rows = [["", *(one.stage for one in self.stages)]]
        rows += [[name, *(_text(getattr(one, name)) for one in self.stages)] for name in shown]
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        return "\n".join("  ".join(cell.rjust(w) if n else cell.ljust(w) for n, (cell, w) in enumerate(zip(row, widths))) for row in rows)


def read_reports(path: str | os.PathLike[str]) -> SynthesisReports:
    """Everything that Vitis HLS, Vivado HLS and Vivado left in an hls4ml project or below any directory.

    Read are `<top>_csynth.xml`, `report_utilization` and `report_timing_summary` files (.rpt), by the names in their headers.
    Raises InputError: PQ503 when there is no report of resources, or one is cut off, with the last line of the tool's log;
    PQ409 when `path` is no directory.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(Problem("PQ409", f"'{folder}' is no directory", "name the directory of the hls4ml project"))
    stages = [*_csynth(folder), *_vivado(folder)]
    if not any(one.lut is not None for one in stages):
        raise _missing(folder, f"there is no csynth.xml and no utilization report in {folder}")
    order = ("csynth", "vsynth", "routed", "timing")
    return SynthesisReports(tuple(sorted(stages, key=lambda one: order.index(one.stage))))


def _csynth(folder: Path) -> Iterator[SynthesisStage]:
    """The top function's report: other functions have reports of their own beside it."""
    found = sorted(folder.rglob("*csynth.xml"))
    script = folder / "project.tcl"
    named = re.search(r'set\s+project_name\s+"([^"]+)"', script.read_text(encoding="utf-8")) if script.exists() else None
    wanted = [file for file in found if named and file.name == f"{named[1]}_csynth.xml"] or [
        file for file in found if file.name == "csynth.xml"
    ]
    for file in (wanted or found)[:1]:
        numbers, available, part = _read(folder, file, csynth)
        yield SynthesisStage("csynth", file, part, **numbers, available=available)


def _vivado(folder: Path) -> Iterator[SynthesisStage]:
    """Utilization and timing; of several of a kind the last in the flow, which is the one written last."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.rpt"), key=lambda file: file.stat().st_mtime):
        head = file.read_text(encoding="utf-8", errors="replace")[:4000]
        if "Utilization Design Information" in head or "report_utilization" in head or file.name == "vivado_synth.rpt":
            state = re.search(r"Design State\s*:\s*(.+)", head)
            found["routed" if state and "Routed" in state[1] else "vsynth"] = file
        elif "Design Timing Summary" in head or "report_timing_summary" in head:
            found["timing"] = file
    for stage, file in found.items():
        if stage == "timing":
            yield SynthesisStage(stage, file, **_read(folder, file, timing))
        else:
            numbers, available, part = _read(folder, file, utilization)
            yield SynthesisStage(stage, file, part, **numbers, available=available)


def _read(folder: Path, file: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(file)
    except DamagedReport as error:
        raise _missing(folder, f"'{file}' is no whole report: {error}") from error


def _missing(folder: Path, what: str) -> InputError:
    """With the last line of the newest log: there it stands why."""
    logs = sorted((file for file in folder.rglob("*.log")), key=lambda file: file.stat().st_mtime)
    lines = [line.strip() for line in logs[-1].read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()] if logs else []
    last = f"; the last line of {logs[-1].name}: '{lines[-1]}'" if lines else "; there is no log either"
    killed = bool(lines) and re.search(r"\bkilled\b|out of memory|bad_alloc", lines[-1], re.IGNORECASE)
    remedy = (
        "it ran out of memory, likely: raise the reuse factor, or use a larger machine" if killed else "run synthesis (build) to its end"
    )
    return InputError(Problem("PQ503", what + last, remedy))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:g}" if value != int(value) else f"{int(value):,}"
