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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule

from pquant_fx.errors import OutputError, Problem
from pquant_fx.files import MARKER, owned_directory
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.lower.rtl.adapter import rtl_model
from pquant_fx.lower.rtl.assembly import write_layers
from pquant_fx.lower.rtl.circuit import Circuit, Design, build_circuit
from pquant_fx.lower.rtl.comparison import RtlReport, compared
from pquant_fx.lower.rtl.interface import TOP, interface
from pquant_fx.lower.rtl.layers import Layers, build_layers
from pquant_fx.lower.rtl.settings import SUFFIX, RtlSettings
from pquant_fx.lower.rtl.synthesis import Synthesis
from pquant_fx.lower.rtl.trust import require_trust
from pquant_fx.lower.rtl.yosys import synthesize

__all__ = ["RtlProject", "RtlSettings", "adder_graph", "to_rtl"]


@dataclass(frozen=True)
class PipelineStage:
    """A module of combinational logic; registers: bits held behind it; instances: how often it is in the design."""

    name: str
    registers: int
    instances: int = 1


@dataclass(frozen=True)
class RtlProject:
    """The RTL of a frozen network.

    cycles: clock edges from an input to its output, 0 without registers; a new input may come every cycle. modules: parts of the
    design that are used several times. register_bits: flip-flops in the RTL; adder_cost: alkaid's own figure, about the LUTs;
    trusted: how many samples alkaid's interpreter and ours agreed on before anything was written.
    """

    path: Path
    settings: RtlSettings
    circuit: Design = field(repr=False)
    cycles: int
    stages: tuple[PipelineStage, ...]
    modules: tuple[str, ...]
    register_bits: int
    adder_cost: float
    trusted: int
    digest: str

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that simulate and synthesise, without the wrapper of even widths."""
        return _sources(self.path, self.settings.flavor)

    def simulate(self, x: Any = None, samples: int = 20, tools: Sequence[str] | None = None) -> RtlReport:
        """Run the RTL on the first `samples` of x (an array, or one an input, samples first; without x: on samples that reach the corners
        of the formats) and compare every bit with our interpreter. tools: simulators, by default every one that is installed.

        Raises ConfigError (PQ405) for an unknown simulator, ExtraMissingError (PQ503) for a named one that is missing.
        """
        return compared(self, [x] if hasattr(x, "shape") else x, samples, tools)

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
) -> RtlProject:
    """Write the RTL of a frozen graph. x: real samples to compare on, besides those that reach the corners of the formats.

    A directory that holds this very design is left as it is; another one of ours is replaced with overwrite=True, and the results
    of its syntheses are kept. Raises LoweringError with every node that alkaid can not express (PQ201, PQ202, PQ303) or computes
    wrongly (PQ511), OutputError (PQ505, PQ506), ExtraMissingError (PQ503).
    """
    made = build_layers(gm, formats) if settings.structure == "layers" else build_circuit(gm, formats)
    trusted = require_trust(made, x)
    target = Path(output_dir).absolute()
    return _write(made, target, settings, trusted, overwrite)


def _write(circuit: Design, target: Path, settings: RtlSettings, trusted: int, overwrite: bool) -> RtlProject:
    with tempfile.TemporaryDirectory(prefix="pquant_fx_") as name:
        folder = Path(name) / "rtl"
        facts = _layered(circuit, folder, settings) if isinstance(circuit, Layers) else _flat(circuit, folder, settings)
        digest = _digest(folder, settings.flavor)
        project = RtlProject(target, settings, circuit, *facts, trusted, digest)
        if _holds(target, digest):
            return project
        with owned_directory(target, overwrite) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            (place / "interface.json").write_text(json.dumps(interface(project), indent=1) + "\n")
            earlier = target / "synthesis"
            if earlier.is_dir():
                shutil.copytree(earlier, place / "synthesis")
    return project


Facts = tuple[int, tuple[PipelineStage, ...], tuple[str, ...], int, float]
"""cycles, stages, modules, register bits and adder cost of a design."""


def _flat(circuit: Design, folder: Path, settings: RtlSettings) -> Facts:
    assert isinstance(circuit, Circuit)
    model = _model(circuit, folder, settings)
    model.write()
    widths = {name: int(s.width) for name, s in model.fsm.signals.items() if s.reg}
    names = tuple(model.fsm.logic)
    after = [widths.get(f"stage{n + 1}_inp", 0) for n in range(len(names))]
    after[-1] += widths.get("model_out", 0)
    after[0] += widths.get("model_inp_reg", 0)
    stages = tuple(PipelineStage(name, bits) for name, bits in zip(names, after))
    return int(model.fsm.out_signals[0].schedule.bias), stages, (), sum(widths.values()), float(circuit.program.cost)


def _model(circuit: Circuit, folder: Path, settings: RtlSettings) -> Any:
    return rtl_model(
        circuit.program, folder, TOP, flavor=settings.flavor, latency_cutoff=settings.cutoff or -1.0,
        clock_period=settings.clock_period, part=settings.part, ternary_adders=settings.ternary_adders,
    )  # fmt: skip


def _layered(circuit: Layers, folder: Path, settings: RtlSettings) -> Facts:
    period = {"latency_cutoff": settings.cutoff or -1.0, "clock_period": settings.clock_period}
    timing = write_layers(circuit, folder, TOP, part=settings.part, **period)
    used = Counter(one.module for layer in circuit.layers for one in layer.instances)
    stages = tuple(PipelineStage(name, bits, used[n]) for n, found in enumerate(timing.stages) for name, bits in found)
    registers = timing.waiting + sum(s.registers * s.instances for s in stages)
    cost = sum(used[n] * float(module.program.cost) for n, module in enumerate(circuit.modules))
    return timing.cycles, stages, tuple(f"layer{n}" for n in range(len(circuit.modules))), registers, cost


def adder_graph(gm: GraphModule, formats: FormatMap, settings: RtlSettings) -> tuple[float, int, int]:
    """Of the flat circuit, without writing it: alkaid's cost, bits of its registers, clock edges from input to output.

    Raises like `to_rtl`.
    """
    circuit = build_circuit(gm, formats)
    model = _model(circuit, Path(TOP), settings)
    return float(circuit.program.cost), int(model.reg_bits), int(model.fsm.out_signals[0].schedule.bias)


def _sources(path: Path, flavor: str) -> tuple[Path, ...]:
    suffix = SUFFIX[flavor]
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
