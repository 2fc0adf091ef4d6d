"""Simulation of the written RTL: iverilog or verilator for Verilog, ghdl for VHDL."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pquant_fx.lower.rtl.testbench import NAME, packed, unpacked, verilog_bench, vhdl_bench
from pquant_fx.lower.rtl.tools import require_tool, run_tool, tool_version

__all__ = ["SIMULATORS", "Simulation", "simulate"]

SIMULATORS = {"verilog": ("iverilog", "verilator"), "vhdl": ("ghdl",)}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Simulation:
    """outputs: real values (samples, elements), NaN where a bit was unknown; seconds: building and running."""

    tool: str
    version: str
    outputs: Array
    seconds: float


def simulate(
    sources: Sequence[Path], top: str, tool: str, x: Array, inputs: NDArray[np.int64], outputs: NDArray[np.int64], cycles: int
) -> Simulation:
    """Run the design on x (samples, elements). inputs, outputs: the formats (3, elements) of the ports' elements.

    Raises ExtraMissingError (PQ503) without the tool, LoweringError (PQ512) when it fails.
    """
    program = require_tool(tool, "this simulation")
    start = time.perf_counter()
    bench = vhdl_bench if tool == "ghdl" else verilog_bench
    with tempfile.TemporaryDirectory(prefix="pquant_fx_") as name:
        folder = Path(name)
        text = bench(top, int(inputs.sum()), int(outputs.sum()), len(x), cycles)
        file = folder / f"{NAME}.{'vhd' if tool == 'ghdl' else 'v'}"
        file.write_text(text)
        (folder / "inputs.hex").write_text("\n".join(packed(x, inputs)) + "\n")
        files = _without_lint_comments(sources, folder) if tool == "verilator" else [str(p.absolute()) for p in sources]
        for command in _commands(tool, program, [*files, str(file)]):
            run_tool(command, folder, tool)
        lines = (folder / "outputs.hex").read_text().split()
    return Simulation(tool, tool_version(tool), unpacked(lines, outputs), time.perf_counter() - start)


def _without_lint_comments(sources: Sequence[Path], folder: Path) -> list[str]:
    """Older versions of verilator stop at comments that name warnings which they do not know."""
    copies = []
    for n, source in enumerate(sources):
        copy = folder / f"{n}_{source.name}"
        copy.write_text(re.sub(r"/\*\s*verilator lint_\w+[^*]*\*/|//\s*verilator lint_.*", "", source.read_text()))
        copies.append(str(copy))
    return copies


def _commands(tool: str, program: str, files: list[str]) -> list[list[str]]:
    if tool == "iverilog":
        return [
            [program, "-g2005", "-o", "run", "-s", NAME, *files],
            [require_tool("iverilog", "this simulation").replace("iverilog", "vvp"), "-n", "run"],
        ]
    if tool == "verilator":
        flags = ["--binary", "--timing", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-O3", "--x-assign", "fast", "-CFLAGS", "-O1"]
        return [[program, *flags, "--top-module", NAME, "-Mdir", "build", "-o", "run", *files], ["build/run"]]
    standard = ["--std=08", "-frelaxed", "--warn-no-hide"]
    return [[program, "-a", *standard, *files], [program, "-e", *standard, NAME], [program, "-r", *standard, NAME]]
