"""A directory with the RTL of a frozen network: written whole, compared with our interpreter, simulated, synthesised.

src/            Verilog or VHDL; src/static/ holds alkaid's adders and multiplexers
interface.json  which bits of `model_inp` and `model_out` belong to which value, in which format, and after how many cycles
synthesis/      one JSON file a synthesised design
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule

from pquant_fx.errors import ConfigError, OutputError, Problem
from pquant_fx.files import MARKER, owned_directory
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.lower.rtl.adapter import alkaid_version, rtl_model
from pquant_fx.lower.rtl.circuit import Circuit, Port, build_circuit
from pquant_fx.lower.rtl.comparison import RtlReport, compared
from pquant_fx.lower.rtl.synthesis import Synthesis
from pquant_fx.lower.rtl.trust import require_trust
from pquant_fx.lower.rtl.yosys import synthesize

__all__ = ["RtlProject", "RtlSettings", "adder_graph", "to_rtl"]

TOP = "net"
_SUFFIX = {"verilog": "v", "vhdl": "vhd"}


@dataclass(frozen=True)
class RtlSettings:
    """clock_period: ns; latency_cutoff: the longest a stage may take by alkaid's delay model (ns), None: the clock period, 0: no
    registers; ternary_adders: adders of three terms, which vendors' tools map well and yosys does not; part: for the vendors' scripts.
    """

    clock_period: float = 5.0
    latency_cutoff: float | None = None
    flavor: str = "verilog"
    ternary_adders: bool = False
    part: str = "xcvu13p-flga2577-2-e"

    def __post_init__(self) -> None:
        problems = []
        if self.flavor not in _SUFFIX:
            problems.append(Problem("PQ405", f"there is no RTL flavor '{self.flavor}'", f"use one of {', '.join(_SUFFIX)}"))
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
        }


@dataclass(frozen=True)
class RtlProject:
    """The RTL of a frozen network. cycles: clock edges from an input to its output, 0 without registers; a new input may come
    every cycle. register_bits: flip-flops in the RTL; adder_cost: alkaid's own figure, about the LUTs; trusted: how many samples
    alkaid's interpreter and ours agreed on before anything was written.
    """

    path: Path
    settings: RtlSettings
    circuit: Circuit = field(repr=False)
    cycles: int
    stages: tuple[str, ...]
    stage_registers: tuple[int, ...]
    register_bits: int
    adder_cost: float
    trusted: int
    digest: str

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that simulate and synthesise, without the wrapper of even widths."""
        return _sources(self.path, self.settings.flavor)

    def simulate(self, x: Sequence[Any] | None = None, samples: int = 20, tools: Sequence[str] | None = None) -> RtlReport:
        """Run the RTL on the first `samples` of x (one array an input, samples first; without x: on samples that reach the corners
        of the formats) and compare every bit with our interpreter. tools: simulators, by default every one that is installed.

        Raises ConfigError (PQ405) for an unknown simulator, ExtraMissingError (PQ503) for a named one that is missing.
        """
        return compared(self, x, samples, tools)

    def synthesize(self, flow: str = "yosys", family: str = "xcup", timeout: float | None = None, progress: bool = True) -> Synthesis:
        """LUTs, flip-flops, carry chains, DSPs and logic depth by an open tool; a design that was synthesised before is read back.

        flow: yosys; family: as `synth_xilinx -family` names it (xcup: UltraScale+, xc7: Series 7). timeout: seconds.
        Raises ExtraMissingError (PQ503) without yosys, LoweringError (PQ512) when it fails, ConfigError (PQ405, PQ407).
        """
        return synthesize(self, flow, family, timeout, progress)


def to_rtl(
    gm: GraphModule,
    formats: FormatMap,
    output_dir: str | os.PathLike[str],
    settings: RtlSettings,
    x: Sequence[NDArray[np.float64]] | None = None,
    overwrite: bool = False,
    circuit: Circuit | None = None,
) -> RtlProject:
    """Write the RTL of a frozen graph. x: real samples to compare on, besides those that reach the corners of the formats.

    A directory that holds this very design is left as it is; another one of ours is replaced with overwrite=True, and the results
    of its syntheses are kept. Raises LoweringError with every node that alkaid can not express (PQ201, PQ202, PQ303) or computes
    wrongly (PQ511), OutputError (PQ505, PQ506), ExtraMissingError (PQ503).
    """
    made = build_circuit(gm, formats) if circuit is None else circuit
    trusted = require_trust(made, x)
    target = Path(output_dir).absolute()
    return _write(made, target, settings, trusted, overwrite)


def _write(circuit: Circuit, target: Path, settings: RtlSettings, trusted: int, overwrite: bool) -> RtlProject:
    with tempfile.TemporaryDirectory(prefix="pquant_fx_") as name:
        folder = Path(name) / "rtl"
        model = _model(circuit, folder, settings)
        model.write()
        cycles = int(model.fsm.out_signals[0].schedule.bias)
        registers = tuple(int(s.width) for s in model.fsm.signals.values() if s.reg)
        stages = tuple(model.fsm.logic)
        digest = _digest(folder, settings.flavor)
        project = RtlProject(
            target, settings, circuit, cycles, stages, _stage_registers(model, stages), sum(registers),
            float(circuit.program.cost), trusted, digest,
        )  # fmt: skip
        if _holds(target, digest):
            return project
        with owned_directory(target, overwrite) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            (place / "interface.json").write_text(json.dumps(_interface(project), indent=1) + "\n")
            earlier = target / "synthesis"
            if earlier.is_dir():
                shutil.copytree(earlier, place / "synthesis")
    return project


def _model(circuit: Circuit, folder: Path, settings: RtlSettings) -> Any:
    return rtl_model(
        circuit.program, folder, TOP, flavor=settings.flavor, latency_cutoff=settings.cutoff or -1.0,
        clock_period=settings.clock_period, part=settings.part, ternary_adders=settings.ternary_adders,
    )  # fmt: skip


def adder_graph(gm: GraphModule, formats: FormatMap, settings: RtlSettings) -> tuple[float, int, int]:
    """Of the circuit, without writing it: alkaid's cost, bits of its registers, clock edges from input to output. Raises like `to_rtl`."""
    circuit = build_circuit(gm, formats)
    model = _model(circuit, Path(TOP), settings)
    return float(circuit.program.cost), int(model.reg_bits), int(model.fsm.out_signals[0].schedule.bias)


def _stage_registers(model: Any, stages: tuple[str, ...]) -> tuple[int, ...]:
    """Bits that are registered at the end of each stage; the first stage counts the registers of the inputs besides."""
    widths = {name: int(s.width) for name, s in model.fsm.signals.items() if s.reg}
    after = [widths.get(f"stage{n + 1}_inp", 0) for n in range(len(stages))]
    after[-1] += widths.get("model_out", 0)
    after[0] += widths.get("model_inp_reg", 0)
    return tuple(after)


def _sources(path: Path, flavor: str) -> tuple[Path, ...]:
    suffix = _SUFFIX[flavor]
    own = sorted(p for p in (path / "src").glob(f"*.{suffix}") if p.stem != f"{TOP}_wrapper")
    return (*sorted((path / "src" / "static").glob(f"*.{suffix}")), *own)


def _digest(path: Path, flavor: str) -> str:
    made = hashlib.sha256()
    for source in _sources(path, flavor):
        made.update(source.name.encode() + b"\0" + source.read_bytes())
    return made.hexdigest()


def _holds(target: Path, digest: str) -> bool:
    """Whether the directory is ours and its sources are the ones that we would write."""
    if not (target / MARKER).exists() or not (target / "interface.json").exists():
        return False
    try:
        known = json.loads((target / "interface.json").read_text())
        return bool(known["sha256"] == digest and _digest(target, known["settings"]["flavor"]) == digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(Problem("PQ506", f"'{target}' holds a damaged interface.json: {error}", "remove the directory")) from error


def _interface(project: RtlProject) -> dict[str, Any]:
    program = project.circuit.program
    return {
        "top": TOP,
        "clock": "clk" if project.cycles else None,
        "cycles": project.cycles,
        "sha256": project.digest,
        "settings": project.settings.labels(),
        "inputs": _bits(project.circuit.inputs, np.asarray(program.inp_kifs, dtype=np.int64), "model_inp"),
        "outputs": _bits(project.circuit.outputs, np.asarray(program.out_kifs, dtype=np.int64), "model_out", every=True),
    }


def _bits(ports: Sequence[Port], kif: NDArray[np.int64], vector: str, every: bool = False) -> list[dict[str, Any]]:
    """For each port, in row-major order of its elements: the lowest bit in the vector, or null for an element that is always 0."""
    rows, element, bit = [], 0, 0
    for port in ports:
        low: list[int | None] = []
        formats: list[list[int]] = []
        for used in port.used:
            if not (used or every):
                low.append(None)
                formats.append([0, 0, 0])
                continue
            k, i, f = kif[:, element].tolist()
            low.append(bit if k + i + f > 0 else None)
            formats.append([k, i, f])
            bit += max(k + i + f, 0)
            element += 1
        rows.append({"name": port.name, "vector": vector, "shape": list(port.shape), "lowest_bit": low, "kif": formats})
    return rows
