"""What a fully unrolled circuit asks of the fabric, in closed form: bits of adders, comparisons, tables, products.

A matrix of constants becomes shifts and adders (distributed arithmetic, Sun et al. 2024, da4ml). Written in canonical signed
digits, its column o adds t_o terms. Terms that columns and rows have in common are added once; over 150 random matrices of 4 to
64 rows, 1 to 32 columns, 2 to 9 bits and 0 to 90 % zeros, of which alkaid 0.8.2 counted the cost, these hold within 5 % in the
median (`python -m benchmarks.synthesis.sharing`):

    adders     sum_o (t_o - 1) (T / K)^-0.077 (T / O)^-0.077       T = sum_o t_o, K rows and O columns that are not all zero
    width      0.70 bits of the inputs + 0.30 bits of the sum      of an adder, on average
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.estimate.delays import arrival
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import Op, Quantizer, module_of, op_of
from pquant_fx.graph.interval_codes import dyadic
from pquant_fx.graph.intervals import Interval

__all__ = ["Demand", "Terms", "demand", "stored_bits", "terms_of"]

SHARING, INPUT_SHARE = 0.077, 0.70
_LUT_INPUTS, _DSP_RESULT_BITS = 6, 9


@dataclass(frozen=True)
class Demand:
    """adders: bits of all adders; compares: LUTs of maxima, minima and choices (ReLUs and saturation end up in the LUTs of adders);
    tables: LUTs of tables; products: bits times bits of products of values; dsps: products that are wide enough for one; inputs,
    outputs: bits of the ports; delay: ns by alkaid's model, before the fit.
    """

    adders: float = 0.0
    compares: float = 0.0
    tables: float = 0.0
    products: float = 0.0
    dsps: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0
    delay: float = 0.0

    def __add__(self, other: Demand) -> Demand:
        return Demand(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Terms:
    """The sums of one weighted node: how many terms each result adds, the mean bits of what they add, and the inputs of a column."""

    count: Tensor
    bits: Tensor
    rows: float

    @property
    def most(self) -> float:
        return float(self.count.max()) if self.count.numel() else 0.0


def demand(gm: GraphModule, formats: FormatMap) -> Demand:
    """Of a frozen graph; `formats`: its analysis. A few evaluations of one sample."""
    live, made = live_nodes(gm), Demand()
    ready: dict[Node, float] = {}
    outputs: list[Node] = []
    for node in gm.graph.nodes:
        if node.op == "output":
            outputs = [n for n in node.all_input_nodes if formats.intervals.get(n) is not None]
            continue
        if node not in live or node in formats.constants or formats.intervals.get(node) is None:
            continue
        terms = terms_of(node, formats) if (op := op_of(node)) is not None and op.kind == "weighted" else None
        made += _of_node(gm, node, op, terms, formats)
        ready[node] = max((ready.get(n, 0.0) for n in node.all_input_nodes), default=0.0) + arrival(gm, node, op, terms, formats)
    last = max((ready.get(n, 0.0) for n in outputs), default=0.0)
    return made + Demand(outputs=float(sum(stored_bits(formats[n]).sum() for n in outputs if n not in formats.constants)), delay=last)


def stored_bits(x: Interval) -> NDArray[np.float64]:
    """Bits that each element is stored in, sign included."""
    return (x.widths + ((x.low < 0) & (x.low != x.high))).astype(np.float64) * (x.low != x.high)


def terms_of(node: Node, formats: FormatMap) -> Terms | None:
    """Signed digits that each result adds up; None where the weight is no constant."""
    x, w = node.args[0], node.args[1]
    if not isinstance(w, Node) or w not in formats.constants or not isinstance(x, Node) or not callable(node.target):
        return None
    op, known = op_of(node), formats[x]
    assert op is not None
    digits = torch.from_numpy(_digits(formats.constants[w].detach().cpu().double().numpy()))
    varies = torch.from_numpy((known.low != known.high).astype(np.float64))[None]
    bits = torch.from_numpy(stored_bits(known))[None]
    count: Tensor = node.target(varies, digits, None, *node.args[3:])
    total: Tensor = node.target(varies * bits, digits, None, *node.args[3:])
    rows = digits.numel() / max(digits.shape[1 if op.channels else 0], 1)
    return Terms(count, total / count.clamp(min=1), rows)


def _digits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Digits other than 0 in the canonical signed digits of each value: n xor 3n has a bit set for every one."""
    codes = np.abs(dyadic(values)[0])
    word = codes ^ (3 * codes)
    return np.array([n.bit_count() for n in word.ravel().tolist()], dtype=np.float64).reshape(values.shape)


# ---- one node
def _of_node(gm: GraphModule, node: Node, op: Op | None, terms: Terms | None, formats: FormatMap) -> Demand:
    module = module_of(gm, node)
    result = formats[node]
    if isinstance(module, Quantizer):
        enters = formats.intervals.get(node.all_input_nodes[0]) is None
        return Demand(inputs=float(stored_bits(result).sum())) if enters else Demand()
    if op is None:
        return Demand()
    if terms is not None:
        return Demand(adders=_adder_bits(node, terms, stored_bits(result)))
    return _OTHERS.get(op.name, _nothing)(node, formats)


def _adder_bits(node: Node, terms: Terms, sums: NDArray[np.float64]) -> float:
    count, wide = terms.count[0], torch.from_numpy(sums)
    adders = (count - 1).clamp(min=0) * (INPUT_SHARE * terms.bits[0] + (1 - INPUT_SHARE) * wide)
    columns = count.shape[-1 if node.target is torch.nn.functional.linear else 0]
    each = float(count.sum()) * columns / max(count.numel(), 1)  # T: of one position
    sharing = max(each / max(terms.rows, 1.0), 1.0) * max(each / max(columns, 1), 1.0)
    return float(adders.sum()) * sharing**-SHARING


def _sum_of_values(node: Node, formats: FormatMap) -> Demand:
    return Demand(adders=float(stored_bits(formats[node]).sum()) * _varying(node, formats))


def _varying(node: Node, formats: FormatMap) -> float:
    """1 where two values are added; a constant costs next to nothing."""
    return 1.0 if sum(n not in formats.constants for n in node.all_input_nodes) > 1 else 0.15


def _tree_of_values(node: Node, formats: FormatMap) -> Demand:
    terms = _window(node, formats)
    return Demand(adders=float(stored_bits(formats[node]).sum()) * (terms - 1))


def _window(node: Node, formats: FormatMap) -> float:
    """Values that one result of a pooling is made from."""
    source: Any = node.args[0]
    if op_of(node) is not None and "pool" in op_of(node).name:  # type: ignore[union-attr]
        return float(math.prod(node.args[1]))  # type: ignore[arg-type]
    return formats[source].low.size / max(formats[node].low.size, 1)


def _compared(node: Node, formats: FormatMap) -> Demand:
    """A subtraction and a choice."""
    pooled = op_of(node).name in ("max_pool1d", "max_pool2d", "amax")  # type: ignore[union-attr]
    times = _window(node, formats) - 1 if pooled else 1.0
    return Demand(compares=1.5 * float(stored_bits(formats[node]).sum()) * times)


def _tabulated(node: Node, formats: FormatMap) -> Demand:
    source: Any = node.args[0]
    address = stored_bits(formats[source])
    luts = np.maximum(2.0 ** (address - _LUT_INPUTS), 1.0) * stored_bits(formats[node]) * (address > 0)
    return Demand(tables=float(luts.sum()))


def _product(node: Node, formats: FormatMap) -> Demand:
    values = [n for n in node.all_input_nodes if n not in formats.constants]
    if len(values) < 2 and len(node.all_input_nodes) > 1:
        return _sum_of_values(node, formats)
    bits = [stored_bits(formats[n]) for n in (values * 2)[:2]]
    if op_of(node).name == "matmul":  # type: ignore[union-attr]
        products = float(np.matmul(*bits).sum())
        count = formats[node].low.size * bits[0].shape[-1]
        wide = float(stored_bits(formats[node]).sum()) * (bits[0].shape[-1] - 1)
        return Demand(products=products, adders=wide, dsps=count * (products / max(count, 1) >= _DSP_RESULT_BITS))
    a, b = np.broadcast_arrays(*bits)
    return Demand(products=float((a * b).sum()), dsps=float((a + b >= _DSP_RESULT_BITS).sum()))


def _nothing(node: Node, formats: FormatMap) -> Demand:
    return Demand()


_OTHERS: dict[str, Callable[[Node, FormatMap], Demand]] = {
    **dict.fromkeys(("add", "sub"), _sum_of_values),
    **dict.fromkeys(("sum", "mean", "avg_pool1d", "avg_pool2d"), _tree_of_values),
    **dict.fromkeys(("maximum", "minimum", "max_pool1d", "max_pool2d", "amax", "relu6", "hardtanh"), _compared),
    **dict.fromkeys(("leaky_relu", "prelu"), _compared),
    **dict.fromkeys(("mul", "matmul"), _product),
    "lookup": _tabulated,
}
