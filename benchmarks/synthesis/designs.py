"""Small networks of every kind on scikit-learn's digits, shrunk to 4x4 pixels: trained for a few seconds, frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.demo_network import Digits, load_digits

__all__ = ["DESIGNS", "Design", "build", "digits"]

EPOCHS = 30


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class Convolutional(nn.Module):
    """(N, 1, 4, 4) -> (N, 10); with a residual join, or with maximum pooling."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 2, 1)
        self.shortcut = nn.Conv2d(channels, channels, 1, 2) if residual else None
        self.head = nn.Linear(channels * (4 if residual else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = self.second(x)
        if self.shortcut is not None:
            return self.head(F.relu(y + self.shortcut(x)).flatten(1))
        return self.head(F.max_pool2d(F.relu(y), 2).flatten(1))


class Gated(nn.Module):
    """Products of values: a layer times the sigmoid of another."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(self.value(x) * torch.sigmoid(self.gate(x)))


@dataclass(frozen=True)
class Design:
    """bits: of weights and values; sparsity: share of zero weights."""

    name: str
    network: Callable[[], nn.Module]
    bits: int = 8
    sparsity: float = 0.0
    preset: str = "fixed8"
    settings: tuple[tuple[str, Any], ...] = ()


DESIGNS = (
    Design("mlp 16-8-10", lambda: mlp(16, 8, 10)),
    Design("mlp 16-16-10, 6 bits", lambda: mlp(16, 16, 10), 6),
    Design("mlp 16-32-10, 4 bits", lambda: mlp(16, 32, 10), 4),
    Design("mlp 16-24-10, half zero", lambda: mlp(16, 24, 10), 8, 0.5),
    Design("mlp 16-32-16-10, 6 bits, 80 % zero", lambda: mlp(16, 32, 16, 10), 6, 0.8),
    Design("mlp 16-64-32-10, 90 % zero", lambda: mlp(16, 64, 32, 10), 8, 0.9),
    Design("mlp 16-64-32-32-10, 5 bits, 85 % zero", lambda: mlp(16, 64, 32, 32, 10), 5, 0.85),
    Design("mlp 16-16-16-16-10, 3 bits", lambda: mlp(16, 16, 16, 16, 10), 3),
    Design("mlp 16-32-10, format for each weight", lambda: mlp(16, 32, 10), 6, 0.0, "fixed_per_weight"),
    Design("mlp 16-32-32-10, learned bits", lambda: mlp(16, 32, 32, 10), 8, 0.0, "hgq", (("hgq_beta", 1e-4),)),
    Design("mlp 16-16-10, tanh, 6 bits", lambda: mlp(16, 16, 10, activation=nn.Tanh), 6),
    Design("mlp 16-12-12-10, 10 bits, 60 % zero", lambda: mlp(16, 12, 12, 10), 10, 0.6),
    Design("convolutions and maximum, 4 bits, half zero", lambda: Convolutional(3, False), 4, 0.5),
    Design("convolutions and maximum, 6 bits, 80 % zero", lambda: Convolutional(4, False), 6, 0.8),
    Design("residual, 5 bits, 70 % zero", lambda: Convolutional(4, True), 5, 0.7),
    Design("gated product, 6 bits", Gated, 6),
)


def digits() -> Digits:
    """(N, 1, 4, 4) in steps of 1/64 from 0 to 1."""
    data = load_digits()
    return Digits(F.avg_pool2d(data.x, 2), data.y, F.avg_pool2d(data.x_test, 2), data.y_test)


def build(design: Design, data: Digits, epochs: int = EPOCHS) -> pq.FrozenModel:
    """Trained by a fixed seed on one thread, and frozen: the same network every time."""
    config: dict[str, Any] = {
        "preset": design.preset,
        "training_parameters": {"epochs": epochs, "fine_tuning_epochs": epochs // 5, "batch_size": 64, "learning_rate": 4e-3},
        "quantization_parameters": dict(design.settings),
    }
    if design.preset != "hgq":
        config["quantization_parameters"] |= {"default_weight_bits": design.bits, "default_data_bits": design.bits}
    if design.sparsity:
        config["pruning_parameters"] = {"pruning_method": "magnitude", "sparsity": design.sparsity, "interval": 1}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = pq.compile(design.network(), config, data.x[:256])
            model.fit((data.x, data.y))
        return model.calibrate(data.x).freeze()
    finally:
        torch.set_num_threads(threads)
