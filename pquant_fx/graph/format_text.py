"""Formats as people read them: `fixed<8,1>`, or with ranges where a format differs between channels, `fixed<8,-3..1>`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.formats import FixedFormat
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Mask, Quantizer, module_of

__all__ = ["format_text", "format_texts"]


def format_texts(gm: GraphModule, formats: FormatMap) -> dict[Node, str]:
    """The format of every value that has one: a quantizer's own, else the smallest that holds the value."""
    found = {node: _text(gm, node, formats) for node in gm.graph.nodes}
    return {node: text for node, text in found.items() if text}


def _text(gm: GraphModule, node: Node, formats: FormatMap) -> str:
    module = module_of(gm, node)
    if isinstance(module, Quantizer):
        return format_text(*module.kif(formats.constants.get(node.all_input_nodes[0]))) if module.calibrated else ""
    interval = None if isinstance(module, Mask) else formats.intervals.get(node)
    return "" if interval is None else str(interval.format())


def format_text(k: Tensor, i: Tensor, f: Tensor) -> str:
    """One text for all elements of a format; elements that store nothing count only when all do."""
    kif = [[int(v) for v in t.detach().double().flatten().tolist()] for t in (k, i, f)]
    count = max(len(part) for part in kif)
    elements = {FixedFormat(*(part[n if len(part) > 1 else 0] for part in kif)) for n in range(count)}
    stored = [e for e in elements if e.width]
    if not stored:
        return "zero"
    sign = "" if any(e.k for e in stored) else "u"
    return f"{sign}fixed<{_span([e.width for e in stored])},{_span([e.k + e.i for e in stored])}>"


def _span(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}..{max(values)}"
