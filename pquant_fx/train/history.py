"""What a training did, epoch by epoch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pquant_fx.train.events import EpochEnd

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["History", "describe"]


@dataclass(frozen=True)
class History:
    """The rows of all epochs, in order; `print(history)` shows them as a table."""

    rows: tuple[EpochEnd, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[EpochEnd]:
        return iter(self.rows)

    def __getitem__(self, at: int) -> EpochEnd:
        return self.rows[at]

    @property
    def last(self) -> EpochEnd:
        """The last epoch. Raises IndexError when there was none."""
        return self.rows[-1]

    def table(self) -> Table:
        """A rich table: epoch, stage, training loss, metrics, sparsity in percent, EBOPs and beta where bits are learned, seconds."""
        from rich.table import Table

        names = list(dict.fromkeys(name for row in self.rows for name in row.metrics))
        table = Table(title="training")
        learned = any(row.ebops is not None for row in self.rows)
        for name in ("epoch", "stage", "loss", *names, "sparsity", *(("EBOPs", "beta") if learned else ()), "seconds"):
            table.add_column(name, justify="left" if name == "stage" else "right")
        for row in self.rows:
            loss = _text(row.loss, ".5g")
            values = [f"{row.metrics[name]:.5g}" if name in row.metrics else "" for name in names]
            bits = [_text(row.ebops, ",.0f"), _text(row.beta, ".3g")] if learned else []
            table.add_row(str(row.epoch), row.stage, loss, *values, f"{row.sparsity:.2%}", *bits, f"{row.seconds:.2f}")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        screen = Console(file=io.StringIO(), width=120, color_system=None, force_terminal=False)
        screen.print(self.table())
        assert isinstance(screen.file, io.StringIO)
        return screen.file.getvalue()


def describe(row: EpochEnd) -> str:
    """One line for a progress bar."""
    parts = [row.stage.replace("_", "-")]
    if row.loss is not None:
        parts.append(f"loss {row.loss:.4g}")
    parts += [f"{name} {value:.4g}" for name, value in row.metrics.items()]
    if row.sparsity:
        parts.append(f"sparsity {row.sparsity:.1%}")
    if row.ebops is not None:
        parts.append(f"EBOPs {row.ebops:,.0f}")
    return "  ".join(parts)


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
