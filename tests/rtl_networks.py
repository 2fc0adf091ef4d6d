"""Small frozen networks for the tests of RTL, and which tools those need."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq

__all__ = ["Everything", "frozen", "mlp", "needs", "small_bits"]


def needs(tool: str) -> Any:
    """Marks a test that runs a program: `rtl`, and skipped where it is not installed."""
    missing = pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")

    def mark(test: Any) -> Any:
        return pytest.mark.rtl(missing(test))

    return mark


def small_bits(bits: int = 4, **more: Any) -> dict[str, Any]:
    chosen = {"default_data_bits": bits, "default_weight_bits": bits, **more}
    return {"preset": "fixed8", "quantization_parameters": chosen}


def frozen(net: nn.Module, x: Any, config: Any = None) -> pq.FrozenModel:
    return pq.compile(net, small_bits() if config is None else config, x).freeze()


def mlp() -> tuple[pq.FrozenModel, Tensor]:
    """8 -> 6 -> 3, and 50 samples."""
    torch.manual_seed(0)
    x = torch.randn(50, 8)
    return frozen(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), x), x


class Everything(nn.Module):
    """A convolution with padding, a residual join, a table, a maximum, a product of values, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.head, self.gate = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.first(x))
        y = torch.tanh(self.second(y) + y)
        peak = F.max_pool2d(y, 2).amax((2, 3))
        return self.head(y.mean((2, 3))) * self.gate(peak), -peak
