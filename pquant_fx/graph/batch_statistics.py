"""What a folded BatchNorm normalises by: a node of ours, gone when the network is frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BatchStatistics"]


class BatchStatistics(nn.Module):
    """Mean and variance that a folded BatchNorm normalises by, stacked as a (2, C) tensor.

    `forward(y, running_mean, running_var, batches)`: in train those of the batch `y` (N, C, ...), biased variance, while
    the running buffers are updated in place as torch.nn.BatchNorm does (momentum None: cumulative average); in eval the
    running ones. Freezing replaces the node by the buffers themselves.
    """

    def __init__(self, momentum: float | None, synchronised: bool = False) -> None:
        super().__init__()
        self.momentum = momentum
        self.synchronised = synchronised

    def forward(self, y: Tensor, running_mean: Tensor, running_var: Tensor, batches: Tensor) -> Tensor:
        if not self.training:
            return torch.stack((running_mean, running_var))
        values = y.numel() // y.shape[1]
        if values < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(y.shape)}")
        count = torch.full((), float(values), dtype=y.dtype, device=y.device)
        variance, mean = torch.var_mean(y, [0, *range(2, y.dim())], correction=0)
        if self.synchronised and torch.distributed.is_available() and torch.distributed.is_initialized():
            mean, variance, count = _across_ranks(mean, variance, count)
        with torch.no_grad():
            batches.add_(1)
            rate = 1.0 / batches.to(y.dtype) if self.momentum is None else torch.full_like(count, self.momentum)
            running_mean.lerp_(mean.to(running_mean.dtype), rate.to(running_mean.dtype))
            unbiased = variance * count / (count - 1).clamp(min=1)
            running_var.lerp_(unbiased.to(running_var.dtype), rate.to(running_var.dtype))
        return torch.stack((mean, variance))


def _across_ranks(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics over all ranks, weighted by their sample counts; gradients flow back to every rank."""
    from torch.distributed.nn.functional import all_reduce

    n = mean.numel()
    gathered = torch.cat((mean * count, (variance + mean.square()) * count, count.reshape(1)))
    total: Tensor = all_reduce(gathered)  # type: ignore[no-untyped-call]
    everywhere = total[:n] / total[-1]
    return everywhere, total[n:-1] / total[-1] - everywhere.square(), total[-1].detach()
