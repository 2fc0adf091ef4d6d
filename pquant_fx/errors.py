"""Every error the compiler raises: what happened, where, and what to do next.

A `Problem` is one finding. An error carries one or many of them, because a user would rather mend five lines at once
than meet them one by one. Codes are grouped: PQ1xx tracing, PQ2xx operators and targets, PQ3xx numbers and formats,
PQ4xx configuration, checkpoints and training, PQ5xx files, tools and export, PQ6xx passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "CalibrationError",
    "ConfigError",
    "ExtraMissingError",
    "InputError",
    "LoweringError",
    "OutputError",
    "PQuantError",
    "PQuantWarning",
    "PassError",
    "Place",
    "Problem",
    "TraceError",
    "TrainingError",
    "TransferError",
]


@dataclass(frozen=True)
class Place:
    """Where something is: the node in the graph, the module path in the user's model, the user's `file.py:line`."""

    node: str | None = None
    module: str | None = None
    line: str | None = None

    def __str__(self) -> str:
        parts = []
        if self.node is not None:
            parts.append(f"node '{self.node}'")
        if self.module is not None:
            parts.append(f"module '{self.module or '<model>'}'")
        if self.line is not None:
            parts.append(self.line)
        return ", ".join(parts)


@dataclass(frozen=True)
class Problem:
    """One finding, printed as `code: what (where). remedy`."""

    code: str
    what: str
    remedy: str
    place: Place = field(default_factory=Place)
    severity: Literal["error", "info"] = "error"

    def __str__(self) -> str:
        where = f" [{self.place}]" if str(self.place) else ""
        return f"{self.code}: {self.what}{where}\n  -> {self.remedy}"


class PQuantError(Exception):
    """Base of every error of ours. `problems` holds all findings; `code`, `place`, `remedy` are those of the first."""

    problems: tuple[Problem, ...]

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        found = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not found:
            raise ValueError("an error needs at least one problem")
        self.problems = found
        super().__init__("\n".join(str(p) for p in found))

    def __reduce__(self) -> tuple[type[PQuantError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)

    @property
    def code(self) -> str:
        return self.problems[0].code

    @property
    def place(self) -> Place:
        return self.problems[0].place

    @property
    def remedy(self) -> str:
        return self.problems[0].remedy


class ConfigError(PQuantError):
    """A configuration that can not be honoured."""


class TraceError(PQuantError):
    """Code in a user's `forward` that can not become a circuit."""


class PassError(PQuantError):
    """A pass or a pipeline that broke a rule of the graph."""


class CalibrationError(PQuantError):
    """Data from which no format can be derived."""


class LoweringError(PQuantError):
    """A graph, an option or a format that a target can not express exactly."""


class TransferError(PQuantError):
    """A checkpoint that does not fit the model."""


class TrainingError(PQuantError):
    """Training that can not go on."""


class InputError(PQuantError, ValueError):
    """Data that does not fit the model: shapes, types, NaN."""


class OutputError(PQuantError):
    """A file or directory that can not be written."""


class ExtraMissingError(PQuantError, ImportError):
    """An optional package or an external tool that is not installed."""


class PQuantWarning(UserWarning):
    """Something the user should know although the compiler goes on."""
