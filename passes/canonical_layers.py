"""Rules of `canonicalize` for layers called as functions: linear, convolution, pooling, padding, reductions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.canonical_form import (
    NotCanonical,
    Rule,
    arguments,
    axes_of,
    canonical,
    described,
    each,
    sample_shape,
    shape_of,
)

__all__ = ["LAYER_RULES", "adaptive_pool", "convolution", "transposed_convolution"]

T = torch.Tensor


def linear(node: Node, rw: Rewriter) -> Node | None:
    return canonical(node, rw, F.linear, *arguments(node, "input", "weight", "bias", bias=None))


def convolution(node: Node, rw: Rewriter, n: int, function: Callable[..., Any]) -> Node | None:
    """Tuples for all options; padding "same" becomes numbers, and a pad of its own where the two sides differ."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, dilation, groups = arguments(node, *names, bias=None, stride=1, padding=0, dilation=1, groups=1)
    if len(sample_shape(x)) != n + 1:
        raise NotCanonical
    step, spread = each(stride, n), each(dilation, n)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(spread, shape_of(weight)[2:])]
        padding = tuple(t // 2 for t in total)
        if any(t % 2 for t in total):
            pads = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
            sizes = tuple(s + t for s, t in zip(shape_of(x)[2:], total))
            x = described(rw.call(F.pad, x, tuple(pads), "constant", 0), x, (*shape_of(x)[:2], *sizes))
            padding = 0
    return canonical(node, rw, function, x, weight, bias, step, each(padding, n), spread, groups)


def transposed_convolution(node: Node, rw: Rewriter, n: int, function: Callable[..., Any]) -> Node | None:
    """Tuples for all options."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    defaults: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    x, weight, bias, stride, padding, output_padding, groups, dilation = arguments(node, *names, **defaults)
    if len(sample_shape(x)) != n + 1:
        raise NotCanonical
    step, sides, more = (each(v, n) for v in (stride, padding, output_padding))
    return canonical(node, rw, function, x, weight, bias, step, sides, more, groups, each(dilation, n))


def max_pool(node: Node, rw: Rewriter, n: int, function: Callable[..., Any]) -> Node | None:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    defaults: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    x, kernel, stride, padding, dilation, ceil_mode, indices = arguments(node, *names, **defaults)
    if indices or len(sample_shape(x)) != n + 1:
        raise NotCanonical
    kernel = each(kernel, n)
    step = each(stride, n) if stride not in (None, ()) and stride != [] else kernel
    return canonical(node, rw, function, x, kernel, step, each(padding, n), each(dilation, n), bool(ceil_mode))


def average_pool(node: Node, rw: Rewriter, n: int, function: Callable[..., Any]) -> Node | None:
    """A divisor of its own becomes a factor."""
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    defaults: dict[str, Any] = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    x, kernel, stride, padding, ceil_mode, include, divisor = arguments(node, *names, **defaults)
    if len(sample_shape(x)) != n + 1:
        raise NotCanonical
    kernel = each(kernel, n)
    step = each(stride, n) if stride not in (None, ()) and stride != [] else kernel
    if divisor is None:
        return canonical(node, rw, function, x, kernel, step, each(padding, n), bool(ceil_mode), bool(include))
    if ceil_mode:
        raise NotCanonical
    mean = described(rw.call(function, x, kernel, step, each(padding, n), False, True), x, shape_of(node))
    return rw.call(operator.mul, mean, float(torch.Size(kernel).numel()) / divisor)


def adaptive_pool(node: Node, rw: Rewriter, n: int, average: bool) -> Node | None:
    """A window that divides the map evenly is an ordinary pool."""
    x, wanted, indices = arguments(node, "input", "output_size", "return_indices", return_indices=False)
    if indices:
        raise NotCanonical
    sizes = sample_shape(x)[1:]
    if len(sizes) != n:
        raise NotCanonical
    wanted = tuple(wanted) if isinstance(wanted, (tuple, list)) else (wanted,) * n
    outs = [s if w is None else w for s, w in zip(sizes, wanted)]
    if not all(isinstance(w, int) and w > 0 and s % w == 0 for s, w in zip(sizes, outs)):
        raise NotCanonical
    kernel, zeros = tuple(s // w for s, w in zip(sizes, outs)), (0,) * n
    if average:
        return rw.call(F.avg_pool1d if n == 1 else F.avg_pool2d, x, kernel, kernel, zeros, False, True)
    return rw.call(F.max_pool1d if n == 1 else F.max_pool2d, x, kernel, kernel, zeros, (1,) * n, False)


def pad(node: Node, rw: Rewriter) -> Node | None:
    x, pads, mode, value = arguments(node, "input", "pad", "mode", "value", mode="constant", value=None)
    if mode != "constant" or value not in (None, 0) or len(pads) > 2 * len(sample_shape(x)):
        raise NotCanonical
    if not all(isinstance(p, int) for p in pads):
        raise NotCanonical
    if not any(pads):
        return x
    return canonical(node, rw, F.pad, x, tuple(pads), "constant", 0)


def reduction(node: Node, rw: Rewriter, function: Callable[..., Any]) -> Node | None:
    """Mean, sum and largest value over axes other than the batch."""
    x, axes, keep, dtype = arguments(node, "input", "dim", "keepdim", "dtype", dim=None, keepdim=False, dtype=None)
    found = axes_of(axes, len(sample_shape(x)) + 1)
    if dtype is not None or found[0] == 0:
        raise NotCanonical
    return canonical(node, rw, function, x, found, bool(keep))


LAYER_RULES: dict[Callable[..., Any], Rule] = {
    F.linear: linear,
    F.conv1d: partial(convolution, n=1, function=F.conv1d),
    F.conv2d: partial(convolution, n=2, function=F.conv2d),
    F.conv_transpose1d: partial(transposed_convolution, n=1, function=F.conv_transpose1d),
    F.conv_transpose2d: partial(transposed_convolution, n=2, function=F.conv_transpose2d),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d), partial(max_pool, n=1, function=F.max_pool1d)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), partial(max_pool, n=2, function=F.max_pool2d)),
    F.avg_pool1d: partial(average_pool, n=1, function=F.avg_pool1d),
    F.avg_pool2d: partial(average_pool, n=2, function=F.avg_pool2d),
    F.adaptive_avg_pool1d: partial(adaptive_pool, n=1, average=True),
    F.adaptive_avg_pool2d: partial(adaptive_pool, n=2, average=True),
    F.adaptive_max_pool1d: partial(adaptive_pool, n=1, average=False),
    F.adaptive_max_pool2d: partial(adaptive_pool, n=2, average=False),
    F.pad: pad,
    **dict.fromkeys((torch.mean, T.mean), partial(reduction, function=torch.mean)),
    **dict.fromkeys((torch.sum, T.sum), partial(reduction, function=torch.sum)),
    **dict.fromkeys((torch.amax, T.amax), partial(reduction, function=torch.amax)),
}
