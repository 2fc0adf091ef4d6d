"""Random frozen graphs with dead channels in them: zero rows and columns, zero-width formats, joins, blocks, offsets."""

from __future__ import annotations

import operator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.tables import lookup
from pquant_fx.passes.bake_weights import bake_weights
from tests.frozen_graphs import FrozenNet

__all__ = ["DeadNet", "dead_networks", "samples"]

STEPS = (
    "conv",
    "conv",
    "conv",
    "depthwise",
    "grouped",
    "upward",
    "relu",
    "table",
    "prelu",
    "add",
    "mul",
    "maximum",
    "constant",
    "cat",
    "slice",
    "pad",
    "swap",
    "pool",
    "fold",
    "quantize",
    "quantize",
    "again",
)


class DeadNet:
    """Steps on (C, 4, 4) values with changing C; `draw` decides what is zero."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.net, self.count = draw, FrozenNet(), 0
        self.channels: dict[Node, int] = {}
        self.layers: list[tuple[Node, Node | None, int, int]] = []
        self.values: list[Node] = []
        x = self.add(self.net.quantize(self.net.input("x", 3, 4, 4), 1, 3, 2, name="input"), 3)
        self.add(self.quantized(self.convolved(x, 5), 5), 5)

    def add(self, node: Node, channels: int) -> Node:
        self.channels[node] = channels
        self.values.append(node)
        return node

    def name(self) -> str:
        self.count += 1
        return f"p{self.count}"

    def chosen(self, size: int, share: float = 0.5) -> list[bool]:
        """Which of `size` indices are dead."""
        generator = torch.Generator().manual_seed(self.draw(st.integers(0, 2**16)))
        return (torch.rand(size, generator=generator) < share).tolist()

    def weight(self, outputs: int, *shape: int, rows: bool = True, columns: bool = True) -> Node:
        seed = torch.Generator().manual_seed(self.count)
        w = torch.randn(outputs, *shape, generator=seed) * 2
        if rows:
            w[torch.tensor(self.chosen(outputs))] = 0
        if columns and len(shape) > 0 and self.draw(st.booleans()):
            w[:, torch.tensor(self.chosen(shape[0], 0.3))] = 0
        size = (outputs, *(1 for _ in shape))
        kind = self.draw(st.sampled_from(["tensor", "channel", "weight"]))
        f = {
            "tensor": torch.tensor(2.0),
            "channel": (torch.arange(outputs) % 3 + 1.0).reshape(size),
            "weight": (torch.arange(w.numel()) % 3 + 1.0).reshape(w.shape),
        }[kind]
        return self.net.parameter(f"{self.name()}.w", w, 1, 2, f)

    def bias(self, outputs: int) -> Node | None:
        if self.draw(st.booleans()):
            return None
        b = torch.randn(outputs, generator=torch.Generator().manual_seed(self.count + 99))
        b[torch.tensor(self.chosen(outputs, 0.7))] = 0
        return self.net.parameter(f"{self.name()}.b", b, 1, 2, 4)

    def quantized(self, x: Node, channels: int) -> Node:
        shape = self.draw(st.sampled_from([(), (1, channels, 1, 1), (1, channels, 4, 4)]))
        width = torch.full(shape, 5.0)
        if shape and self.draw(st.booleans()):
            width[:, torch.tensor(self.chosen(channels, 0.3))] = 0
        f = torch.full(shape, float(self.draw(st.integers(0, 3))))
        k = torch.where(width > 0, 1.0, 0.0) if self.draw(st.booleans()) else torch.zeros(shape)
        modes = self.draw(st.sampled_from(["RND", "TRN", "RND_CONV"])), self.draw(st.sampled_from(["SAT", "WRAP", "SAT_SYM"]))
        return self.net.quantize(x, k, width - k - f, f, *modes, name=self.name())

    def partner(self, channels: int) -> Node:
        """A value of as many channels: an earlier one, or another layer of an earlier one."""
        same = [v for v in self.values if self.channels[v] == channels]
        if self.draw(st.booleans()):
            return self.draw(st.sampled_from(same))
        return self.quantized(self.convolved(self.draw(st.sampled_from(self.values)), channels), channels)

    def convolved(self, x: Node, outputs: int) -> Node:
        kernel = self.draw(st.sampled_from([1, 3]))
        w = self.weight(outputs, self.channels[x], kernel, kernel)
        b = self.bias(outputs)
        self.layers.append((w, b, self.channels[x], outputs))
        return self.conv(x, w, b)

    def conv(self, x: Node, w: Node, b: Node | None, groups: int = 1) -> Node:
        source = w.args[0] if w.args else w
        side = self.net.root.get_submodule(str(source.target).rpartition(".")[0]).w.shape[-1] // 2  # type: ignore[union-attr]
        return self.net.call(F.conv2d, x, w, b, (1, 1), (side, side), (1, 1), groups)

    def step(self, kind: str) -> None:
        """Add what the step of that name makes of the value made last, where there is a place for it."""
        x = self.values[-1]
        found = getattr(self, f"_{kind}")(x, self.channels[x])
        if found is not None:
            self.add(*found)

    # ---- layers: (value, channels) of the result
    def _conv(self, x: Node, c: int) -> tuple[Node, int]:
        c = self.draw(st.integers(1, 6))
        return self.quantized(self.convolved(x, c), c), c

    def _depthwise(self, x: Node, c: int) -> tuple[Node, int]:
        each = self.draw(st.integers(1, 2))
        made = self.conv(x, self.weight(c * each, 1, 3, 3, columns=False), self.bias(c * each), c)
        return self.quantized(made, c * each), c * each

    def _grouped(self, x: Node, c: int) -> tuple[Node, int]:
        wide = self.net.call(torch.cat, (x, x), 1)
        return self.quantized(self.conv(wide, self.weight(4, c, 1, 1), self.bias(4), 2), 4), 4

    def _upward(self, x: Node, c: int) -> tuple[Node, int]:
        w = self.weight(c, 3, 3, 3)
        made = self.net.call(F.conv_transpose2d, x, w, self.bias(3), (1, 1), (1, 1), (0, 0), 1, (1, 1))
        return self.quantized(made, 3), 3

    def _again(self, x: Node, c: int) -> tuple[Node, int] | None:
        fitting = [layer for layer in self.layers if layer[2] == c]
        if not fitting:
            return None
        w, b, _, c = self.draw(st.sampled_from(fitting))
        return self.quantized(self.conv(x, w, b), c), c

    # ---- single values
    def _relu(self, x: Node, c: int) -> tuple[Node, int]:
        return self.net.call(F.relu, x), c

    def _table(self, x: Node, c: int) -> tuple[Node, int]:
        index = self.net.quantize(x, 1, 2, 2, "RND", "SAT", name=self.name())
        entries = torch.randint(-9, 9, (32,), generator=torch.Generator().manual_seed(self.count)) / 4
        return self.net.call(lookup, index, self.net.parameter(f"{self.name()}.t", entries), 2, -16), c

    def _prelu(self, x: Node, c: int) -> tuple[Node, int]:
        slopes = self.net.parameter(f"{self.name()}.a", (torch.arange(c) - 1.0) / 2)
        return self.quantized(self.net.call(F.prelu, x, slopes), c), c

    def _constant(self, x: Node, c: int) -> tuple[Node, int]:
        held = torch.where(torch.tensor(self.chosen(c)), 0.0, 0.5).reshape(c, 1, 1)
        return self.net.call(self.draw(st.sampled_from([operator.mul, operator.add])), x, self.net.parameter(f"{self.name()}.c", held)), c

    def _quantize(self, x: Node, c: int) -> tuple[Node, int]:
        return self.quantized(x, c), c

    # ---- joins
    def _add(self, x: Node, c: int) -> tuple[Node, int]:
        return self.quantized(self.net.call(operator.add, x, self.partner(c)), c), c

    def _mul(self, x: Node, c: int) -> tuple[Node, int]:
        return self.quantized(self.net.call(operator.mul, x, self.partner(c)), c), c

    def _maximum(self, x: Node, c: int) -> tuple[Node, int]:
        return self.net.call(torch.maximum, x, self.partner(c)), c

    def _cat(self, x: Node, c: int) -> tuple[Node, int]:
        other = self.draw(st.sampled_from(self.values))
        return self.net.call(torch.cat, (x, other), 1), c + self.channels[other]

    # ---- what only moves values
    def _slice(self, x: Node, c: int) -> tuple[Node, int]:
        start = self.draw(st.integers(0, c - 1))
        stop = self.draw(st.integers(start + 1, c))
        return self.net.call(operator.getitem, x, (slice(None), slice(start, stop, 1))), stop - start

    def _pad(self, x: Node, c: int) -> tuple[Node, int]:
        front, back = self.draw(st.integers(-1 if c > 2 else 0, 2)), self.draw(st.integers(-1 if c > 2 else 0, 2))
        return self.net.call(F.pad, x, (0, 0, 0, 0, front, back), "constant", 0), c + front + back

    def _swap(self, x: Node, c: int) -> tuple[Node, int]:
        return self.net.call(torch.permute, self.net.call(torch.permute, x, (0, 2, 3, 1)), (0, 3, 2, 1)), c

    def _pool(self, x: Node, c: int) -> tuple[Node, int]:
        return self.net.call(F.max_pool2d, x, (3, 3), (1, 1), (1, 1), (1, 1), False), c

    def _fold(self, x: Node, c: int) -> tuple[Node, int]:
        return self.net.call(torch.reshape, self.net.call(torch.reshape, x, (-1, c * 16)), (-1, c, 4, 4)), c

    def done(self) -> GraphModule:
        """Heads: features of a flattened image, means of channels, a product of all channels with each other."""
        net, x = self.net, self.values[-1]
        c = self.channels[x]
        outputs = []
        if self.draw(st.booleans()):
            rows = net.call(torch.reshape, x, (-1, c, 16))
            paired = net.call(torch.matmul, net.call(torch.permute, rows, (0, 2, 1)), rows)
            outputs.append(net.call(torch.sum, paired, (1,), False))
        if self.draw(st.booleans()):
            outputs.append(net.call(F.linear, net.call(torch.mean, x, (2, 3), False), self.weight(2, c, rows=False), None))
        if not outputs or self.draw(st.booleans()):
            flat = net.call(torch.reshape, x, (-1, c * 16))
            outputs.append(net.call(F.linear, flat, self.weight(2, c * 16, rows=False), self.bias(2)))
        gm = net.done(tuple(outputs))
        bake_weights(gm)
        gm.recompile()
        return gm


@st.composite
def dead_networks(draw: Any) -> GraphModule:
    """A network of up to ten steps; some channels are zero for every input, some are never read."""
    made = DeadNet(draw)
    for kind in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=10)):
        made.step(kind)
    return made.done()


def samples(seed: int, *shape: int) -> Tensor:
    """Ordinary, saturating and tied values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, *shape, generator=generator) * 4
    return torch.cat([x, x * 100, (x * 4).round() / 4 + 0.125, torch.zeros(1, *shape)])
