"""BatchNorm in training, after it was folded with its running statistics: a node of ours, gone when the network is frozen.

The folded layer computes y = (v - mean_r) s_r + beta with s_r = gamma / sqrt(var_r + eps): the weights that are quantized in
training are those of the circuit. What batch statistics would have given differs from it by an affine function of y
alone, so that one convolution serves both (Krishnamoorthi 2018, section 3.2.2, corrects by the same ratio):

    mean_b = mean_r + (mean(y) - beta) / s_r          var_b = var(y) / s_r^2
    BN(v)  = gamma (v - mean_b) / sqrt(var_b + eps) + beta  =  |gamma| (y - mean(y)) / sqrt(var(y) + eps s_r^2) + beta
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["BatchCorrection", "Pointwise"]

_LEAST_SCALE = 1e-6  # |s_r| below which y says nothing about v: such channels keep their running statistics


class Pointwise(Protocol):
    """A function of every element on its own, also in the two halves that an autograd function is made of."""

    def __call__(self, x: Tensor) -> Tensor:
        """The function, differentiable."""

    def overwrite(self, x: Tensor) -> Tensor:
        """x, with the function's values in it; nothing is recorded."""

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """grad times the derivative at x."""


class BatchCorrection(nn.Module):
    """`forward(y, running_mean, running_var, batches, gamma, beta)`: y (N, C, ...) as batch statistics normalise it.

    In train the running buffers are updated in place as torch.nn.BatchNorm does (momentum None: cumulative average); they
    measure the quantized layer. In eval, and in train once `fix(True)` was called, y itself. gamma, beta: None without affine.
    synchronised: statistics over all ranks of `group` (None: of all processes).

    added, then: what is added to the result (of y's shape), and a function of the sum. Given here and not called afterwards
    they cost no memory: what comes before `then` is computed again for the gradient.
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
        self,
        y: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        batches: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        added: Tensor | None = None,
        then: Pointwise | None = None,
    ) -> Tensor:
        if not self.training or self.fixed:
            return _finish(y, added, then)
        values = y.numel() // y.shape[1]
        if values < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(y.shape)}")
        gamma = torch.ones_like(running_var) if gamma is None else gamma
        beta = torch.zeros_like(running_mean) if beta is None else beta
        with torch.no_grad():
            scale = (gamma * torch.rsqrt(running_var + self.eps)).to(y.dtype)
            silent = scale.abs() <= _LEAST_SCALE
            scale.masked_fill_(silent, 1.0)
            inner_eps = scale.square().mul_(self.eps)
        across = self.synchronised and torch.distributed.is_available() and torch.distributed.is_initialized()
        result: Tensor
        bessel: Tensor | float
        if across:
            result, mean, variance, count = _across_ranks(y, gamma.to(y.dtype), beta.to(y.dtype), silent, inner_eps, self.group)
            result, bessel = _finish(result, added, then), count / (count - 1).clamp(min=1)
        else:
            result, mean, variance = _Normalize.apply(  # type: ignore[no-untyped-call]
                y, gamma.to(y.dtype), beta.to(y.dtype), silent, inner_eps, added, then
            )
            bessel = values / (values - 1)
        with torch.no_grad():
            batches.add_(1)
            rate = batches.to(running_var).reciprocal() if self.momentum is None else self.momentum
            moved = (mean - beta).div_(scale).masked_fill_(silent, 0.0)
            running_mean.add_(moved.to(running_mean) * rate)
            unbiased = variance.div(scale).div_(scale).mul_(bessel).to(running_var)
            running_var.lerp_(torch.where(silent, running_var, unbiased), rate)
        return result


def _finish(x: Tensor, added: Tensor | None, then: Pointwise | None) -> Tensor:
    x = x if added is None else x + added
    return x if then is None else then(x)


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel."""
    if y.device.type != "cpu" or y.dim() < 3 or not y.is_contiguous() or y.dtype not in (torch.float32, torch.float64):
        return torch.batch_norm_update_stats(y, None, None, 0.0)
    rows = y.flatten(2)  # torch goes through them one value at a time; three vectorized passes take a quarter of that
    values = y.numel() // y.shape[1]
    mean = rows.sum(2).sum(0).div_(values)
    return mean, (rows - mean[:, None]).square_().sum(2).sum(0).div_(values)


class _Normalize(torch.autograd.Function):
    """|gamma| (y - mean) rsqrt(var + eps) + beta with BatchNorm's gradients, one eps a channel; also mean and biased variance.

    Channels that are `silent` hold one value each: they are centred, with slope 1, so that a gamma of 0 still learns through
    y (in units of the running deviation).
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        gamma: Tensor,
        beta: Tensor,
        silent: Tensor,
        eps: Tensor,
        added: Tensor | None,
        then: Pointwise | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _moments(y)
        shifted = (variance + eps).masked_fill_(silent, 1.0)
        slope = gamma.abs().masked_fill_(silent, 1.0)
        ctx.then, ctx.added = then, added is not None
        # gamma acts through the slope and, squared, through eps = eps_0 gamma^2 / (var_r + eps_0)
        by_gamma = torch.copysign(variance, gamma).div_(shifted).masked_fill_(silent, 0.0)
        ctx.save_for_backward(y, slope, by_gamma, beta, mean, shifted, None if then is None else added)
        ctx.mark_non_differentiable(mean, variance)
        result = _normalized(y, slope, beta, mean, shifted, added)
        return result if then is None else then.overwrite(result), mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, slope, by_gamma, beta, mean, shifted, added = ctx.saved_tensors
        if ctx.then is not None:
            grad = ctx.then.gradient(grad, _normalized(y, slope, beta, mean, shifted, added))
        wanted = [ctx.needs_input_grad[0], True, True]
        grad_y, grad_slope, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, y, slope, None, None, mean, shifted.rsqrt(), True, 0.0, wanted
        )
        return grad_y, grad_slope * by_gamma, grad_beta, None, None, grad if ctx.added else None, None


def _normalized(y: Tensor, slope: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, added: Tensor | None) -> Tensor:
    result = torch.native_batch_norm(y, slope, beta, mean, variance, False, 0.0, 0.0)[0]
    return result if added is None else result.add_(added)


def _across_ranks(y: Tensor, gamma: Tensor, beta: Tensor, silent: Tensor, eps: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with statistics over all ranks, weighted by their sample counts; gradients flow back to every rank."""
    from torch.distributed.nn.functional import all_reduce

    axes, channels = [0, *range(2, y.dim())], y.shape[1]
    count = torch.full((1,), y.numel() / channels, dtype=y.dtype, device=y.device)
    measured = torch.cat((y.sum(axes), y.square().sum(axes), count))
    total: Tensor = all_reduce(measured) if group is None else all_reduce(measured, group=group)  # type: ignore[no-untyped-call]
    everywhere = total[-1].detach()
    mean = total[:channels] / everywhere
    variance = total[channels:-1] / everywhere - mean.square()
    slope = torch.where(silent, 1.0, gamma.abs()) * torch.rsqrt(torch.where(silent, 1.0, variance + _of_gamma(eps, gamma)))
    shape = (1, -1, *(1 for _ in axes[1:]))
    result = (y - mean.reshape(shape)) * slope.reshape(shape) + beta.reshape(shape)
    return result, mean.detach(), variance.detach(), everywhere


def _of_gamma(eps: Tensor, gamma: Tensor) -> Tensor:
    """eps with the gradient of eps_0 gamma^2 / (var_r + eps_0) with respect to gamma."""
    root = torch.where(gamma == 0, 1.0, gamma)
    return eps * (root / root.detach()).square()
