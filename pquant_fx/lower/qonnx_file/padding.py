"""Padding as ONNX writes it, begins and ends apart, as the one number a side that torch takes, with a Pad in front where they differ."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node as FxNode
from torch.nn import functional as F

from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Draft

__all__ = ["padding_of", "pads_of"]


def padding_of(d: Draft, node: Node, x: FxNode, kernel: Sequence[int], half: int) -> tuple[FxNode, tuple[int, ...]]:
    """(x, padding): zeros on both sides of every spatial axis; x is padded beforehand where its sides differ."""
    begins, ends = pads_of(node, kernel, half)
    if begins == ends:
        return x, tuple(begins)
    pads = [side for pair in zip(reversed(begins), reversed(ends)) for side in pair]
    return d.call(node, F.pad, x, pads, "constant", 0, name=f"{node.name}.pad"), (0,) * half


def pads_of(node: Node, kernel: Sequence[int], half: int) -> tuple[list[int], list[int]]:
    """(begins, ends). Raises LoweringError (PQ202) for negative ones and for lists of another length."""
    mode = node.attribute("auto_pad", "NOTSET")
    pads = [int(p) for p in node.attribute("pads", [0] * 2 * half)]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        steps = [int(s) for s in node.attribute("strides", [1] * half)]
        reach = [(int(k) - 1) * int(t) + 1 for k, t in zip(kernel, node.attribute("dilations", [1] * half))]
        sizes = node.shape(0)[-half:]
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, steps, reach)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return (less, more) if mode == "SAME_UPPER" else (more, less)
    if mode not in ("NOTSET", "VALID", ""):
        raise node.refuse("PQ202", f"auto_pad {mode}", "write the padding as numbers")
    if len(pads) != 2 * half or min(pads, default=0) < 0:
        raise node.refuse("PQ202", f"the pads {pads} of a {half}-d window", "write a begin and an end of each axis, none negative")
    return pads[:half], pads[half:]
