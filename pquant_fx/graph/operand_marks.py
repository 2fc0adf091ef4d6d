"""What passes that write out a layer know about its nodes, for the passes behind them.

takes_exact      the operator takes its operands as they are: no quantizer goes between
takes_quantized  its data operands get their quantizers although it only sums or moves them
format group     values of one group share one quantizer, as the state of a recurrent layer does over its steps
why opaque       what keeps a layer from being written out, and what to do about it
"""

from __future__ import annotations

from torch.fx import Node

__all__ = [
    "format_group",
    "mark_exact_operands",
    "mark_format_group",
    "mark_opaque",
    "mark_quantized_operands",
    "takes_exact",
    "takes_quantized",
    "why_opaque",
]

_EXACT, _QUANTIZED, _GROUP, _OPAQUE = (f"pquant_fx.{name}" for name in ("exact", "quantized", "format_group", "opaque"))


def mark_exact_operands(node: Node) -> Node:
    """`node` takes its operands exactly. Returns the node."""
    node.meta[_EXACT] = True
    return node


def takes_exact(node: Node) -> bool:
    return _EXACT in node.meta


def mark_quantized_operands(node: Node) -> Node:
    """The data operands of `node` are to be quantized. Returns the node."""
    node.meta[_QUANTIZED] = True
    return node


def takes_quantized(node: Node) -> bool:
    return _QUANTIZED in node.meta


def mark_format_group(node: Node, group: str) -> Node:
    """The value of `node` shares its quantizer with all others of `group`. Returns the node."""
    node.meta[_GROUP] = group
    return node


def format_group(node: Node) -> str | None:
    found: str | None = node.meta.get(_GROUP)
    return found


def mark_opaque(node: Node, what: str, remedy: str) -> None:
    """Why the layer that `node` calls stays whole, for those who refuse it."""
    node.meta[_OPAQUE] = (f": {what}", remedy)


def why_opaque(node: Node) -> tuple[str, str] | None:
    """The reason noted by `mark_opaque`, as the end of a sentence (": ..."), and the remedy."""
    found: tuple[str, str] | None = node.meta.get(_OPAQUE)
    return found
