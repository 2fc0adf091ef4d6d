"""Tables of texts as a rich table, as plain text and as HTML; the same bytes every time."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["html_table", "rich_table", "text_of"]

Rows = Iterable[Sequence[str]]


def rich_table(headers: Sequence[str], rows: Rows, title: str, caption: str, right: Sequence[str] = ()) -> Table:
    """A rich table; the columns named in `right` are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, caption=caption)
    for name in headers:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def text_of(table: Table, width: int = 240) -> str:
    """The table as plain text without trailing blanks."""
    from rich.console import Console

    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in screen.getvalue().splitlines()) + "\n"


def html_table(headers: Sequence[str], rows: Rows, caption: str) -> str:
    """A `<table>` element, to be put into a page."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headers)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
