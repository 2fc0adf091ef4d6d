"""The report as one self-contained page and as plain text: sections of titles and tables, the same bytes every time."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Printable", "Report", "Section"]

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; }
"""


class Printable(Protocol):
    """A table that prints itself."""

    def to_text(self) -> str: ...

    def to_html(self) -> str: ...


@dataclass(frozen=True)
class Section:
    """A heading with a table or with preformatted text under it."""

    title: str
    body: Printable | str


@dataclass(frozen=True)
class Report:
    """What a bundle says about itself."""

    title: str
    sections: Sequence[Section]

    def to_text(self) -> str:
        parts = [f"{self.title}\n{'=' * len(self.title)}\n"]
        for section in self.sections:
            body = section.body if isinstance(section.body, str) else section.body.to_text()
            parts.append(f"{section.title}\n{'-' * len(section.title)}\n{body.rstrip()}\n")
        return "\n".join(parts)

    def to_html(self) -> str:
        parts = []
        for section in self.sections:
            body = f"<pre>{html.escape(section.body)}</pre>\n" if isinstance(section.body, str) else section.body.to_html()
            parts.append(f"<h2>{html.escape(section.title)}</h2>\n{body}")
        title = html.escape(self.title)
        head = f'<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>'
        return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<h1>{title}</h1>\n{"".join(parts)}</body>\n</html>\n'
