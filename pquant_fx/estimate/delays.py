"""How long a value takes to be ready once its inputs are, in ns by the delay model of alkaid 0.8.2 (a LUT and its carry chain).

The largest sum decides: log2 of its terms levels of adders, of which alkaid makes about 2.0 log2 t - 1.25 ns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule, Node

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Op, Quantizer, module_of

if TYPE_CHECKING:
    from pquant_fx.estimate.fabric import Terms

__all__ = ["arrival"]

ADDER, CHOICE = 1.3, 0.5
_FROM_LUT = 6


def arrival(gm: GraphModule, node: Node, op: Op | None, terms: Terms | None, formats: FormatMap) -> float:
    """ns from the last input of `node` to its value."""
    if isinstance(module_of(gm, node), Quantizer):
        facts = formats.facts.get(node)
        inside = formats.intervals.get(node.all_input_nodes[0]) is not None
        return 2 * CHOICE if inside and facts is not None and not facts.never_overflows else 0.0
    if op is None:
        return 0.0
    if terms is not None:
        return max(2.0 * math.log2(max(terms.most, 1.0)) - 1.25, ADDER if terms.most > 1 else 0.0)
    if op.name == "lookup":
        address = max(int(formats[node.all_input_nodes[0]].widths.max(initial=0)) - _FROM_LUT, 0)
        return 0.1 + 0.2 * min(address, 3) + 0.8 * max(address - 3, 0)
    if op.name in ("maximum", "minimum", "relu6", "hardtanh", "max_pool1d", "max_pool2d", "amax"):
        return (ADDER + CHOICE) * _levels(node, op, formats)
    if op.name in ("sum", "mean", "avg_pool1d", "avg_pool2d"):
        return ADDER * _levels(node, op, formats)
    if op.name in ("mul", "matmul"):
        bits = min(int(formats[n].widths.max(initial=0)) for n in node.all_input_nodes)
        return ADDER * math.ceil(math.log2(bits + 1)) if bits else 0.0
    return ADDER if op.name in ("add", "sub") else 0.0


def _levels(node: Node, op: Op, formats: FormatMap) -> int:
    """Levels of a tree over the values that one result is made from."""
    source: Any = node.args[0]
    if op.name in ("maximum", "minimum", "relu6", "hardtanh"):
        return 1
    known: Any = node.args[1]
    values = math.prod(known) if "pool" in op.name else formats[source].low.size / max(formats[node].low.size, 1)
    return math.ceil(math.log2(max(values, 1)))
