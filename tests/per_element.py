"""Compiled networks whose quantizers are exchanged for ones with a random format per element, channel or tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.compiled import CompiledModel
from pquant_fx.graph.constants import constant_values
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, module_of
from pquant_fx.graph.info import info
from pquant_fx.quantize import LearnedQuantizer
from pquant_fx.quantize.static import FixedQuantizer

__all__ = ["NETWORKS", "ROUNDINGS", "Formats", "Perceptron", "ResidualImage", "compiled", "learned", "probes"]

ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_MIN_INF", "RND_INF")


class Perceptron(nn.Sequential):
    """(N, 6) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))


class ResidualImage(nn.Module):
    """(N, 2, 4, 4) -> (N, 3): an identity block, a 1x1 shortcut with stride, a maximum, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.block = nn.Conv2d(3, 3, 3, padding=1)
        self.down, self.short = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 1, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.block(x) + x)
        x = F.relu(self.down(x) + self.short(x))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Joins(nn.Module):
    """(N, 4, 5) -> two outputs: concatenation, a difference, a product, a grouped 1-d convolution, a permute, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.point = nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.Conv1d(8, 4, 1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.depth(x))
        z = self.point(torch.cat((x, y), 1)) - x * 0.75
        return self.head((z * y).transpose(1, 2).flatten(1)), F.avg_pool1d(torch.maximum(z, y), 4)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (Perceptron, (6,)),
    "residual": (ResidualImage, (2, 4, 4)),
    "joins": (Joins, (4, 5)),
}


def compiled(name: str, seed: int = 0) -> CompiledModel:
    torch.manual_seed(seed)
    make, shape = NETWORKS[name]
    return pq.compile(make(), "fixed8", torch.randn(64, *shape))


def learned(name: str, settings: Mapping[str, Any], steps: int = 40) -> CompiledModel:
    """A network of the preset `hgq` after a short training with a price on every bit, calibrated for its last weights."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    x = torch.randn(128, *shape)
    model = pq.compile(make(), {"preset": "hgq", "quantization_parameters": dict(settings)}, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    target = torch.tanh(x.flatten(1)[:, :3].cumsum(1))
    quantizers = [m for m in model.modules() if isinstance(m, LearnedQuantizer)]
    for quantizer in quantizers:
        quantizer.begin_learning()
    price = model.ebops_plan()
    for _ in range(steps):
        optimizer.zero_grad()
        (F.mse_loss(model.train()(x)[:, :3], target) + 1e-5 * price()).backward()
        optimizer.step()
        for quantizer in quantizers:
            quantizer.clamp_()
    model.calibrate(x)
    return model


def probes(name: str, seed: int = 0, count: int = 20) -> Tensor:
    """Ordinary, saturating, tiny and on-grid samples, and ties of the grids 2^0 .. 2^-6."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *NETWORKS[name][1], generator=generator)
    grid = 2.0 ** -torch.randint(0, 7, x.shape, generator=generator)
    return torch.cat([x, 40 * x, 1e-3 * x, torch.round(3 * x / grid) * grid, (torch.round(3 * x / grid) + 0.5) * grid])


@dataclass
class Formats:
    """What is drawn for every quantizer: magnitude bits, f, a share of dead elements, modes; data per "element", "channel", "tensor"."""

    seed: int
    data: str = "element"
    bits: tuple[int, int] = (1, 8)
    fraction: tuple[int, int] = (-1, 6)
    weight_fraction: tuple[int, int] = (2, 7)
    dead: float = 0.1
    roundings: Sequence[str] = ROUNDINGS
    overflows: Sequence[str] = ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP", "WRAP_SM")
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def give(self, model: CompiledModel) -> CompiledModel:
        """Exchange every quantizer of `model` for one with drawn formats; signs of data as they were or drawn."""
        gm = model.graph_module
        parameters = constant_values(gm)
        done = set[str]()
        for node in gm.graph.nodes:
            quantizer = module_of(gm, node)
            if not isinstance(quantizer, Quantizer) or node.target in done:
                continue
            done.add(str(node.target))
            held = is_parameter_value(node)
            shape = tuple(parameters[node].shape) if held else self._data_shape(tuple(info(node.all_input_nodes[0]).shape or ()))
            owner, _, name = str(node.target).rpartition(".")
            setattr(gm.get_submodule(owner), name, self._quantizer(shape, self.weight_fraction if held else self.fraction, held))
        return model

    def _data_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channel = (1, *shape[1:2], *(1 for _ in shape[2:]))
        return {"element": (1, *shape[1:]), "channel": channel, "tensor": ()}[self.data]

    def _quantizer(self, shape: tuple[int, ...], fraction: tuple[int, int], held: bool) -> FixedQuantizer:
        rounding, overflow = self._one_of(self.roundings), self._one_of(self.overflows)
        bits, f = self._between(self.bits, shape), self._between(fraction, shape)
        signed = held or overflow == "WRAP_SM"
        k = torch.ones(shape) if signed else self._between((0, 1), shape)
        alive = torch.rand(shape, generator=self.generator) >= self.dead
        return FixedQuantizer(k, torch.where(alive, bits - f, -f - k), f, rounding, overflow)

    def _between(self, limits: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
        return torch.randint(limits[0], limits[1] + 1, shape, generator=self.generator).float()

    def _one_of(self, names: Sequence[str]) -> str:
        return names[int(torch.randint(len(names), (), generator=self.generator))]
