"""Every design through alkaid, yosys and back: the table of estimates against synthesis, and the data of the estimates.

    python -m benchmarks.synthesis [--out build/synthesis] [--only 3] [--keep]

About ten minutes on one core at first; a design that was synthesised before is read back. --keep leaves the data file of
`FrozenModel.estimate` (pquant_fx/estimate/synthesis_runs.json) as it is. Each row's estimate has the coefficients of all other
rows (leave one out).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthesis.designs import DESIGNS, Design, build, digits
from pquant_fx.estimate.fabric import demand
from pquant_fx.estimate.synthesis_fit import DATA, Run, leave_one_out
from pquant_fx.lower.rtl.synthesis import Synthesis

QUANTITIES = {"LUT": "lut", "FF": "ff", "delay": "delay", "LUT from alkaid's cost": "lut_of_cost"}


def measure(design: Design, data: Any, folder: Path) -> tuple[Run, Synthesis, float]:
    """The run, what was synthesised, and the network's accuracy on the test set."""
    frozen = build(design, data)
    accuracy = float((frozen(data.x_test).argmax(1) == data.y_test).float().mean())
    project = frozen.to_rtl(folder, data.x_test[:200], overwrite=True)
    report = project.simulate([data.x_test[:20].numpy()], tools=("iverilog",))
    if not report.ok:
        raise SystemExit(f"{design.name}: the RTL differs\n{report}")
    result = project.synthesize()
    asked = demand(frozen.graph_module, frozen.formats)
    run = Run(
        design.name, asked, project.settings.cutoff, result.total.lut, result.total.ff, result.total.dsp, project.cycles,
        round(project.adder_cost, 1), round(float(project.circuit.program.latency[1]), 2),
    )  # fmt: skip
    return run, result, accuracy


def row_of(run: Run) -> dict[str, Any]:
    return {**{name: getattr(run, name) for name in Run.__dataclass_fields__}, "demand": run.demand.to_dict()}


def table(runs: list[Run]) -> str:
    fits = {name: leave_one_out(quantity, runs) for name, quantity in QUANTITIES.items()}
    lines = [f"{'design':48s} {'LUT':>7s} {'estimate':>9s} {'error':>7s} {'FF':>7s} {'estimate':>9s} {'error':>7s} {'cycles':>6s}"]
    for n, run in enumerate(runs):
        lut, ff = (fits[name].errors[n] for name in ("LUT", "FF"))
        figures = f"{run.lut:7,d} {run.lut * (1 + lut):9,.0f} {lut:+7.1%} {run.ff:7,d} {run.ff * (1 + ff):9,.0f} {ff:+7.1%} {run.cycles:6d}"
        lines.append(f"{run.name:48s} {figures}")
    for name, fit in fits.items():
        sizes = np.abs(fit.errors)
        lines.append(
            f"{name}: median error {np.median(sizes):.1%}, largest {sizes.max():.1%}, coefficients {np.round(fit.coefficients, 3)}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/synthesis"))
    parser.add_argument("--only", type=int, default=len(DESIGNS), help="the first so many designs")
    parser.add_argument("--keep", action="store_true", help="do not write the data file")
    given = parser.parse_args()
    data, runs, source = digits(), [], ""
    for n, design in enumerate(DESIGNS[: given.only]):
        run, result, accuracy = measure(design, data, given.out / f"{n:02d}")
        runs.append(run)
        source = result.source
        print(f"{design.name}: accuracy {accuracy:.1%}, {result.summary}", flush=True)
    print(table(runs))
    if not given.keep and given.only >= len(DESIGNS):
        DATA.write_text(json.dumps({"source": source, "runs": [row_of(run) for run in runs]}, indent=1) + "\n")
        print(f"written: {DATA}")


if __name__ == "__main__":
    main()
