"""What a command prints: findings and tables as text for people or as JSON for scripts."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pquant_fx.errors import Problem

if TYPE_CHECKING:
    from pquant_fx.lower.verify import VerifyReport

__all__ = ["as_json", "aside", "problem_data", "problem_text", "report_data", "say"]


def as_json(data: Any) -> None:
    """Print `data` as JSON on standard output."""
    print(json.dumps(data, indent=2, allow_nan=False))


def say(text: str) -> None:
    """Tell a person what is going on; scripts and logs are left alone."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Send what engines and progress bars print to standard error: standard output holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def problem_text(problem: Problem) -> str:
    """A finding over several lines: code and what, where, and the remedy."""
    kind = "" if problem.severity == "error" else f" ({problem.severity})"
    lines = [f"{problem.code}{kind}: {problem.what}"]
    if str(problem.place):
        lines.append(f"  where: {problem.place}")
    return "\n".join([*lines, f"  remedy: {problem.remedy}"])


def problem_data(problems: Iterable[Problem]) -> list[dict[str, str | None]]:
    """Findings for JSON."""
    return [
        {
            "code": problem.code,
            "severity": problem.severity,
            "what": problem.what,
            "node": problem.place.node,
            "module": problem.place.module,
            "line": problem.place.line,
            "remedy": problem.remedy,
        }
        for problem in problems
    ]


def report_data(report: VerifyReport) -> dict[str, Any]:
    """A comparison of engines for JSON; a difference without a finite size has none."""
    rows = [
        {
            "engine": row.engine,
            "different": row.different,
            "max_lsb": row.max_ulp if math.isfinite(row.max_ulp) else None,
            "seconds": round(row.seconds, 3),
            "note": row.note,
        }
        for row in report.rows
    ]
    first = str(report.first_difference) if report.first_difference is not None else None
    nodes = [
        {"node": n.node, "module": n.module, "line": n.line, "max_lsb": n.max_ulp if math.isfinite(n.max_ulp) else None, "share": n.share}
        for n in report.nodes
    ]
    counted = {"samples": report.samples, "stress": report.stress}
    return {"ok": report.ok, **counted, "rows": rows, "first_difference": first, "nodes": nodes, "findings": list(report.findings)}
