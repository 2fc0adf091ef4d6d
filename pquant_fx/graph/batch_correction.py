"""BatchNorm in training, after it was folded with its running statistics: a node of ours, gone when the network is frozen.

The folded layer computes y = (v - mean_r) s_r + beta with s_r = gamma / sqrt(var_r + eps): the weights that are quantized in
training are those of the circuit. What batch statistics would have given differs from it by an affine function of y
alone, so that one convolution serves both (Krishnamoorthi 2018, section 3.2.2, corrects by the same ratio):

    mean_b = mean_r + (mean(y) - beta) / s_r          var_b = var(y) / s_r^2
    BN(v)  = gamma (v - mean_b) / sqrt(var_b + eps) + beta  =  |gamma| (y - mean(y)) / sqrt(var(y) + eps s_r^2) + beta
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BatchCorrection"]

_LEAST_SCALE = 1e-6  # |s_r| below which y says nothing about v: such channels keep their running statistics


class BatchCorrection(nn.Module):
    """`forward(y, running_mean, running_var, batches, gamma, beta)`: y (N, C, ...) as batch statistics normalise it.

    In train the running buffers are updated in place as torch.nn.BatchNorm does (momentum None: cumulative average); they
    measure the quantized layer. In eval, and in train once `fix(True)` was called, y itself. gamma, beta: None without affine.
    synchronised: statistics over all ranks of `group` (None: of all processes).
    """

    def __init__(self, momentum: float | None, eps: float, synchronised: bool = False) -> None:
        super().__init__()
        self.momentum, self.eps, self.synchronised = momentum, eps, synchronised
        self.group: Any = None
        self.fixed = False

    def fix(self, on: bool = True) -> None:
        """Train with the running statistics from now on: the end of a training sees the network that the circuit will be."""
        self.fixed = on

    def forward(
        self, y: Tensor, running_mean: Tensor, running_var: Tensor, batches: Tensor, gamma: Tensor | None, beta: Tensor | None
    ) -> Tensor:
        if not self.training or self.fixed:
            return y
        values = y.numel() // y.shape[1]
        if values < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(y.shape)}")
        gamma = torch.ones_like(running_var) if gamma is None else gamma
        beta = torch.zeros_like(running_mean) if beta is None else beta
        with torch.no_grad():
            scale = (gamma * torch.rsqrt(running_var + self.eps)).to(y.dtype)
            seen = scale.abs() > _LEAST_SCALE
            scale = torch.where(seen, scale, 1.0)
            inner_eps = self.eps * scale.square()
        across = self.synchronised and torch.distributed.is_available() and torch.distributed.is_initialized()
        result: Tensor
        if across:
            result, mean, variance, count = _across_ranks(y, gamma.to(y.dtype), beta.to(y.dtype), seen, inner_eps, self.group)
        else:
            result, mean, variance = _Normalize.apply(y, gamma.to(y.dtype), beta.to(y.dtype), seen, inner_eps)  # type: ignore[no-untyped-call]
            count = torch.full_like(mean[0], float(values))
        with torch.no_grad():
            batches.add_(1)
            rate = seen.to(y.dtype) * (self.momentum if self.momentum is not None else 1.0 / batches.to(y.dtype))
            running_mean.add_((rate * (mean - beta) / scale).to(running_mean.dtype))
            unbiased = variance * count / (count - 1).clamp(min=1) / scale.square()
            running_var.lerp_(unbiased.to(running_var.dtype), rate.to(running_var.dtype))
        return result


class _Normalize(torch.autograd.Function):
    """|gamma| (y - mean) rsqrt(var + eps) + beta with BatchNorm's gradients, one eps a channel; also mean and biased variance.

    Channels that are not `seen` hold one value each: they are centred, with slope 1, so that a gamma of 0 still learns through
    y (in units of the running deviation).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, gamma: Tensor, beta: Tensor, seen: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(y, None, None, 0.0)
        shifted = torch.where(seen, variance + eps, 1.0)
        slope = torch.where(seen, gamma.abs(), 1.0)
        result = torch.native_batch_norm(y, slope, beta, mean, shifted, False, 0.0, 0.0)[0]
        # gamma acts through the slope and, squared, through eps = eps_0 gamma^2 / (var_r + eps_0)
        ctx.save_for_backward(y, slope, torch.where(seen, gamma.sign() * variance / shifted, 0.0), mean, shifted.rsqrt())
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, slope, by_gamma, mean, inverse = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], True, True]
        grad_y, grad_slope, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, y, slope, None, None, mean, inverse, True, 0.0, wanted
        )
        return grad_y, grad_slope * by_gamma, grad_beta, None, None


def _across_ranks(y: Tensor, gamma: Tensor, beta: Tensor, seen: Tensor, eps: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with statistics over all ranks, weighted by their sample counts; gradients flow back to every rank."""
    from torch.distributed.nn.functional import all_reduce

    axes, channels = [0, *range(2, y.dim())], y.shape[1]
    count = torch.full((1,), y.numel() / channels, dtype=y.dtype, device=y.device)
    measured = torch.cat((y.sum(axes), y.square().sum(axes), count))
    total: Tensor = all_reduce(measured) if group is None else all_reduce(measured, group=group)  # type: ignore[no-untyped-call]
    everywhere = total[-1].detach()
    mean = total[:channels] / everywhere
    variance = total[channels:-1] / everywhere - mean.square()
    slope = torch.where(seen, gamma.abs(), 1.0) * torch.rsqrt(torch.where(seen, variance + _of_gamma(eps, gamma), 1.0))
    shape = (1, -1, *(1 for _ in axes[1:]))
    result = (y - mean.reshape(shape)) * slope.reshape(shape) + beta.reshape(shape)
    return result, mean.detach(), variance.detach(), everywhere


def _of_gamma(eps: Tensor, gamma: Tensor) -> Tensor:
    """eps with the gradient of eps_0 gamma^2 / (var_r + eps_0) with respect to gamma."""
    root = torch.where(gamma == 0, 1.0, gamma)
    return eps * (root / root.detach()).square()
