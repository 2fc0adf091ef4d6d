"""A progress bar on a terminal, nothing anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Advance", "progress"]

Advance = Callable[[int, str], None]
"""`advance(steps, text)`: move the bar and replace the text behind it ("" keeps it)."""


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Yield the function that moves the bar. Where standard output is no terminal it does nothing and rich draws nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console if console is not None else Console()
    if not screen.is_terminal:
        yield _nothing
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task(title, total=total, text="")

        def advance(steps: int, text: str = "") -> None:
            if text:
                bar.update(task, advance=steps, text=text)
            else:
                bar.update(task, advance=steps)

        yield advance


def _nothing(steps: int, text: str) -> None:
    """Move no bar."""
