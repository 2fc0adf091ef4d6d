"""Pools and reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from pquant_fx.graph.interval_arrays import pool_geometry
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Draft
from pquant_fx.lower.qonnx_file.padding import padding_of, pads_of

__all__ = ["WINDOW_READERS"]

Nodes = Mapping[str, Node]


def _max_pool(d: Draft, node: Node, nodes: Nodes) -> None:
    """Uneven padding is what ceil_mode means in torch, or it is refused: a Pad would bring zeros into the maximum."""
    kernel, steps, half = _window(node)
    if len([o for o in node.proto.output if o]) > 1:
        raise node.refuse("PQ202", "MaxPool with indices as output", "use the values only")
    spread = tuple(int(n) for n in node.attribute("dilations", [1] * half))
    begins, ends = pads_of(node, kernel, half)
    if node.inputs[0] in d.padded:
        begins, ends = ([a + b for a, b in zip(pads, more)] for pads, more in zip((begins, ends), d.padded[node.inputs[0]]))
    ceil_mode = bool(node.attribute("ceil_mode", 0))
    if begins != ends:
        meant = [p[1] for p in pool_geometry(node.shape(0)[1:], kernel, steps, begins, spread, True)]
        if meant != ends or ceil_mode:
            raise node.refuse("PQ202", f"MaxPool with pads {begins} in front and {ends} behind", "use the same padding on both sides")
        ceil_mode = True
    function = F.max_pool1d if half == 1 else F.max_pool2d
    d.call(node, function, d.values[node.inputs[0]], kernel, steps, tuple(begins), spread, ceil_mode)


def _avg_pool(d: Draft, node: Node, nodes: Nodes) -> None:
    kernel, steps, half = _window(node)
    begins, ends = pads_of(node, kernel, half)
    padded = any(begins) or any(ends)
    includes = bool(node.attribute("count_include_pad", 0))
    if padded and not includes:
        raise node.refuse("PQ202", "AveragePool that leaves padding out of the mean", "use count_include_pad=True or no padding")
    if any(int(n) != 1 for n in node.attribute("dilations", [1])):
        raise node.refuse("PQ202", "AveragePool with dilations", "use a window without gaps")
    x, pads = padding_of(d, node, d.values[node.inputs[0]], kernel, half)
    function = F.avg_pool1d if half == 1 else F.avg_pool2d
    d.call(node, function, x, kernel, steps, pads, bool(node.attribute("ceil_mode", 0)), True)


def _window(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    half = len(node.shape(0)) - 1
    kernel = tuple(int(k) for k in node.attribute("kernel_shape", []))
    if half not in (1, 2) or len(kernel) != half:
        raise node.refuse("PQ202", f"{node.proto.op_type} of a value of shape {node.shape(0)}", "use 1-d or 2-d pooling")
    return kernel, tuple(int(s) for s in node.attribute("strides", [1] * half)), half


def _global_pool(d: Draft, node: Node, nodes: Nodes) -> None:
    axes = tuple(range(2, len(node.shape(0)) + 1))
    function = torch.mean if node.proto.op_type == "GlobalAveragePool" else torch.amax
    d.call(node, function, d.values[node.inputs[0]], axes, True)


def _reduce(function: Callable[..., Any]) -> Callable[[Draft, Node, Nodes], None]:
    def read(d: Draft, node: Node, nodes: Nodes) -> None:
        rank = len(node.shape(0)) + 1
        given = node.integers(1, "axes").reshape(-1).tolist() if node.has(1) else node.attribute("axes", None)
        axes = tuple(sorted(int(a) % rank for a in given)) if given is not None else tuple(range(rank))
        if 0 in axes:
            raise node.refuse("PQ202", f"{node.proto.op_type} over the batch", "reduce over the other axes")
        d.call(node, function, d.values[node.inputs[0]], axes, bool(node.attribute("keepdims", 1)))

    return read


WINDOW_READERS: dict[str, Any] = {
    "MaxPool": _max_pool,
    "AveragePool": _avg_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
}
