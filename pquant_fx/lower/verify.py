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
from pquant_fx.lower.locate import NodeDifference

__all__ = ["Difference", "EngineRow", "NodeDifference", "VerifyReport", "compare_engines"]

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
    """What `verify` found. `ok` is False on any difference, when a requested engine did not run, and on findings.

    samples: the given ones; stress: ties, saturating and wrapping ones that were made of them and count as well; nodes: where the
    engine of the first difference leaves torch, in order of computation; findings: what else is wrong (a file was changed).
    """

    samples: int
    rows: tuple[EngineRow, ...]
    first_difference: Difference | None
    stress: int = 0
    nodes: tuple[NodeDifference, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every requested engine ran and gave the reference's bits, and nothing else was found."""
        return not self.findings and all(row.different == 0 for row in self.rows)

    @property
    def table(self) -> str:
        """One line an engine, as text."""
        lines = [f"{'engine':28s} {'samples':>8s} {'different':>10s} {'max lsb':>8s} {'seconds':>8s}"]
        for row in self.rows:
            different = "not run" if row.different is None else str(row.different)
            counts = f"{self.samples + self.stress:8d} {different:>10s}"
            lines.append(f"{row.engine:28s} {counts} {row.max_ulp:8g} {row.seconds:8.2f}  {row.note}".rstrip())
        return "\n".join(lines)

    @property
    def node_table(self) -> str:
        """One line a node that differs, as text: its largest difference, the share of samples, the user's line."""
        lines = [f"{'node':32s} {'max lsb':>8s} {'samples':>8s}  {'line':20s} module"]
        for n in self.nodes[:_SHOWN]:
            lines.append(f"{n.node:32s} {n.max_ulp:8g} {n.share:8.1%}  {n.line or '':20s} {n.module}".rstrip())
        if len(self.nodes) > _SHOWN:
            lines.append(f"... and {len(self.nodes) - _SHOWN} more nodes")
        first = self.nodes[0]
        if first.searched is not None:
            lines.append(f"the worst input of '{first.node}' that a search found differs by {first.searched:g} lsb")
        return "\n".join(lines)

    def __str__(self) -> str:
        verdict = "all engines agree bit for bit" if self.ok else str(self.first_difference or "")
        if not self.ok and self.first_difference is None and any(row.different is None for row in self.rows):
            verdict = "an engine did not run"
        return "\n".join(filter(None, [self.table, *self.findings, verdict, self.node_table if self.nodes else ""]))


_SHOWN = 12


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
