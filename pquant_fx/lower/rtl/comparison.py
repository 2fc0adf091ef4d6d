"""The written RTL in simulators against our integer interpreter, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.lower.rtl.simulate import SIMULATORS, simulate
from pquant_fx.lower.rtl.tools import TOOLS, found, require_tool, tool_version
from pquant_fx.lower.rtl.trust import probes, vectors
from pquant_fx.lower.verify import VerifyReport, compare_engines

if TYPE_CHECKING:
    from pquant_fx.lower.rtl.project import RtlProject

__all__ = ["RtlReport", "compared"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RtlReport:
    """What simulation found. skipped: a line for each simulator that is not installed, with the package that holds it."""

    report: VerifyReport
    skipped: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that ran gave the interpreter's bits."""
        return self.report.ok

    def __str__(self) -> str:
        return "\n".join([str(self.report), *self.skipped])


def compared(project: RtlProject, x: Sequence[Any] | None, samples: int, tools: Sequence[str] | None) -> RtlReport:
    circuit, known = project.circuit, SIMULATORS[project.settings.flavor]
    for name in tools or ():
        if name not in known:
            what = f"'{name}' does not simulate {project.settings.flavor}"
            raise ConfigError(Problem("PQ405", what, f"simulators: {', '.join(known)}"))
        require_tool(name, "this simulation")
    chosen = tuple(tools) if tools is not None else tuple(name for name in known if found(name))
    missing = [] if tools is not None else [name for name in known if not found(name)]
    inputs = [np.asarray(v, dtype=np.float64)[:samples] for v in x] if x is not None else _spread(probes(circuit), samples)
    entered, expected = vectors(circuit, inputs)
    kif = circuit.input_kif, circuit.output_kif

    def simulated(name: str) -> Callable[[], list[Array]]:
        return lambda: _parts(simulate(project.sources, "net", name, entered, kif[0], kif[1], project.cycles).outputs, circuit)

    engines: dict[str, Callable[[], Any]] = {"alkaid interpreter": lambda: _parts(circuit.evaluate(entered), circuit)}
    engines |= {f"RTL in {name} {tool_version(name)}": simulated(name) for name in chosen}
    lsbs = [int(p.kif[2].max(initial=0)) for p in circuit.outputs]
    report = compare_engines(_parts(expected, circuit), lsbs, [p.name for p in circuit.outputs], engines)
    return RtlReport(report, tuple(f"{name}: skipped, it is not installed ({TOOLS[name].package})" for name in missing))


def _spread(inputs: Sequence[Array], count: int) -> list[Array]:
    """So many samples of the probes, from all of their kinds."""
    at = np.unique(np.linspace(0, len(inputs[0]) - 1, min(count, len(inputs[0]))).astype(int))
    return [x[at] for x in inputs]


def _parts(flat: Array, circuit: Any) -> list[Array]:
    """Side by side outputs, one array a port."""
    ends = np.cumsum([int(np.prod(p.shape)) for p in circuit.outputs])
    return [flat[:, end - int(np.prod(p.shape)) : end].reshape(-1, *p.shape) for end, p in zip(ends, circuit.outputs)]
