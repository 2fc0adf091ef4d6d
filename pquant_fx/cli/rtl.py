"""`pquant-fx estimate`, `rtl` and `synthesize`: hardware figures and RTL without vendor tools."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pquant_fx.cli.commands import DataFile, compiled_model
from pquant_fx.cli.config import ConfigName, InputOption, InputShape, Json, ModelName, SetOption
from pquant_fx.cli.inputs import random_inputs
from pquant_fx.cli.output import as_json, aside, report_data, say

if TYPE_CHECKING:
    from pquant_fx.frozen import FrozenModel

__all__ = ["estimate", "rtl", "synthesize"]

Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the RTL.")]
Clock = Annotated[float, typer.Option("--clock-period", help="ns.")]
Cutoff = Annotated[
    float | None, typer.Option("--latency-cutoff", help="ns that a pipeline stage may take; by default the clock period, 0: no registers.")
]
Ternary = Annotated[bool, typer.Option("--ternary-adders", help="Adders of three terms, for vendors' tools.")]
Structure = Annotated[str, typer.Option("--structure", help="flat: one circuit; layers: a module a layer, for every position the same.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the RTL of another design in that directory.")]
_SAMPLES = 256


def estimate(
    model: ModelName,
    config: ConfigName = "fixed8",
    data: DataFile = None,
    clock_period: Clock = 5.0,
    latency_cutoff: Cutoff = None,
    circuit: Annotated[bool, typer.Option("--circuit", help="Build alkaid's circuit and count on it.")] = False,
    input_shape: InputShape = None,
    input: InputOption = None,
    set_: SetOption = None,
    json: Json = False,
) -> None:
    """Estimate LUTs, flip-flops, DSPs and latency of the fully unrolled network; nothing is written.

    Example: pquant-fx estimate mynet:build --input-shape 16
    """
    frozen, _ = _frozen(model, config, set_, input_shape, input or [], data)
    found = frozen.estimate(clock_period, latency_cutoff, circuit)
    print(found.to_json() if json else found, end="")


def rtl(
    model: ModelName,
    out: Out,
    config: ConfigName = "fixed8",
    data: DataFile = None,
    flavor: Annotated[str, typer.Option("--flavor", help="verilog or vhdl.")] = "verilog",
    clock_period: Clock = 5.0,
    latency_cutoff: Cutoff = None,
    ternary_adders: Ternary = False,
    structure: Structure = "flat",
    samples: Annotated[int, typer.Option(min=0, help="Samples to simulate; 0: no simulation.")] = 20,
    overwrite: Overwrite = False,
    input_shape: InputShape = None,
    input: InputOption = None,
    set_: SetOption = None,
    json: Json = False,
) -> None:
    """Write Verilog or VHDL, and simulate it with what is installed of iverilog, verilator and ghdl.

    Example: pquant-fx rtl mynet:build --data data.npz --out build/rtl
    """
    frozen, x = _frozen(model, config, set_, input_shape, input or [], data)
    with aside():
        project = frozen.to_rtl(
            out, x, clock_period=clock_period, latency_cutoff=latency_cutoff, flavor=flavor, ternary_adders=ternary_adders,
            structure=structure, overwrite=overwrite,
        )  # fmt: skip
        report = project.simulate(frozen.samples(x), samples) if samples else None
    facts = {"out": str(project.path), "cycles": project.cycles, "register_bits": project.register_bits, "adder_cost": project.adder_cost}
    if json:
        as_json({"ok": report is None or report.ok, **facts, "simulation": None if report is None else report_data(report.report)})
    else:
        print(f"{project.path}: {project.cycles} cycles, {project.register_bits:,} register bits")
        print(report if report is not None else "not simulated")
    raise typer.Exit(0 if report is None or report.ok else 1)


def synthesize(
    model: ModelName,
    out: Out,
    config: ConfigName = "fixed8",
    data: DataFile = None,
    flow: Annotated[str, typer.Option("--flow", help="yosys.")] = "yosys",
    family: Annotated[str, typer.Option("--family", help="xcup (UltraScale+), xcu, xc7, xc6s or xc6v.")] = "xcup",
    clock_period: Clock = 5.0,
    latency_cutoff: Cutoff = None,
    ternary_adders: Ternary = False,
    structure: Structure = "flat",
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="A picture of the stages: .png, .svg or .pdf.")] = None,
    overwrite: Overwrite = False,
    input_shape: InputShape = None,
    input: InputOption = None,
    set_: SetOption = None,
    json: Json = False,
) -> None:
    """Write Verilog and count LUTs, flip-flops, carry chains, DSPs and logic depth of every stage with yosys.

    Example: pquant-fx synthesize mynet:build --data data.npz --out build/rtl --plot build/stages.png
    """
    frozen, x = _frozen(model, config, set_, input_shape, input or [], data)
    with aside():
        found = frozen.synthesize(
            out, x, flow=flow, family=family, timeout=timeout, clock_period=clock_period, latency_cutoff=latency_cutoff,
            ternary_adders=ternary_adders, structure=structure, overwrite=overwrite,
        )  # fmt: skip
        if plot is not None:
            found.plot(plot)
    if json:
        as_json(json_.loads(found.to_json()))
    else:
        print(found, end="")


def _frozen(
    model: str, config: str, settings: list[str] | None, input_shape: str | None, named: list[str], data: Path | None
) -> tuple[FrozenModel, Any]:
    """The frozen network, and real samples when there are some. Without data, formats fit random numbers."""
    with aside():
        compiled, inputs, given = compiled_model(model, config, settings, input_shape, named, data)
        if given is not None:
            return compiled.freeze(), given.first(_SAMPLES)
        if compiled.calibration_source == "shape":
            say("there is no data: formats are calibrated on random numbers")
            inputs = random_inputs(compiled.config.input_shapes(), _SAMPLES)
            compiled.calibrate(inputs)
        return compiled.freeze(), inputs
