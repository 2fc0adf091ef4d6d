"""Numbers out of the files that Vitis HLS, Vivado HLS and Vivado write, found by the names of their headers.

Rows and columns move between versions of the tools; their names hardly do (`CLB LUTs` was `Slice LUTs`, `DSP` was `DSP48E`).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["DamagedReport", "csynth", "table_rows", "timing", "utilization"]

Numbers = dict[str, float]


class DamagedReport(Exception):
    """What a report lacks."""


_XML = {
    "clock_period": ("UserAssignments/TargetClockPeriod",),
    "clock_estimate": ("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod",),
    "latency_min": ("PerformanceEstimates/SummaryOfOverallLatency/Best-caseLatency",),
    "latency_max": ("PerformanceEstimates/SummaryOfOverallLatency/Worst-caseLatency",),
    "interval_min": ("PerformanceEstimates/SummaryOfOverallLatency/Interval-min",),
    "interval_max": ("PerformanceEstimates/SummaryOfOverallLatency/Interval-max",),
    "lut": ("AreaEstimates/Resources/LUT",),
    "ff": ("AreaEstimates/Resources/FF",),
    "dsp": ("AreaEstimates/Resources/DSP", "AreaEstimates/Resources/DSP48E"),
    "bram_18k": ("AreaEstimates/Resources/BRAM_18K",),
    "uram": ("AreaEstimates/Resources/URAM",),
}
_OPTIONAL = ("uram",)
_SITES = {
    "lut": ("CLB LUTs", "Slice LUTs"),
    "ff": ("CLB Registers", "Slice Registers", "Register as Flip Flop"),
    "dsp": ("DSPs", "DSP Slices"),
    "bram_18k": ("Block RAM Tile",),
    "uram": ("URAM",),
}


def csynth(path: Path) -> tuple[Numbers, Numbers, str]:
    """(numbers, what the part has, part) of `<top>_csynth.xml`. Latencies that depend on data (`undef`) are left out.

    Raises DamagedReport when the file ends early or lacks an element.
    """
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise DamagedReport(f"it ends in the middle ({error})") from error
    numbers, missing = Numbers(), []
    for name, places in _XML.items():
        text = next((found for place in places if (found := root.findtext(place)) is not None), None)
        value = _number(text)
        if value is not None:
            numbers[name] = value
        elif text is None and name not in _OPTIONAL:
            missing.append(places[0].rpartition("/")[2])
    if missing:
        raise DamagedReport(f"it has no {', '.join(missing)}")
    there = {
        name: _number(root.findtext(place.replace("/Resources/", "/AvailableResources/")))
        for name, places in _XML.items()
        for place in places
    }
    available = {name: value for name, value in there.items() if value is not None and name in _SITES}
    return numbers, available, (root.findtext("UserAssignments/Part") or "").strip()


def utilization(path: Path) -> tuple[Numbers, Numbers, str]:
    """(numbers, what the part has, part) of a `report_utilization`. A block RAM tile is two of 18 Kb.

    Raises DamagedReport when it has no LUTs, registers, block RAMs or DSPs.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    used, available = Numbers(), Numbers()
    for row in table_rows(text):
        site = row.get("Site Type", "").rstrip("*").strip()
        for name, sites in _SITES.items():
            value, there = _number(row.get("Used")), _number(row.get("Available"))
            if site in sites and value is not None and name not in used:
                scale = 2 if name == "bram_18k" else 1
                used[name] = value * scale
                if there is not None:
                    available[name] = there * scale
    missing = [_SITES[name][0] for name in _SITES if name not in used and name not in _OPTIONAL]
    if missing:
        raise DamagedReport(f"it has no row for {', '.join(missing)} with a column 'Used'")
    part = re.search(r"^\|\s*Device\s*:\s*(\S+)", text, re.MULTILINE)
    return used, available, part[1] if part else ""


def timing(path: Path) -> Numbers:
    """slack and hold_slack (ns, the worst of all paths), and clock_period (ns) if there is one clock, of a `report_timing_summary`.

    Raises DamagedReport without the table with the column WNS(ns).
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(_spaced_rows(text))
    slack = next((value for row in rows if (value := _number(row.get("WNS(ns)"))) is not None), None)
    if slack is None:
        raise DamagedReport("it has no number under WNS(ns)")
    numbers = Numbers(slack=slack)
    hold = next((value for row in rows if (value := _number(row.get("WHS(ns)"))) is not None), None)
    periods = {value for row in rows if (value := _number(row.get("Period(ns)"))) is not None}
    if hold is not None:
        numbers["hold_slack"] = hold
    if len(periods) == 1:
        numbers["clock_period"] = periods.pop()
    return numbers


def table_rows(text: str) -> Iterator[Mapping[str, str]]:
    """The rows of tables drawn with | and +, as column name -> cell. A table's first row names its columns."""
    header: list[str] | None = None
    fresh = False
    for line in text.splitlines():
        if line.startswith("+"):
            fresh = header is None
        elif line.startswith("|") and line.count("|") > 2:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if fresh:
                header, fresh = cells, False
            elif header is not None and len(cells) == len(header):
                yield dict(zip(header, cells))
        elif not line.strip():
            header = None


def _spaced_rows(text: str) -> Iterator[Mapping[str, str]]:
    """The first row under each header that is underlined column by column: `WNS(ns)  TNS(ns)` over `-------  -------`."""
    lines = text.splitlines()
    for n in range(1, len(lines) - 1):
        rule = lines[n].split()
        if not rule or any(set(word) != {"-"} for word in rule):
            continue
        header, cells = re.split(r"\s{2,}", lines[n - 1].strip()), re.split(r"\s{2,}", lines[n + 1].strip())
        if len(header) == len(rule) == len(cells):
            yield dict(zip(header, cells))


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").strip().lstrip("~<"))
    except ValueError:
        return None
