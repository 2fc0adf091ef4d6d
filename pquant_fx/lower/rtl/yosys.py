"""yosys: Verilog -> cells of a Xilinx family (Wolf 2013), counted per pipeline stage in one run.

Stages are kept as modules, so that their LUTs and their longest path can be told apart; everything inside one is flattened.
On the flattened pipeline the longest path would run on through the mapped registers.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.files import write_atomically
from pquant_fx.lower.rtl.synthesis import Stage, Synthesis, cells_of
from pquant_fx.lower.rtl.tools import require_tool, run_tool, tool_version
from pquant_fx.lower.rtl.watching import watching

if TYPE_CHECKING:
    from pquant_fx.lower.rtl.project import RtlProject

__all__ = ["FAMILIES", "synthesize"]

FAMILIES = ("xcup", "xcu", "xc7", "xc6s", "xc6v")
_PASSES = 52
"""Steps of synth_xilinx, for the progress bar."""
_STEP = re.compile(r"^\d+\.(\d+)\. (?:Executing|Printing) ([A-Z_0-9]*)")
_TREE = re.compile(r"^\s+\w+\s+\d+$\n", re.MULTILINE)
"""Lines of text that yosys 0.23 mixes into its JSON: which module is in which."""
_PATH = re.compile(r"Longest topological path in (\S+) \(length=(\d+)\)")


def synthesize(project: RtlProject, flow: str, family: str, timeout: float | None, progress: bool) -> Synthesis:
    """See RtlProject.synthesize."""
    if flow != "yosys":
        raise ConfigError(Problem("PQ405", f"there is no synthesis flow '{flow}'", "use yosys; the vendor's tools: build_vivado_prj.tcl"))
    if family not in FAMILIES:
        raise ConfigError(Problem("PQ405", f"there is no family '{family}'", f"families: {', '.join(FAMILIES)}"))
    if project.settings.flavor != "verilog":
        raise ConfigError(Problem("PQ407", f"yosys does not read {project.settings.flavor}", "write the RTL with flavor='verilog'"))
    program = require_tool("yosys", "synthesis")
    version = tool_version("yosys")
    file = project.path / "synthesis" / f"{project.digest[:16]}_{family}_{version}.json"
    if file.exists() and (known := _read(file)) is not None:
        return known
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pquant_fx_") as name, watching("yosys", _PASSES, progress) as step:
        folder = Path(name)
        (folder / "run.ys").write_text(_script(project, family))
        run_tool([program, "-q", "-v3", "run.ys"], folder, "yosys", timeout=timeout, watch=lambda line: _tell(line, step))
        try:
            counted = json.loads(_TREE.sub("", (folder / "stat.json").read_text()))
            paths = (folder / "depth.txt").read_text()
        except (OSError, ValueError) as error:
            raise LoweringError(Problem("PQ512", f"yosys wrote no statistics: {error}", "try another version of yosys")) from error
    made = _result(project, family, version, counted, paths, time.perf_counter() - start)
    write_atomically(file, made.to_json().encode())
    return made


def _script(project: RtlProject, family: str) -> str:
    sources = " ".join(f'"{p.absolute()}"' for p in project.sources)
    stages = " ".join(s.name for s in project.stages)
    return f"""read_verilog {sources}
setattr -mod -set keep_hierarchy 1 {" ".join([stages, *project.modules])}
synth_xilinx -family {family} -top net -flatten -noiopad -noclkbuf
tee -q -o stat.json stat -json
tee -q -o depth.txt ltp -noff {stages}
"""


def _tell(line: str, step: Any) -> None:
    match = _STEP.match(line)
    if match is not None and match[2]:
        step(int(match[1]), match[2].lower())


def _result(project: RtlProject, family: str, version: str, counted: dict[str, Any], paths: str, seconds: float) -> Synthesis:
    modules = {name.lstrip("\\"): cells_of(found["num_cells_by_type"]) for name, found in counted["modules"].items()}
    depths = {name.lstrip("\\"): int(length) for name, length in _PATH.findall(paths)}
    empty = cells_of({})
    stages = tuple(Stage(s.name, modules.get(s.name, empty), s.registers, depths.get(s.name, 0), s.instances) for s in project.stages)
    labels = {"tool": "yosys", "version": version, "command": f"synth_xilinx -family {family}, stages kept as modules"}
    return Synthesis(
        cells_of(counted["design"]["num_cells_by_type"]), stages, project.cycles, {**labels, "family": family, **project.settings.labels()},
        project.digest, round(seconds, 1),
    )  # fmt: skip


def _read(file: Path) -> Synthesis | None:
    """An earlier result; None when the file is damaged, which is as good as none."""
    try:
        return Synthesis.from_json(file.read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
