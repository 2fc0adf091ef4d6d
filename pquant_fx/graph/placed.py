"""Which quantizers the user placed: the compiler keeps them, and adds none to their values."""

from __future__ import annotations

from torch.fx import Node

__all__ = ["is_placed", "mark_placed"]

_KEY = "pquant_fx.placed"


def mark_placed(node: Node) -> None:
    """The user put the quantizer that `node` calls where it is."""
    node.meta[_KEY] = True


def is_placed(node: Node) -> bool:
    """Whether the user put the quantizer that `node` calls where it is."""
    return _KEY in node.meta
