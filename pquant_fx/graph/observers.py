"""Observers of a pipeline: what each pass cost and what it changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch.fx import GraphModule

from pquant_fx.files import write_atomically
from pquant_fx.graph.text import diff, text

__all__ = ["Diff", "Dump", "Timing"]


@dataclass
class Timing:
    """Collects (pass, changed, seconds) in `rows`; the numeric checks of exact passes are not counted."""

    rows: list[tuple[str, bool, float]] = field(default_factory=list)

    def __call__(self, name: str, gm: GraphModule, changed: bool, seconds: float) -> None:
        self.rows.append((name, changed, seconds))

    @property
    def total(self) -> float:
        return sum(seconds for _, _, seconds in self.rows)

    def __str__(self) -> str:
        lines = [f"{name:30s} {'changed' if changed else '-':8s} {seconds * 1e3:9.2f} ms" for name, changed, seconds in self.rows]
        return "\n".join([*lines, f"{'total':39s} {self.total * 1e3:9.2f} ms"])


@dataclass
class Diff:
    """Collects a unified diff of the graph's text for each pass that changed something, by pass name."""

    changes: dict[str, str] = field(default_factory=dict)
    _last: str = ""

    def __call__(self, name: str, gm: GraphModule, changed: bool, seconds: float) -> None:
        now = text(gm, lines=False)
        if changed:
            self.changes[name] = diff(self._last, now, name)
        self._last = now


@dataclass(frozen=True)
class Dump:
    """Writes the graph's text after each pass to `<directory>/<number>_<pass>.txt`."""

    directory: str | Path

    def __call__(self, name: str, gm: GraphModule, changed: bool, seconds: float) -> None:
        folder = Path(self.directory)
        number = len(list(folder.glob("*.txt"))) if folder.exists() else 0
        write_atomically(folder / f"{number:02d}_{name}.txt", text(gm).encode())
