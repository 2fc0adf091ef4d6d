"""Emitters of pools and reductions: the standard operator; `wide` where onnxruntime has no double kernel for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.interval_arrays import pool_geometry
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.lower.onnx import wide
from pquant_fx.lower.onnx.emission import Emission, Emit, numbers
from pquant_fx.lower.onnx.graph import Value

__all__ = ["POOLS", "mean_as_pool", "pool_behind_pad"]


def _amax(e: Emission, node: Node) -> Value:
    x, axes, keepdim = e.data(node, node.args[0]), numbers(node.args[1]), bool(node.args[2])
    more, given = e.reduced_over(node, axes)
    return e.result(node, "ReduceMax", [x, *more], keepdims=int(keepdim), **given)


def _max_pool(e: Emission, node: Node) -> Value:
    """ceil_mode is written as padding at the end: the runtimes do not agree on what else it means. Padding as large as the
    kernel, which dilation can ask for and onnxruntime refuses, becomes a Pad with -inf."""
    kernel, stride, padding, dilation = (numbers(a) for a in node.args[1:5])
    x = e.data(node, node.args[0])
    pads = pool_geometry(_spatial(x, kernel), kernel, stride, padding, dilation, bool(node.args[5]))
    if any(end >= k for (_, end), k in zip(pads, kernel)):
        x = wide.padded(e, node, x, pads, float("-inf"))
        pads, padding = [(0, 0)] * len(kernel), [0] * len(kernel)
    attributes: dict[str, Any] = {
        "ceil_mode": 0,
        "dilations": dilation,
        "kernel_shape": kernel,
        "pads": _begins_ends(pads, padding),
        "strides": stride,
    }
    return e.result(node, "MaxPool", [x], **attributes)


def _avg_pool(e: Emission, node: Node) -> Value:
    if e.compute(node) == "float64":
        return wide.pool(e, node)
    x = e.data(node, node.args[0])
    kernel, stride, padding = (numbers(a) for a in node.args[1:4])
    include = int(bool(node.args[5]))
    pads = pool_geometry(_spatial(x, kernel), kernel, stride, padding, [1] * len(kernel), bool(node.args[4]))
    ceil_mode = int(any(end > p for (_, end), p in zip(pads, padding)))
    attributes: dict[str, Any] = {
        "ceil_mode": ceil_mode,
        "count_include_pad": include,
        "kernel_shape": kernel,
        "pads": padding * 2,
        "strides": stride,
    }
    return e.result(node, "AveragePool", [x], **attributes)


def pool_behind_pad(e: Emission, node: Node) -> Value:
    """onnxruntime joins a Pad and the pool behind it: its MaxPool then no longer sees the zeros, and padding as large as the
    kernel does not load."""
    source = node.args[0]
    if isinstance(source, Node) and source.target is F.pad:
        return wide.pool(e, node)
    return POOLS[node.target](e, node)  # type: ignore[index]


def _mean(e: Emission, node: Node) -> Value:
    x, axes, keepdim = e.data(node, node.args[0]), numbers(node.args[1]), bool(node.args[2])
    more, given = e.reduced_over(node, axes)
    return e.result(node, "ReduceMean", [x, *more], keepdims=int(keepdim), **given)


def mean_as_pool(e: Emission, node: Node) -> Value:
    """A mean over all spatial axes as AveragePool over the whole image: hardware tools know no ReduceMean."""
    x, axes, keepdim = e.data(node, node.args[0]), numbers(node.args[1]), bool(node.args[2])
    rank = len(x.shape)
    if rank not in (3, 4) or axes != list(range(2, rank)):
        return _mean(e, node)
    kernel = [int(n) for n in x.shape[2:]]
    spatial = len(kernel)
    attributes: dict[str, Any] = {
        "ceil_mode": 0,
        "count_include_pad": 1,
        "kernel_shape": kernel,
        "pads": [0, 0] * spatial,
        "strides": [1] * spatial,
    }
    if keepdim:
        return e.result(node, "AveragePool", [x], **attributes)
    pooled = e.step(node, "mean", "AveragePool", [x], (*x.shape[:2], *(1 for _ in kernel)), **attributes)
    return e.result(node, "Reshape", [pooled, e.constant(node, "shape", [-1, x.shape[1]], "int64")])


def _scaled_pool(e: Emission, node: Node) -> Value:
    """Sums of windows by a convolution with ones, each channel by itself; then the product."""
    if e.compute(node) == "float64":
        return wide.pool(e, node)
    x = e.data(node, node.args[0])
    kernel, stride, padding = (numbers(a) for a in node.args[1:4])
    channels = int(x.shape[1])
    ones = e.constant(node, "ones", np.ones((channels, 1, *kernel)))
    attributes: dict[str, Any] = {
        "dilations": [1] * len(kernel),
        "group": channels,
        "kernel_shape": kernel,
        "pads": padding * 2,
        "strides": stride,
    }
    sums = e.step(node, "sums", "Conv", [x, ones], e.shape(node), **attributes)
    return e.result(node, "Mul", [sums, e.constant(node, "reciprocal", float(node.args[-1]))])  # type: ignore[arg-type]


def _scaled_sum(e: Emission, node: Node) -> Value:
    x, axes, keepdim = e.data(node, node.args[0]), numbers(node.args[1]), bool(node.args[2])
    sums = e.step(node, "sum", "ReduceSum", [x, e.constant(node, "axes", axes, "int64")], e.shape(node), keepdims=int(keepdim))
    return e.result(node, "Mul", [sums, e.constant(node, "reciprocal", float(node.args[3]), x.dtype)])  # type: ignore[arg-type]


def _sum(e: Emission, node: Node) -> Value:
    x, axes, keepdim = e.data(node, node.args[0]), numbers(node.args[1]), bool(node.args[2])
    return e.result(node, "ReduceSum", [x, e.constant(node, "axes", axes, "int64")], keepdims=int(keepdim))


def _begins_ends(pads: Sequence[tuple[int, int]], padding: Sequence[int]) -> list[int]:
    """All begins, then all ends; what torch leaves over at the end of an axis, ONNX leaves over as well."""
    return [*padding, *(max(end, p) for (_, end), p in zip(pads, padding))]


def _spatial(x: Value, kernel: Sequence[int]) -> list[int]:
    return [int(n) for n in x.shape[-len(kernel) :]]


POOLS: dict[Callable[..., Any], Emit] = {
    F.avg_pool1d: _avg_pool,
    F.avg_pool2d: _avg_pool,
    F.max_pool1d: _max_pool,
    F.max_pool2d: _max_pool,
    torch.mean: _mean,
    scaled_pool: _scaled_pool,
    scaled_sum: _scaled_sum,
    torch.sum: _sum,
    torch.amax: _amax,
}
