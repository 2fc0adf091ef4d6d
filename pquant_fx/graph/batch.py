"""Which values carry the batch on axis 0. Ordinary ones do; the tracer marks the others, and shape rules leave those alone."""

from __future__ import annotations

from torch.fx import Node

__all__ = ["has_batch_axis", "mark_without_batch_axis"]

_KEY = "pquant_fx.without_batch_axis"


def mark_without_batch_axis(node: Node) -> None:
    """Axis 0 of `node` is not the batch, or another axis depends on it as well (x.t(), x.reshape(batch * heads, -1), weights)."""
    node.meta[_KEY] = True


def has_batch_axis(node: Node) -> bool:
    """Whether axis 0 is the batch and all other axes are the same at every batch size."""
    return _KEY not in node.meta
