"""Random graphs with every operator that EBOPs know, for a count by brute force."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from tests.frozen_graphs import FrozenNet

STEPS = (
    *("conv", "conv", "grouped", "depthwise", "transposed", "add", "add", "sub", "maximum", "minimum", "mul"),
    *("cat", "max_pool", "avg_pool", "pad", "slice", "turn", "relu", "relu", "scale", "shift", "constant"),
)
JOINS: dict[str, Any] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


class RandomGraph:
    """A chain of steps on maps (C, H, W) or sequences (C, L), then rows through a matmul and a Linear.

    full: every constant's code uses all bits of its format, and every result is quantized at once, so that the surrogate has
    nothing to overestimate.
    """

    def __init__(self, seed: int, full: bool = False) -> None:
        self.rng, self.net, self.full = np.random.default_rng(seed), FrozenNet(), full
        self.axes = int(self.rng.integers(1, 3))
        shape = (int(self.rng.choice([2, 4])), *(int(n) for n in self.rng.integers(3, 6, self.axes)))
        x = self.net.input("x", *shape)
        self.values = [(self.quantized(x, shape), shape)]
        for step in self.rng.choice(STEPS, self.rng.integers(3, 7)):
            self.step(str(step))
        self.gm = self.finish()

    # ---- formats
    def quantized(self, x: Node, shape: tuple[int, ...]) -> Node:
        """One format, one a channel or one an element; some store nothing."""
        kind = self.rng.integers(0, 3)
        group = {0: (), 1: (1, shape[0], *(1 for _ in shape[1:])), 2: (1, *shape)}[int(kind)]
        k = float(self.rng.integers(0, 2))
        bits = self.rng.integers(0, 6, group) - (0 if self.full else 1)
        i = self.rng.integers(-1, 3, group)
        f = torch.tensor(bits - i, dtype=torch.float32)
        name = f"v{len(list(self.net.graph.nodes))}"
        overflow = str(self.rng.choice(["SAT", "WRAP"])) if (bits > 0).all() else "SAT"
        if self.full:
            k = torch.tensor(k * (bits > 0), dtype=torch.float32)  # a lone sign bit is no magnitude: the surrogate counts none
        return self.net.quantize(x, k, torch.tensor(i, dtype=torch.float32), f, "RND", overflow, name)

    def parameter(self, *shape: int) -> Node:
        """Codes of 1 to 5 bits with a format for all, for each output, or for each."""
        group = {0: (), 1: (shape[0], *(1 for _ in shape[1:])), 2: shape}[int(self.rng.integers(0, 3))]
        bits = np.broadcast_to(self.rng.integers(1, 6, group), shape)
        f = np.broadcast_to(self.rng.integers(-1, 5, group), shape)
        codes = (1 << (bits - 1)) | 1 if self.full else self.rng.integers(0, 1 << bits)
        codes = np.where(bits == 1, 1, codes) if self.full else codes
        value = torch.tensor(codes * np.exp2(-f.astype(float)) * self.rng.choice([-1, 1], shape), dtype=torch.float32)
        at = (slice(0, 1) if s != d else slice(None) for s, d in zip((1,) * (len(shape) - len(group)) + group, shape))
        part = tuple(at)
        b, g = (torch.tensor(np.ascontiguousarray(a[part]), dtype=torch.float32) for a in (bits, f))
        return self.net.parameter(f"p{len(list(self.net.graph.nodes))}", value, 1, b - g, g)

    # ---- steps
    def step(self, kind: str) -> None:
        x, shape = self.values[-1]
        made = self.join(kind, x, shape) if kind in (*JOINS, "cat") else getattr(self, f"do_{kind}", self.do_conv)(kind, x, shape)
        if made is None:
            return
        node, shape = made
        if self.full or self.rng.random() < 0.6:
            node = self.quantized(node, shape)
        self.values.append((node, shape))

    def join(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]] | None:
        if kind == "cat":
            parts = [v for v, s in self.values if s[1:] == shape[1:]][-2:]
            channels = sum(s[0] for v, s in self.values if v in parts)
            return (self.net.call(torch.cat, tuple(parts), 1), (channels, *shape[1:])) if channels <= 8 else None
        others = [v for v, s in self.values if s == shape]
        return self.net.call(JOINS[kind], x, others[int(self.rng.integers(0, len(others)))]), shape

    def do_conv(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        n = self.axes
        groups = {"conv": 1, "grouped": 2 if shape[0] % 2 == 0 else 1, "depthwise": shape[0], "transposed": 1 + (shape[0] % 2 == 0)}[kind]
        outputs = groups * int(self.rng.integers(1, 3))
        kernel = tuple(int(self.rng.integers(1, min(4, size + 1))) for size in shape[1:])
        stride, padding = (tuple(int(v) for v in self.rng.integers(low, low + 2, n)) for low in (1, 0))
        dilation = tuple(int(self.rng.integers(1, 3)) if d * 2 - 1 <= size else 1 for d, size in zip(kernel, shape[1:]))
        bias = self.parameter(outputs) if self.rng.random() < 0.5 else None
        if kind == "transposed":
            padding = tuple(min(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel))
            w = self.parameter(shape[0], outputs // groups, *kernel)
            call, geometry = (F.conv_transpose1d, F.conv_transpose2d)[n - 1], (stride, padding, (0,) * n, groups, dilation)
            size = [(s - 1) * t - 2 * p + d * (k - 1) + 1 for s, t, p, d, k in zip(shape[1:], stride, padding, dilation, kernel)]
        else:
            w = self.parameter(outputs, shape[0] // groups, *kernel)
            call, geometry = (F.conv1d, F.conv2d)[n - 1], (stride, padding, dilation, groups)
            size = [(s + 2 * p - d * (k - 1) - 1) // t + 1 for s, t, p, d, k in zip(shape[1:], stride, padding, dilation, kernel)]
        return self.net.call(call, x, w, bias, *geometry), (outputs, *size)

    def do_max_pool(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        n = self.axes
        made = self.net.call((F.max_pool1d, F.max_pool2d)[n - 1], x, (2,) * n, (1,) * n, (1,) * n, (1,) * n, False)
        return made, (shape[0], *(s + 1 for s in shape[1:]))

    def do_avg_pool(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]] | None:
        n = self.axes
        if min(shape[1:]) < 2:
            return None
        made = self.net.call((F.avg_pool1d, F.avg_pool2d)[n - 1], x, (2,) * n, (1,) * n, (0,) * n, False, True)
        return made, (shape[0], *(s - 1 for s in shape[1:]))

    def do_pad(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        return self.net.call(F.pad, x, (1, 0), "constant", 0), (*shape[:-1], shape[-1] + 1)

    def do_slice(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        index = (*(slice(None) for _ in shape), slice(None, None, 2))
        return self.net.call(operator.getitem, x, index), (*shape[:-1], -(-shape[-1] // 2))

    def do_turn(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        return self.net.call(torch.permute, x, (0, *range(len(shape), 0, -1))), shape[::-1]

    def do_relu(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        return self.net.call(F.relu, x), shape

    def do_scale(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        return self.net.call(operator.mul, x, self.parameter(shape[0], *(1 for _ in shape[1:]))), shape

    def do_shift(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        return self.net.call(operator.mul, x, float(self.rng.choice([0.5, -4, 0.75]))), shape

    def do_constant(self, kind: str, x: Node, shape: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
        call = operator.add if self.rng.random() < 0.5 else operator.sub
        return self.net.call(call, x, self.parameter(shape[0], *(1 for _ in shape[1:]))), shape

    def finish(self) -> GraphModule:
        """Rows through a batched matmul with themselves, a sum over one axis, and a Linear."""
        x, shape = self.values[-1]
        rows = self.quantized(self.net.call(torch.reshape, x, (-1, shape[0], int(np.prod(shape[1:])))), (shape[0], int(np.prod(shape[1:]))))
        columns = self.net.call(torch.permute, rows, (0, 2, 1))
        product = self.quantized(self.net.call(torch.matmul, rows, columns), (shape[0], shape[0]))
        summed = self.quantized(self.net.call(torch.sum, product, (1,), False), (shape[0],))
        heads = [self.net.call(F.linear, v, self.parameter(3, shape[0]), self.parameter(3)) for v in (product, summed)]
        return self.net.done(tuple(heads))
