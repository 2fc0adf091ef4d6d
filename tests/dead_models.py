"""Small networks to remove channels from by hand, and what has to hold when they are frozen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import pquant_fx as pq
from pquant_fx.frozen import FrozenModel
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info
from tests.models import Bottleneck, OptionA

__all__ = ["CONFIGS", "Constant", "Grouped", "Heads", "Stream", "counts", "pair", "told", "zero"]

PER_WEIGHT = {"preset": "hgq"}
PER_CHANNEL = {"preset": "hgq", "quantization_parameters": {"granularity": "per_channel"}}
PER_ELEMENT = {"preset": "hgq", "layers": {"*": {"data_granularity": "per_element"}}}
CONFIGS: dict[str, Any] = {"fixed8": "fixed8", "per weight": PER_WEIGHT, "per channel": PER_CHANNEL, "per element": PER_ELEMENT}


def zero(*parameters: Tensor | None, units: Any) -> None:
    """Remove output units by hand, as a structured mask does."""
    with torch.no_grad():
        for p in parameters:
            if p is not None:
                p[units] = 0


def pair(net: nn.Module, *shapes: tuple[int, ...], config: Any = "fixed8") -> tuple[FrozenModel, FrozenModel, tuple[Tensor, ...]]:
    """The network frozen without and with removal, checked to give the same bits in every engine, and the samples."""
    torch.manual_seed(1)
    x = tuple(torch.randn(24, *shape) for shape in shapes)
    model = pq.compile(net.eval(), config, x).calibrate([x])
    masked, small = model.freeze(remove_dead_channels=False), model.freeze()
    x = tuple(torch.cat([v, 50 * v, (v * 16).round() / 16 + 2**-6]) for v in x)
    for a, b in zip(*(tree_leaves(f.integer(*x)) for f in (masked, small)), strict=True):
        assert torch.equal(a, b)
    assert small.verify(x, targets=("integer", "onnx", "qonnx")).ok
    assert not masked.removed.layers
    return masked, small, x


def told(frozen: FrozenModel) -> dict[str, tuple[int, int]]:
    """Outputs and inputs that each layer lost, as the record says."""
    return {r.layer: (len(r.removed_outputs), len(r.removed_inputs)) for r in frozen.removed.layers}


def counts(frozen: FrozenModel) -> dict[str, tuple[int, int]]:
    """Parameters and MACs of every layer, from the tensors that are stored."""
    gm, found = frozen.graph_module, {}
    for node in gm.graph.nodes:
        op = op_of(node)
        if op is not None and op.kind == "weighted":
            w = gm.get_buffer(str(node.args[1].args[0].target))
            b = gm.get_buffer(str(node.args[2].args[0].target)) if node.args[2] is not None else ()
            shape = info(node).shape
            positions = math.prod(shape[2:] if op.name.startswith("conv") else shape[1:-1])
            found[info(node).label] = (w.numel() + len(b), w.numel() * positions)
    return found


class Stream(nn.Module):
    """A residual stream through an identity, a 1x1 and an option-A block; (N, 2, 8, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.same, self.wide, self.down = Bottleneck(6, 6), Bottleneck(6, 8, 2), OptionA(8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        return self.head(self.down(self.wide(self.same(x))).mean((2, 3)))


class Grouped(nn.Module):
    """Depthwise, grouped, transposed, max pool, flatten: (N, 3, 8, 8) -> (N, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.group = nn.Conv2d(8, 12, 3, groups=4)
        self.up = nn.ConvTranspose2d(12, 5, 2, 2)
        self.head = nn.Linear(5 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(F.relu(self.depth(F.relu(self.stem(x))))))
        return self.head(F.max_pool2d(F.relu(self.up(x)), 2).flatten(1))


class Constant(nn.Module):
    """A unit with weights of zero gives sigmoid(0) = 0.5; `padding` decides whether its reader sees it everywhere."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=padding), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.b(torch.sigmoid(self.a(x)))).mean((2, 3)))


class Heads(nn.Module):
    """Two attention heads without softmax: (N, 5, 6) -> (N, 5, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).reshape(-1, 5, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(((q @ k.transpose(2, 3)) @ v).transpose(1, 2).reshape(-1, 5, 8))
