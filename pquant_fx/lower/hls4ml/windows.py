"""Readers of the ONNX operators with a window: convolutions and pools."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pquant_fx.lower.hls4ml.elements import affine
from pquant_fx.lower.hls4ml.net import Array, Conv, Op, Pool, Shape
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.shapes import view

__all__ = ["WINDOW_READERS", "dilated", "global_mean", "power_of_two", "ungrouped", "window"]


def _conv(node: Node) -> list[Op]:
    weight, shape = node.reals(1, "weight"), node.shape(0)
    half, group = len(shape) - 1, int(node.attribute("group", 1))
    if half not in (1, 2) or weight.ndim != half + 2 or weight.shape[1] * group != shape[0]:
        raise node.refuse("PQ202", f"Conv of {shape} with a weight of shape {weight.shape}", "use 1-d or 2-d convolutions")
    strides, pads = window(node, half)
    weight = dilated(ungrouped(weight, group), node.attribute("dilations", [1] * half))
    bias = np.broadcast_to(node.reals(2, "bias") if node.has(2) else np.zeros(()), (weight.shape[0],))
    out = (weight.shape[0], *_extent(node, shape[1:], weight.shape[2:], strides, pads))
    source, target = (node.inputs[0],), node.output
    return [Conv(name=node.name, inputs=source, output=target, shape=out, weight=weight, bias=bias, strides=strides, pads=pads)]


def ungrouped(weight: Array, group: int) -> Array:
    """Zeros between the groups: the dense kernel with the same result (hls4ml's depthwise layer has no exact types)."""
    if group == 1:
        return weight
    out, inner = weight.shape[:2]
    dense = np.zeros((out, inner * group, *weight.shape[2:]))
    for row in range(out):
        start = row // (out // group) * inner
        dense[row, start : start + inner] = weight[row]
    return dense


def dilated(weight: Array, dilations: Any) -> Array:
    """Zeros between the taps."""
    steps = [int(d) for d in dilations]
    taps = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], steps, strict=True)]
    wide = np.zeros((*weight.shape[:2], *taps))
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in steps))] = weight
    return wide


def window(node: Node, half: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(strides, pads) of a convolution or a pool."""
    if node.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refuse("PQ202", "auto_pad", "write the padding as numbers")
    pads = tuple(int(p) for p in node.attribute("pads", [0] * 2 * half))
    if min(pads) < 0:
        raise node.refuse("PQ202", "negative padding", "slice the input instead")
    return tuple(int(s) for s in node.attribute("strides", [1] * half)), pads


def _extent(node: Node, size: Shape, kernel: Shape, strides: Shape, pads: Shape) -> Shape:
    """Spatial output shape."""
    half = len(size)
    padded = [size[n] + pads[n] + pads[n + half] for n in range(half)]
    if any(p < k for p, k in zip(padded, kernel, strict=True)):
        raise node.refuse("PQ202", f"a window of {kernel} on an image of {tuple(padded)}", "use a smaller window")
    return tuple((p - k) // s + 1 for p, k, s in zip(padded, kernel, strides, strict=True))


def _pool(node: Node) -> list[Op]:
    shape, average = node.shape(0), node.proto.op_type == "AveragePool"
    half = len(shape) - 1
    kernel = tuple(int(k) for k in node.attribute("kernel_shape", []))
    if half not in (1, 2) or len(kernel) != half:
        raise node.refuse("PQ202", f"{node.proto.op_type} of the shape {shape}", "use 1-d or 2-d pooling")
    strides, pads = window(node, half)
    out = _extent(node, shape[1:], kernel, strides, pads)
    spread = [-(-(shape[n + 1] + pads[n] + pads[n + half] - kernel[n]) // strides[n]) + 1 for n in range(half)]
    if (node.attribute("ceil_mode", 0) and tuple(spread) != out) or any(int(d) != 1 for d in node.attribute("dilations", [1])):
        raise node.refuse("PQ202", f"{node.proto.op_type} with ceil_mode or dilations", "choose a window that divides the image")
    if len([o for o in node.proto.output if o]) > 1:
        raise node.refuse("PQ202", "MaxPool with indices as output", "use the values only")
    if average and any(pads) and not node.attribute("count_include_pad", 0):
        raise node.refuse("PQ202", "AveragePool that leaves padding out of the mean", "use count_include_pad=True or no padding")
    if average:
        power_of_two(node, int(np.prod(kernel)))
    mode: Literal["Max", "Average"] = "Average" if average else "Max"
    source, target, out = (node.inputs[0],), node.output, (shape[0], *out)
    return [Pool(name=node.name, inputs=source, output=target, shape=out, mode=mode, kernel=kernel, strides=strides, pads=pads)]


def power_of_two(node: Node, elements: int) -> None:
    if elements & (elements - 1):
        raise node.refuse("PQ202", f"a mean over {elements} elements", "average over 2^n elements: the division is then exact")


def global_mean(node: Node) -> list[Op]:
    """Mean or sum over all spatial axes, those of an image: one window as large as it is."""
    shape = node.shape(0)
    elements, flat = int(np.prod(shape[1:])), (shape[0], *(1 for _ in shape[1:]))
    power_of_two(node, elements)
    mean = Pool(
        name=node.name, inputs=(node.inputs[0],), output=f"{node.output}/mean", shape=flat,
        mode="Average", kernel=shape[1:], strides=shape[1:], pads=(0,) * 2 * len(shape[1:]),
    )  # fmt: skip
    ops: list[Op] = [mean]
    if node.proto.op_type == "ReduceSum":
        ops.append(affine(node, mean.output, f"{node.output}/sum", flat, np.full((), float(elements)), np.zeros(()), "/sum"))
    keep = node.proto.op_type == "GlobalAveragePool" or bool(node.attribute("keepdims", 1))
    out = flat if keep else (shape[0],)
    return [*ops, view(node, ops[-1].output, flat, np.arange(shape[0]), out)]


WINDOW_READERS: dict[str, Reader] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": global_mean,
}
