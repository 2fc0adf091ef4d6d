"""From what a circuit asks of the fabric to LUTs, flip-flops and cycles: coefficients fitted on syntheses that we ran ourselves.

`synthesis_runs.json` holds the runs; `python -m benchmarks.synthesis` makes them anew. The fit is done when it is asked for, and
its error is that of each run under the coefficients of all the others (leave one out).

    LUT     a adders + compares + tables
    FF      inputs + outputs + b adders cuts / delay      a sum is held for about as long everywhere; cuts = ceil(delay / cutoff) - 1
    cycles  ceil(c delay / cutoff) + 1
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pquant_fx.estimate.fabric import Demand

__all__ = ["Fit", "Run", "cycles_of", "fitted", "leave_one_out", "runs"]

DATA = Path(__file__).parent / "synthesis_runs.json"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One synthesised design: what it asked for, and what the tool counted. adder_cost: alkaid's own figure; delay: its ns."""

    name: str
    demand: Demand
    cutoff: float
    lut: int
    ff: int
    dsp: int
    cycles: int
    adder_cost: float
    delay: float

    @classmethod
    def of(cls, row: dict[str, Any]) -> Run:
        return cls(**{**row, "demand": Demand(**row["demand"])})


@dataclass(frozen=True)
class Fit:
    """One quantity: `predict(demand, cutoff)`; errors: of every run, relative, under the coefficients of the others."""

    coefficients: tuple[float, ...]
    errors: tuple[float, ...]
    predict: Callable[[Demand, float], float]

    @property
    def spread(self) -> float:
        """What an estimate may be off by, as a factor 1 + spread: nine of ten runs that were left out were closer."""
        return float(np.quantile(np.abs(self.errors), 0.9))

    @property
    def median(self) -> float:
        return float(np.median(np.abs(self.errors)))


@cache
def runs() -> tuple[tuple[Run, ...], str]:
    """The runs, and where they come from in one line."""
    data = json.loads(DATA.read_text())
    return tuple(Run.of(row) for row in data["runs"]), str(data["source"])


@cache
def fitted(quantity: str) -> Fit:
    """quantity: `lut`, `ff`, `delay` (ns), or `lut_of_cost`, which starts from alkaid's cost instead of the demand's adders."""
    return leave_one_out(quantity, runs()[0])


def leave_one_out(quantity: str, known: Sequence[Run]) -> Fit:
    model = _MODELS[quantity]
    coefficients = _solve(model, known)
    errors = []
    for n, run in enumerate(known):
        without = _solve(model, [*known[:n], *known[n + 1 :]])
        errors.append(_value(model, without, run) / model.target(run) - 1)
    return Fit(tuple(coefficients), tuple(errors), lambda d, cutoff: model.fixed(d) + float(model.columns(d, cutoff) @ coefficients))


def cycles_of(delay: float, cutoff: float) -> int:
    """Clock edges from input to output: a stage every `cutoff` ns, registers in front and behind; 0 without registers."""
    return max(math.ceil(delay / cutoff), 1) + 1 if cutoff > 0 else 0


@dataclass(frozen=True)
class _Model:
    columns: Callable[[Demand, float], Array]
    target: Callable[[Run], float]
    fixed: Callable[[Demand], float] = lambda d: 0.0


def _ff(d: Demand, cutoff: float) -> Array:
    cuts = max(math.ceil(d.delay / cutoff), 1) - 1
    return np.array([d.adders * cuts / d.delay if cuts else 0.0])


def _adders(d: Demand, cutoff: float) -> Array:
    return np.array([d.adders])


_MODELS = {
    "lut": _Model(_adders, lambda run: run.lut, lambda d: d.compares + d.tables),
    "ff": _Model(_ff, lambda run: run.ff, lambda d: d.inputs + d.outputs),
    "delay": _Model(lambda d, cutoff: np.array([d.delay]), lambda run: run.delay),
    "lut_of_cost": _Model(_adders, lambda run: run.lut),
}


def _of_run(model: _Model, run: Run) -> Array:
    demand = Demand(adders=run.adder_cost) if model is _MODELS["lut_of_cost"] else run.demand
    return model.columns(demand, run.cutoff)


def _solve(model: _Model, known: Sequence[Run]) -> Array:
    """Least squares of relative errors."""
    targets = np.array([model.target(run) for run in known], dtype=np.float64)
    rows = np.stack([_of_run(model, run) for run in known]) / targets[:, None]
    rest = 1.0 - np.array([model.fixed(run.demand) for run in known]) / targets
    found: Any = np.linalg.lstsq(rows, rest, rcond=None)[0]
    return np.asarray(found, dtype=np.float64)


def _value(model: _Model, coefficients: Array, run: Run) -> float:
    return model.fixed(run.demand) + float(_of_run(model, run) @ coefficients)
