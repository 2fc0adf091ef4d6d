"""Learned quantizers with a first format, and the values that they have it from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pquant_fx.quantize import HGQData, HGQWeight

__all__ = ["KINDS", "OVERFLOWS", "W", "X", "both", "calibrated", "data", "weight"]

torch.manual_seed(0)
W = torch.randn(6, 5) * torch.logspace(-2, 0.5, 6).reshape(6, 1)
X = torch.randn(16, 5) * torch.tensor([0.1, 1.0, 4.0, 0.5, 2.0])
OVERFLOWS, KINDS = ("SAT", "SAT_SYM", "WRAP"), ("kif", "kbi")


def calibrated(q: Any, *batches: Tensor) -> Any:
    observer = q.new_observer()
    q.observe(observer)
    for x in batches:
        q(x)
    q.observe(None)
    q.settle(observer)
    return q


def weight(**options: Any) -> HGQWeight:
    q = HGQWeight(options.pop("shape", (6, 5)), options.pop("width", 8), **options)
    q.start(W)
    return q


def data(**options: Any) -> HGQData:
    made: HGQData = calibrated(HGQData(options.pop("shape", (1, 5)), options.pop("width", 8), **options), X)
    return made


def both(**options: Any) -> list[tuple[Any, Tensor]]:
    return [(weight(**options), W), (data(**options), X)]
