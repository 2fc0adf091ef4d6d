"""What the loss of the task says about each weight, noted where its gradient comes by: terms of the methods are not in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientRecord"]

_KEPT = 0.9  # of the mean, in each step: it follows some ten steps


class GradientRecord(nn.Module):
    """W -> W. A backward pass in train mode notes G = dL/dW, or G^2 where `squared`; a forward changes nothing.

    recent: the sum since the last `gather`; mean: an exponential mean over steps, both of W's shape; steps: how many it is of.
    """

    recent: Tensor
    mean: Tensor
    steps: Tensor

    def __init__(self, weight: Tensor, squared: bool) -> None:
        super().__init__()
        self.squared = squared
        for name in ("recent", "mean"):
            self.register_buffer(name, torch.zeros_like(weight, requires_grad=False).detach())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return weight
        noted: Tensor = _Noted.apply(weight, self.recent, self.squared)  # type: ignore[no-untyped-call]
        return noted

    def gather(self, add_ranks: Callable[[Tensor], None]) -> None:
        """A step was made: take what all ranks saw into the mean, so that they decide alike."""
        with torch.no_grad():
            add_ranks(self.recent)
            if int(self.steps):
                self.mean.lerp_(self.recent, 1 - _KEPT)
            else:
                self.mean.copy_(self.recent)
            self.recent.zero_()
            self.steps.add_(1)


class _Noted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, noted: Tensor, squared: bool) -> Tensor:
        ctx.noted, ctx.squared = noted, squared
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            ctx.noted.add_(grad.square() if ctx.squared else grad)
        return grad, None, None
