"""A softmax that leaves out places which are known beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked_softmax"]


def masked_softmax(x: Tensor, kept: Tensor, axis: int) -> Tensor:
    """softmax of x over `axis` among the places where `kept` (0 or 1, broadcasts to x) is 1, and 0 elsewhere."""
    return torch.softmax(x.masked_fill(kept == 0, float("-inf")), axis)
