"""The EBOPs of a network, node by node: `Ebops` prints itself as a table with rich, text and HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pquant_fx.errors import Problem
from pquant_fx.estimate.bits import Sign
from pquant_fx.tabular import html_table, rich_table, text_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Ebops", "EbopsRow"]

HEADERS = ("node", "module", "op", "EBOPs", "share", "parallel")
_SIGNS: dict[Sign, str] = {
    "hgq2": "signs of saturating quantizers",
    "weights_unsigned": "signs of data, not of parameters",
    "always": "all signs",
}


@dataclass(frozen=True)
class EbopsRow:
    """One operator. n_parallel: how many of its `positions` are computed at once; None where it has only one."""

    node: str
    module: str
    op: str
    ebops: float
    share: float
    n_parallel: int | None = None
    positions: int | None = None

    def cells(self) -> tuple[str, ...]:
        parallel = "" if self.n_parallel is None else f"{self.n_parallel} of {self.positions}"
        return self.node, self.module, self.op, number(self.ebops), f"{self.share:.1%}", parallel


@dataclass(frozen=True)
class Ebops:
    """Effective bit operations of one sample (Sun et al., arXiv 2405.00645), rows in the order of the graph.

    kind: `exact` counts enclosed bits of constants and stored bits of data, `surrogate` what training sees. sign: whose sign
    bits count. uncounted: what has no bits, and is left out of `total`.
    """

    rows: tuple[EbopsRow, ...]
    sign: Sign
    kind: Literal["exact", "surrogate"]
    uncounted: tuple[Problem, ...] = ()

    @property
    def total(self) -> float:
        return math.fsum(row.ebops for row in self.rows)

    @property
    def layers(self) -> dict[str, float]:
        """EBOPs of each module of the user's model, "" for what the model itself computes."""
        found: dict[str, float] = {}
        for row in self.rows:
            found[row.module] = found.get(row.module, 0.0) + row.ebops
        return found

    @property
    def summary(self) -> str:
        partial = any(row.n_parallel != row.positions for row in self.rows)
        parts = [self.kind, _SIGNS[self.sign], "streamed layers by n_parallel" if partial else "all positions in parallel"]
        if self.uncounted:
            parts.append(f"{len(self.uncounted)} operators not counted")
        return f"{number(self.total)} EBOPs ({'; '.join(parts)})"

    def __rich__(self) -> Table:
        return rich_table(HEADERS, self._cells(), "EBOPs", self.summary, right=("EBOPs", "share", "parallel"))

    def to_text(self) -> str:
        return text_of(self.__rich__())

    def to_html(self) -> str:
        """A `<table>` element."""
        return html_table(HEADERS, self._cells(), f"EBOPs: {self.summary}")

    def _repr_html_(self) -> str:
        return self.to_html()

    def __str__(self) -> str:
        return self.to_text()

    def _cells(self) -> Sequence[tuple[str, ...]]:
        return [row.cells() for row in self.rows]


def number(value: float) -> str:
    """Thousands separated, one decimal where it is not whole."""
    return f"{value:,.0f}" if value == round(value) or value >= 1e4 else f"{value:,.1f}"
