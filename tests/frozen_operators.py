"""Small frozen nets: every operator of the dialect by itself, and a residual CNN."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.means import fixed_reciprocal, scaled_pool, scaled_sum
from pquant_fx.graph.moves import upsample
from tests.frozen_graphs import FrozenNet, stress_values

Maker = Callable[[FrozenNet, Node, Node, int], Node]


def _weights(net: FrozenNet, name: str, shape: tuple[int, ...], bits: int) -> Node:
    """A signed parameter of `bits` bits with its own fraction bits in each output channel."""
    generator = torch.Generator().manual_seed(len(name) + sum(shape))
    f = (torch.arange(shape[0]) % 3 + bits - 2).float().reshape(-1, *(1 for _ in shape[1:]))
    return net.parameter(name, torch.randn(shape, generator=generator), 1, bits - 1 - f, f)


OPERATORS: dict[str, tuple[tuple[int, ...], Maker]] = {
    "linear": ((6,), lambda n, a, b, w: n.call(F.linear, a, _weights(n, "fc.weight", (5, 6), w), _weights(n, "fc.bias", (5,), w))),
    "linear without bias": ((6,), lambda n, a, b, w: n.call(F.linear, a, _weights(n, "fc.weight", (5, 6), w), None)),
    "linear of rank 3": (
        (3, 6),
        lambda n, a, b, w: n.call(F.linear, a, _weights(n, "fc.weight", (5, 6), w), _weights(n, "fc.bias", (5,), w)),
    ),
    "conv1d": (
        (4, 9),
        lambda n, a, b, w: n.call(F.conv1d, a, _weights(n, "c.weight", (6, 4, 3), w), _weights(n, "c.bias", (6,), w), (2,), (1,), (1,), 1),
    ),
    "conv2d": (
        (4, 7, 6),
        lambda n, a, b, w: n.call(F.conv2d, a, _weights(n, "c.weight", (6, 4, 3, 2), w), None, (1, 2), (1, 0), (1, 1), 1),
    ),
    "dilated conv2d": (
        (2, 8, 8),
        lambda n, a, b, w: n.call(
            F.conv2d, a, _weights(n, "c.weight", (3, 2, 3, 3), w), _weights(n, "c.bias", (3,), w), (1, 1), (2, 2), (2, 2), 1
        ),
    ),
    "grouped conv2d": (
        (4, 6, 6),
        lambda n, a, b, w: n.call(
            F.conv2d, a, _weights(n, "c.weight", (6, 2, 3, 3), w), _weights(n, "c.bias", (6,), w), (1, 1), (1, 1), (1, 1), 2
        ),
    ),
    "depthwise conv2d": (
        (4, 6, 6),
        lambda n, a, b, w: n.call(F.conv2d, a, _weights(n, "c.weight", (4, 1, 3, 3), w), None, (2, 2), (1, 1), (1, 1), 4),
    ),
    "conv_transpose2d": (
        (4, 5, 4),
        lambda n, a, b, w: n.call(
            F.conv_transpose2d,
            a,
            _weights(n, "t.weight", (4, 3, 3, 2), w),
            _weights(n, "t.bias", (3,), w),
            (2, 3),
            (1, 0),
            (1, 2),
            1,
            (1, 2),
        ),
    ),
    "grouped conv_transpose1d": (
        (4, 6),
        lambda n, a, b, w: n.call(F.conv_transpose1d, a, _weights(n, "t.weight", (4, 3, 4), w), None, (3,), (3,), (1,), 2, (1,)),
    ),
    "matmul": ((4, 4), lambda n, a, b, w: n.call(torch.matmul, a, b)),
    "add": ((5,), lambda n, a, b, w: n.call(operator.add, a, b)),
    "add a parameter": ((5,), lambda n, a, b, w: n.call(operator.add, a, _weights(n, "shift", (5,), w))),
    "sub": ((5,), lambda n, a, b, w: n.call(operator.sub, a, b)),
    "number minus": ((5,), lambda n, a, b, w: n.call(operator.sub, 1.5, a)),
    "mul": ((5,), lambda n, a, b, w: n.call(operator.mul, a, b)),
    "mul by a number": ((5,), lambda n, a, b, w: n.call(operator.mul, a, -0.75)),
    "div": ((5,), lambda n, a, b, w: n.call(operator.truediv, a, 4)),
    "neg": ((5,), lambda n, a, b, w: n.call(operator.neg, a)),
    "maximum": ((5,), lambda n, a, b, w: n.call(torch.maximum, a, b)),
    "minimum": ((5,), lambda n, a, b, w: n.call(torch.minimum, a, b)),
    "relu": ((5,), lambda n, a, b, w: n.call(F.relu, a)),
    "relu6": ((5,), lambda n, a, b, w: n.call(F.relu6, a)),
    "hardtanh": ((5,), lambda n, a, b, w: n.call(F.hardtanh, a, -0.5, 1.25)),
    "leaky_relu": ((5,), lambda n, a, b, w: n.call(F.leaky_relu, a, 0.125)),
    "prelu": ((5,), lambda n, a, b, w: n.call(F.prelu, a, _weights(n, "act.weight", (1,), w))),
    "prelu of channels": ((4, 3, 2), lambda n, a, b, w: n.call(F.prelu, a, _weights(n, "act.weight", (4,), w))),
    "amax": ((4, 3), lambda n, a, b, w: n.call(torch.amax, a, (1,), True)),
    "avg_pool1d": ((3, 8), lambda n, a, b, w: n.call(F.avg_pool1d, a, (4,), (2,), (0,), False, True)),
    "avg_pool2d": ((3, 6, 7), lambda n, a, b, w: n.call(F.avg_pool2d, a, (2, 2), (2, 2), (1, 0), False, True)),
    "avg_pool2d in ceil mode": ((3, 6, 6), lambda n, a, b, w: n.call(F.avg_pool2d, a, (2, 2), (2, 2), (0, 0), True, True)),
    "max_pool1d": ((3, 9), lambda n, a, b, w: n.call(F.max_pool1d, a, (3,), (2,), (1,), (1,), False)),
    "max_pool2d": ((3, 7, 6), lambda n, a, b, w: n.call(F.max_pool2d, a, (2, 2), (2, 2), (0, 0), (1, 1), False)),
    "max_pool2d in ceil mode": ((3, 8, 7), lambda n, a, b, w: n.call(F.max_pool2d, a, (3, 2), (2, 3), (1, 0), (1, 2), True)),
    "max_pool2d in ceil mode, padded": (
        (3, 8, 8),
        lambda n, a, b, w: n.call(F.max_pool2d, a, (3, 3), (2, 2), (1, 1), (1, 1), True),
    ),
    "global mean": ((3, 4, 4), lambda n, a, b, w: n.call(torch.mean, a, (2, 3), False)),
    "global mean, keepdim": ((3, 4, 2), lambda n, a, b, w: n.call(torch.mean, a, (2, 3), True)),
    "global mean 1d": ((3, 8), lambda n, a, b, w: n.call(torch.mean, a, (2,), False)),
    "mean over channels": ((4, 3, 3), lambda n, a, b, w: n.call(torch.mean, a, (1,), False)),
    "mean of six": ((3, 3, 2), lambda n, a, b, w: n.call(scaled_sum, a, (2, 3), False, fixed_reciprocal(6, w))),
    "mean of five channels": ((5, 3), lambda n, a, b, w: n.call(scaled_sum, a, (1,), True, fixed_reciprocal(5, w))),
    "windows of three": ((3, 8), lambda n, a, b, w: n.call(scaled_pool, a, (3,), (2,), (1,), False, True, fixed_reciprocal(3, w))),
    "windows of six": (
        (2, 5, 6),
        lambda n, a, b, w: n.call(scaled_pool, a, (3, 2), (2, 2), (1, 0), False, True, fixed_reciprocal(6, w)),
    ),
    "upsample 1d": ((3, 4), lambda n, a, b, w: n.call(upsample, a, (3,))),
    "upsample 2d": ((3, 4, 2), lambda n, a, b, w: n.call(upsample, a, (1, 3))),
    "sum": ((3, 5), lambda n, a, b, w: n.call(torch.sum, a, (1, 2), False)),
    "pad and crop": ((3, 4, 5), lambda n, a, b, w: n.call(F.pad, a, (1, -2, 0, 3, 2, 1), "constant", 0)),
    "cat": ((3, 5), lambda n, a, b, w: n.call(torch.cat, (a, b, a), 2)),
    "reshape": ((3, 4), lambda n, a, b, w: n.call(torch.reshape, a, (-1, 2, 6))),
    "permute": ((3, 4, 2), lambda n, a, b, w: n.call(torch.permute, a, (0, 3, 1, 2))),
    "slices": ((6, 5), lambda n, a, b, w: n.call(operator.getitem, a, (slice(None), slice(1, None, 2), slice(-3, 4)))),
    "whole slice": ((6,), lambda n, a, b, w: n.call(operator.getitem, a, (slice(None), slice(None)))),
    "option A shortcut": (
        (4, 6, 6),
        lambda n, a, b, w: n.call(
            F.pad,
            n.call(operator.getitem, a, (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2))),
            (0, 0, 0, 0, 2, 2),
            "constant",
            0,
        ),
    ),
}
"""Every operator of the dialect on quantized inputs a and b of a sample shape; the last argument is the bits of its weights."""


def operator_net(name: str, bits: int, rounding: str = "RND", widened: bool = False) -> GraphModule:
    """Inputs x and y through quantizers of `bits` bits, the operator, and its raw result and its rounded one as outputs.

    widened: the operands carry 13 bits more, without a quantizer in between.
    """
    shape, make = OPERATORS[name]
    net = FrozenNet()
    a, b = (net.quantize(net.input(n, *shape), 1, 2, bits - 3, rounding) for n in "xy")
    if widened:
        a, b = (net.call(operator.mul, value, 1 + 2.0**-12) for value in (a, b))
    raw = make(net, a, b, bits)
    return net.done({"raw": raw, "rounded": net.quantize(raw, 1, 3, 2, rounding, name="last")})


def operator_inputs(name: str, bits: int, samples: int = 24) -> list[npt.NDArray[np.float32]]:
    shape = OPERATORS[name][0]
    return [stress_values((samples, *shape), bits - 3, 4.0, seed) for seed in (1, 2)]


def residual_net() -> GraphModule:
    """A small residual CNN: per-channel weights and biases, a fork, a join, a global mean, a classifier."""
    torch.manual_seed(0)
    net = FrozenNet()
    q = net.quantize(net.input("x", 2, 8, 8), 1, 2, 5)
    f = torch.tensor([6.0, 7.0, 8.0, 9.0])
    column = f.reshape(4, 1, 1, 1)
    w1 = net.parameter("conv1.weight", torch.randn(4, 2, 3, 3) * 0.3, 1, 7 - column, column)
    b1 = net.parameter("conv1.bias", torch.randn(4) * 0.5, 1, torch.tensor([3.0, 2.0, 1.0, 0.0]), f + 5)
    c1 = net.call(F.conv2d, q, w1, b1, (1, 1), (1, 1), (1, 1), 1, path="conv1")
    r1 = net.quantize(net.call(F.relu, c1), 0, 2, 4, name="relu")
    w2 = net.parameter("conv2.weight", torch.randn(4, 4, 3, 3) * 0.3, 1, 7 - column, column)
    c2 = net.call(F.conv2d, r1, w2, None, (1, 1), (1, 1), (1, 1), 1, path="conv2")
    joined = net.quantize(net.call(F.relu, net.call(operator.add, c2, r1)), 0, 3, 4, name="add")
    flat = net.call(torch.mean, joined, (2, 3), False)
    wl = net.parameter("fc.weight", torch.randn(5, 4) * 0.3, 1, 0, 7)
    bl = net.parameter("fc.bias", torch.randn(5), 1, 1, 10)
    return net.done(net.quantize(net.call(F.linear, flat, wl, bl, path="fc"), 1, 3, 4, name="fc"))
