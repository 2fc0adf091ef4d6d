"""One row a value of the circuit: where it comes from, its exact format, its zeros, what its accumulator must hold, and its EBOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.fx import GraphModule, Node

from pquant_fx.estimate import Ebops, exact_ebops
from pquant_fx.estimate.ebops import number
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, module_of, op_of
from pquant_fx.graph.format_text import format_texts
from pquant_fx.graph.info import info
from pquant_fx.tabular import html_table, rich_table, text_of

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["GraphTable", "NodeRow", "graph_table"]

HEADERS = ("node", "module", "op", "shape", "format", "sparsity", "accumulator", "EBOPs")


@dataclass(frozen=True)
class NodeRow:
    """One value. shape: of one sample, or of the parameter; format: `fixed<W,I>` (W bits in all, I of them integer bits with
    sign), a range of I where channels differ, "" where the value is on no grid; zeros of `weights` codes are 0 (None for
    data); accumulator: the exact format that holds every intermediate sum; ebops: None where nothing is counted.
    """

    node: str
    module: str
    op: str
    shape: tuple[int, ...] | None
    format: str
    weights: int | None = None
    zeros: int | None = None
    accumulator: str = ""
    ebops: float | None = None

    @property
    def sparsity(self) -> float | None:
        """Share of zero codes in a parameter, None for data."""
        return None if not self.weights or self.zeros is None else self.zeros / self.weights

    def cells(self) -> tuple[str, ...]:
        shape = "" if self.shape is None else "x".join(map(str, self.shape)) or "scalar"
        sparsity = "" if self.sparsity is None else f"{self.sparsity:.1%}"
        ebops = "" if self.ebops is None else number(self.ebops)
        return self.node, self.module, self.op, shape, self.format, sparsity, self.accumulator, ebops


@dataclass(frozen=True)
class GraphTable:
    """Rows in the order of the graph. Prints itself with rich; `to_text` and `to_html` give the same bytes every time."""

    rows: tuple[NodeRow, ...]
    title: str = "network"
    ebops: Ebops | None = None

    @property
    def weights(self) -> int:
        """Number of weights (biases are not counted)."""
        return sum(r.weights or 0 for r in self.rows if r.op != "bias")

    @property
    def sparsity(self) -> float:
        """Share of zero codes among all weights."""
        zeros = sum(r.zeros or 0 for r in self.rows if r.op != "bias")
        return zeros / self.weights if self.weights else 0.0

    @property
    def summary(self) -> str:
        return f"{self.weights} weights, {self.sparsity:.1%} of them zero"

    @property
    def caption(self) -> str:
        """The summary, and the EBOPs with the conventions by which they were counted."""
        return self.summary if self.ebops is None else f"{self.summary}; {self.ebops.summary}"

    def __rich__(self) -> Table:
        return rich_table(HEADERS, self._cells(), self.title, self.caption, right=("shape", "sparsity", "EBOPs"))

    def to_text(self) -> str:
        return text_of(self.__rich__())

    def to_html(self) -> str:
        """A `<table>` element, to be put into a page; also what notebooks show."""
        return html_table(HEADERS, self._cells(), f"{self.title}: {self.caption}")

    def _repr_html_(self) -> str:
        return self.to_html()

    def _cells(self) -> list[tuple[str, ...]]:
        return [row.cells() for row in self.rows]


def graph_table(gm: GraphModule, formats: FormatMap, title: str = "network", ebops: Ebops | None = None) -> GraphTable:
    """The table of a compiled or frozen graph.

    Parameters appear as they are used, once per quantizer; the arithmetic that leads to them (masks, BatchNorm scales) is
    left out, as are values that carry no number. formats: what `analyse(gm)` returned. ebops: the count to show, by default
    the exact one of everything that can be counted.
    """
    texts = format_texts(gm, formats)
    counted = exact_ebops(gm, formats, strict=False) if ebops is None else ebops
    costs = {row.node: row.ebops for row in counted.rows}
    rows = [_row(gm, node, formats, texts.get(node, ""), costs.get(node.name)) for node in gm.graph.nodes if _shown(node)]
    return GraphTable(tuple(rows), title, counted)


def _shown(node: Node) -> bool:
    if node.op == "output" or node.op == "get_attr":
        return node.op == "get_attr" and any(not is_parameter_value(user) for user in node.users)
    if is_parameter_value(node):
        return any(not is_parameter_value(user) for user in node.users)
    return True


def _row(gm: GraphModule, node: Node, formats: FormatMap, text: str, ebops: float | None) -> NodeRow:
    record, constant = info(node), formats.constants.get(node)
    accumulator = formats.accumulators.get(node)
    if is_parameter_value(node):
        shape = tuple(constant.shape) if constant is not None else record.shape
        weights = constant.numel() if constant is not None else None
        zeros = int((constant == 0).sum()) if constant is not None else None
        return NodeRow(node.name, record.label, _role(node), shape, text, weights, zeros)
    shape = None if record.shape is None else record.shape[1:]
    holds = "" if accumulator is None else str(accumulator.format())
    return NodeRow(node.name, record.label, _operation(gm, node), shape, text, accumulator=holds, ebops=ebops)


def _operation(gm: GraphModule, node: Node) -> str:
    if node.op == "placeholder":
        return "input"
    module, op = module_of(gm, node), op_of(node)
    if isinstance(module, Quantizer):
        return "quantize"
    if module is not None:
        return type(module).__name__
    return op.name if op is not None else getattr(node.target, "__name__", str(node.target))


def _role(node: Node) -> str:
    """What a parameter is to the node that uses it."""
    for user in node.users:
        op = op_of(user)
        if op is not None and op.kind == "weighted":
            return "bias" if len(user.args) > 2 and user.args[2] is node else "weight"
    return "constant"
