"""Random networks on random and extreme inputs: no value leaves its interval, and integers equal torch in float64."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.tables import lookup
from pquant_fx.lower.exact_forward import compute_dtype
from pquant_fx.lower.integer import IntegerInterpreter, real
from tests.frozen_graphs import FrozenNet, double_reference

ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_MIN_INF", "RND_INF")
OVERFLOWS = ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP")
STEPS = (
    "relu",
    "leaky",
    "hardtanh",
    "prelu",
    "table",
    "below largest",
    "upward",
    "conv",
    "depthwise",
    "scale",
    "shift",
    "add",
    "sub",
    "mul",
    "maximum",
    "max",
    "avg",
    "roll",
    "quantize",
)


class RandomNet:
    """A chain of shape-keeping steps on (2, 3, 3) values, with joins to earlier values."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.net, self.values = draw, FrozenNet(), []
        self.add(self.quantized(self.net.input("x", 2, 3, 3)))

    def add(self, node: Node) -> None:
        self.values.append(node)

    def earlier(self) -> Node:
        return self.values[self.draw(st.integers(0, len(self.values) - 1))]

    def quantized(self, x: Node) -> Node:
        k, f = self.draw(st.integers(0, 1)), self.draw(st.integers(-1, 4))
        width = self.draw(st.integers(1, 6))
        shape = self.draw(st.sampled_from([(), (1, 2, 1, 1), (1, 2, 3, 3)]))
        grid = torch.full(shape, float(f)) + torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape) % 3
        modes = self.draw(st.sampled_from(ROUNDINGS)), self.draw(st.sampled_from(OVERFLOWS))
        return self.net.quantize(x, k, width - k - grid, grid, *modes, name=f"q{len(self.values)}")

    def step(self, kind: str) -> None:
        net, x, name = self.net, self.values[-1], f"p{len(self.values)}"
        seed = torch.Generator().manual_seed(len(self.values))
        match kind:
            case "relu":
                made = net.call(F.relu, x)
            case "leaky":
                made = net.call(F.leaky_relu, x, self.draw(st.sampled_from([0.125, 0.75, -0.5])))
            case "hardtanh":
                made = net.call(F.hardtanh, x, self.draw(st.sampled_from([-1.0, -0.375, 0.25])), 1.5)
            case "prelu":
                made = net.call(F.prelu, x, net.parameter(f"{name}.a", torch.tensor([-0.75, 0.375])))
            case "table":
                index = net.quantize(x, 1, 2, 2, "RND", "SAT", name=f"{name}i")
                entries = torch.randint(-99, 99, (32,), generator=seed) / 16
                made = net.call(lookup, index, net.parameter(f"{name}.t", entries), 2, -16)
            case "below largest":
                made = net.call(operator.sub, net.call(torch.amax, x, (1,), True), x)
            case "upward":
                w = net.parameter(f"{name}.u", torch.randn(2, 2, 2, 2, generator=seed), 1, 1, 3)
                made = net.call(F.conv_transpose2d, x, w, None, (1, 1), (1, 1), (0, 0), 1, (2, 2))
            case "conv" | "depthwise":
                groups = 2 if kind == "depthwise" else 1
                w = net.parameter(
                    f"{name}.w", torch.randn(2, 2 // groups, 3, 3, generator=seed), 1, 1, torch.tensor([2.0, 4.0]).reshape(2, 1, 1, 1)
                )
                b = net.parameter(f"{name}.b", torch.randn(2, generator=seed), 1, 2, 5) if self.draw(st.booleans()) else None
                made = net.call(F.conv2d, x, w, b, (1, 1), (1, 1), (1, 1), groups)
            case "scale":
                made = net.call(operator.mul, x, self.draw(st.sampled_from([0.5, -0.75, 3, 8])))
            case "shift":
                made = net.call(operator.add, net.parameter(f"{name}.c", torch.tensor([[[0.5]], [[-1.25]]])), x)
            case "add" | "sub" | "mul":
                made = net.call(getattr(operator, kind), x, self.earlier())
            case "maximum":
                made = net.call(torch.maximum, x, self.earlier())
            case "max":
                made = net.call(F.max_pool2d, x, (3, 3), (1, 1), (1, 1), (1, 1), False)
            case "avg":
                grown = net.call(F.pad, x, (1, 0, 0, 1), "constant", 0)
                made = net.call(F.avg_pool2d, grown, (2, 2), (1, 1), (0, 0), False, True)
            case "roll":
                parts = [net.call(operator.getitem, x, (slice(None), slice(a, b))) for a, b in ((1, 2), (0, 1))]
                made = net.call(torch.permute, net.call(torch.cat, tuple(parts), 1), (0, 1, 3, 2))
            case _:
                made = self.quantized(x)
        self.add(made)

    def done(self) -> GraphModule:
        total = self.net.call(torch.sum, self.values[-1], (1, 2), False)
        return self.net.done((self.values[-1], total))


@st.composite
def networks(draw: Any) -> GraphModule:
    made = RandomNet(draw)
    for kind in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        made.step(kind)
    return made.done()


@given(networks(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_random_networks_are_exact_and_inside_their_bounds(gm: GraphModule, seed: int) -> None:
    formats = analyse(gm)
    if formats.problems or max(formats.bits(n) or 0 for n in gm.graph.nodes) > 53:
        assert all(p.code == "PQ303" for p in formats.problems.values())
        return
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(12, 2, 3, 3)) * 8, rng.choice([-100.0, 100.0, 0.0, 0.40625], (12, 2, 3, 3))])
    outputs, values = IntegerInterpreter(gm).run(x, trace=True)
    for got, expected in zip(outputs, double_reference(gm, x)):
        assert np.array_equal(real(*got), expected)
    for node in gm.graph.nodes:
        if node.name in values:
            assert formats[node].contains(values[node.name]), node.name
    dtype = compute_dtype(gm, formats)
    with torch.no_grad():
        forward = gm.to(dtype)(torch.from_numpy(x.astype(np.float32)).to(dtype))
    again = IntegerInterpreter(gm, formats).run(x.astype(np.float32))
    for got, computed in zip(again, forward):
        assert np.array_equal(real(*got), computed.double().numpy())
