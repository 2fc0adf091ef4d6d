"""What RTL is asked for, and how figures that follow from it are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.lower.rtl.adapter import alkaid_version

__all__ = ["SUFFIX", "RtlSettings"]

SUFFIX = {"verilog": "v", "vhdl": "vhd"}
"""Flavors, and how their files end."""


@dataclass(frozen=True)
class RtlSettings:
    """clock_period: ns; latency_cutoff: the longest a stage may take by alkaid's delay model (ns), None: the clock period, 0: no
    registers; ternary_adders: adders of three terms, which vendors' tools map well and yosys does not; part: for the vendors' scripts;
    structure: flat, or layers (see `layers`).
    """

    clock_period: float = 5.0
    latency_cutoff: float | None = None
    flavor: str = "verilog"
    ternary_adders: bool = False
    part: str = "xcvu13p-flga2577-2-e"
    structure: str = "flat"

    def __post_init__(self) -> None:
        problems = []
        if self.structure not in ("flat", "layers"):
            problems.append(Problem("PQ405", f"there is no structure '{self.structure}'", "use flat or layers"))
        elif self.structure == "layers" and (self.flavor != "verilog" or self.ternary_adders):
            what = "layers are written as Verilog without ternary adders"
            problems.append(Problem("PQ407", what, "leave out flavor and ternary_adders, or use structure='flat'"))
        if self.flavor not in SUFFIX:
            problems.append(Problem("PQ405", f"there is no RTL flavor '{self.flavor}'", f"use one of {', '.join(SUFFIX)}"))
        if not self.clock_period > 0:
            problems.append(Problem("PQ407", f"a clock period of {self.clock_period} ns", "give a number above 0"))
        if self.latency_cutoff is not None and not self.latency_cutoff >= 0:
            problems.append(Problem("PQ407", f"a latency cutoff of {self.latency_cutoff}", "give ns a stage, or 0 for no registers"))
        if problems:
            raise ConfigError(problems)

    @property
    def cutoff(self) -> float:
        return self.clock_period if self.latency_cutoff is None else self.latency_cutoff

    def labels(self) -> dict[str, Any]:
        """What every figure that follows from the RTL is labelled with."""
        return {
            "alkaid": alkaid_version(),
            "clock_period_ns": self.clock_period,
            "latency_cutoff_ns": self.cutoff,
            "ternary_adders": self.ternary_adders,
            "flavor": self.flavor,
            "structure": self.structure,
        }
