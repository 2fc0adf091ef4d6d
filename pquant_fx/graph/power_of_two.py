"""A learned power of two: what stands behind a ReLU when `use_relu_multiplier` asks for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PowerOfTwo"]


class PowerOfTwo(nn.Module):
    """2^round(exponent), a 0-d tensor; the gradient goes through the rounding (d/dm = ln2 2^round(m)).

    A constant of the circuit: multiplying by it moves the binary point, i + m and f - m. It starts at 1, so that a trained
    network computes what it did. Freezing replaces it by the number.
    """

    exponent: nn.Parameter
    bit_parameters = ("exponent",)

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        value = self.exponent.detach()
        return torch.exp2(value.round() + (self.exponent - value))  # exact: the difference is 0

    def number(self) -> float:
        """The factor as a Python number."""
        return 2.0 ** round(float(self.exponent.detach()))

    def extra_repr(self) -> str:
        return f"2^{round(float(self.exponent.detach()))}"
