"""What autograd functions share: to be called at what they cost, and to sum gradients to the shape of what was broadcast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["applied", "summed"]


def applied(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, without the 50 us that it spends on the defaults of arguments where no transform is active."""
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def summed(x: Tensor, shape: torch.Size) -> Tensor:
    """`x` summed to a shape that broadcasts to its own (`sum_to_size` runs in Python)."""
    if x.shape == shape:
        return x
    extra = x.dim() - len(shape)
    shared = [axis for axis in range(x.dim()) if axis < extra or (shape[axis - extra] == 1 and x.shape[axis] != 1)]
    return x.sum(shared, keepdim=True).reshape(shape) if shared else x.reshape(shape)
