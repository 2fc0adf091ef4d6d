"""Side by side: every engine on the same samples, compared bit for bit with the integer interpreter's values.

`verify` never raises on a difference: it reports. An engine that could not run makes the report not ok, with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pquant_fx.errors import PQuantError

__all__ = ["Difference", "EngineRow", "VerifyReport", "compare_engines"]

Values = Sequence[npt.NDArray[np.float64]]
Engine = Callable[[], Values]


@dataclass(frozen=True)
class Difference:
    """The first output that differs: engine, output, how many samples, the first of them, and by how many lsb at most."""

    engine: str
    output: str
    samples: int
    first_sample: int
    max_ulp: float
    node: str | None = None
    line: str | None = None

    def __str__(self) -> str:
        where = f" first at node '{self.node}' ({self.line or 'no line'})" if self.node else ""
        samples = f"{self.samples} samples (first {self.first_sample})"
        return f"{self.engine}: output '{self.output}' differs on {samples}, at most {self.max_ulp:g} lsb{where}"


@dataclass(frozen=True)
class EngineRow:
    """One engine's line of the report. `different` counts samples with any differing output; None: it did not run."""

    engine: str
    different: int | None
    max_ulp: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `ok` is False on any difference and when a requested engine did not run."""

    samples: int
    rows: tuple[EngineRow, ...]
    first_difference: Difference | None

    @property
    def ok(self) -> bool:
        """Whether every requested engine ran and gave the reference's bits."""
        return all(row.different == 0 for row in self.rows)

    @property
    def table(self) -> str:
        """One line an engine, as text."""
        lines = [f"{'engine':28s} {'samples':>8s} {'different':>10s} {'max lsb':>8s} {'seconds':>8s}"]
        for row in self.rows:
            different = "not run" if row.different is None else str(row.different)
            lines.append(f"{row.engine:28s} {self.samples:8d} {different:>10s} {row.max_ulp:8g} {row.seconds:8.2f}  {row.note}".rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        verdict = "all engines agree bit for bit" if self.ok else str(self.first_difference or "an engine did not run")
        return f"{self.table}\n{verdict}"


def compare_engines(reference: Values, lsbs: Sequence[int], names: Sequence[str], engines: dict[str, Engine]) -> VerifyReport:
    """Run every engine and compare its outputs with `reference`.

    reference: float64 arrays (samples first); lsbs: exponent f of each output's lsb 2^-f; names: of the outputs.
    """
    rows: list[EngineRow] = []
    first: Difference | None = None
    samples = len(reference[0]) if reference else 0
    for engine, run in engines.items():
        start = time.perf_counter()
        try:
            values = run()
        except PQuantError as error:
            rows.append(EngineRow(engine, None, 0.0, time.perf_counter() - start, " ".join(str(error).split())))
            continue
        except Exception as error:  # an engine of other people: whatever it raises is a finding, not a crash of the report
            rows.append(EngineRow(engine, None, 0.0, time.perf_counter() - start, f"{type(error).__name__}: {error}"))
            continue
        seconds = time.perf_counter() - start
        bad = np.zeros(samples, dtype=bool)
        worst = 0.0
        for n, (expected, got) in enumerate(zip(reference, values, strict=True)):
            found = _difference(engine, names[n], expected, np.asarray(got, dtype=np.float64), lsbs[n])
            if found is None:
                continue
            mask, difference = found
            bad |= mask
            worst = max(worst, difference.max_ulp)
            first = first or difference
        rows.append(EngineRow(engine, int(bad.sum()), worst, seconds))
    return VerifyReport(samples, tuple(rows), first)


def _difference(
    engine: str, output: str, expected: npt.NDArray[np.float64], got: npt.NDArray[np.float64], f: int
) -> tuple[npt.NDArray[np.bool_], Difference] | None:
    """Which samples differ and how, or None when all bits agree. Negative zero is zero: integers know only one."""
    samples = len(expected)
    if expected.shape != got.shape:
        return np.ones(samples, dtype=bool), Difference(engine, output, samples, 0, float("inf"))
    wrong = ~(expected == got)
    if not wrong.any():
        return None
    per_sample = wrong.reshape(samples, -1).any(axis=1)
    ulp = float(np.nan_to_num(np.abs(expected - got), nan=np.inf).max() * 2.0**f)
    return per_sample, Difference(engine, output, int(per_sample.sum()), int(np.argmax(per_sample)), ulp)
