"""The two tasks and their networks, in float: what is compared is pruning alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.hgq_side_by_side.protocol import HIDDEN, Task

__all__ = ["Digits", "network", "task", "write_digits"]


class ResidualCNN(nn.Module):
    """A convolution, a residual block, pooling, a convolution, a linear layer: 1 x 8 x 8 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.wide, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32 * 4, 10)
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(4))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relus[0](self.stem(x))
        x = self.pool(self.relus[2](x + self.b(self.relus[1](self.a(x)))))
        return self.head(self.pool(self.relus[3](self.wide(x))).flatten(1))


class Digits(Task):
    """scikit-learn's handwritten digits as images (rows, 1, 8, 8) in [0, 1]."""

    def __init__(self, folder: str, name: str) -> None:
        data = np.load(Path(folder) / f"{name}.npz")
        self.x, self.x_test = data["x_train"], data["x_test"]
        self.y, self.y_test = data["y_train"], data["y_test"]
        self.classes = 10


def task(folder: str, name: str) -> Task:
    return Digits(folder, name) if name == "digits" else Task(folder, name)


def network(task: Task) -> nn.Module:
    if task.x.ndim == 4:
        return ResidualCNN()
    widths = (task.x.shape[1], *HIDDEN, task.classes)
    layers: list[nn.Module] = [module for n, m in pairwise(widths) for module in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def write_digits(path: Path) -> None:
    """1,347 images to train on and 450 to test on, always the same."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = (found.images[order] / 16).astype(np.float32)[:, None]
    y = found.target[order].astype(np.int64)
    cut = len(x) - 450
    np.savez(path, x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:])


def zeros(weights: list[Tensor]) -> float:
    """Share of zeros in all prunable weights together."""
    return float(sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights))


def batches(count: int, size: int) -> list[Tensor]:
    return list(torch.randperm(count).split(size))
