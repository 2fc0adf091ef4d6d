"""What autograd functions share: calls at what they cost, gradients summed to what was broadcast, many small tensors as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["alike", "applied", "flat", "parts", "summed"]


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


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """The entries of all tensors as one vector, in order: one kernel then serves all of them. Of one tensor it may be a view."""
    vector: Tensor = torch._C._nn.flatten_dense_tensors(list(tensors))  # as DistributedDataParallel: a sixth of the time of Python's
    return vector


def parts(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inverse of `flat`: views of the vector with the shapes of these tensors."""
    return tuple(torch._C._nn.unflatten_dense_tensors(vector, list(like)))


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether they may become one vector: one dtype, one device, and no transform that wants each on its own."""
    first = tensors[0]
    same = all(t.dtype is first.dtype and t.device == first.device for t in tensors)
    return same and not torch._C._are_functorch_transforms_active()
