"""AutoSparse (Kundu et al. 2023): a soft threshold that is learned; gradients of pruned weights are annealed away.

    tau = sigmoid(T);    W_eff = sign(W) relu(|W| - tau)
    h = 1 where |W| > tau, else alpha;    dL/dW = h G;    dL/dT = -sum sign(W) h G tau (1 - tau)      G = dL/dW_eff

alpha falls during training from `alpha` to 0: early, pruned weights find back; late, they stay where they are. Survivors
are smaller by tau, which becomes part of the weights when the mask is fixed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pquant_fx.config import AutoSparsePruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.functions import applied
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members
from pquant_fx.prune.selection import keep_largest
from pquant_fx.prune.thresholds import ThresholdMask, spread

__all__ = ["AutoSparseMask", "annealed"]


def annealed(epoch: int, epochs: int) -> float:
    """The factor of alpha during the 0-based `epoch` of `epochs`: the larger one of a falling cosine and a falling sigmoid.

    Raises ConfigError (PQ407) for an epoch that is not there.
    """
    if not 0 <= epoch <= epochs or epochs == 0:
        raise ConfigError(Problem("PQ407", f"there is no epoch {epoch} in {epochs} epochs", "count epochs from 0"))
    progress = epoch / epochs
    return max((1 + math.cos(math.pi * progress)) / 2, 1 - 1 / (1 + math.exp(6 - 12 * progress)))


class AutoSparseMask(ThresholdMask):
    """W -> sign(W) relu(|W| - sigmoid(threshold)). alpha: the gradient's factor where that is 0.

    tuned: the factor that alpha was lowered by so far; least: the least training loss of an epoch so far; epochs: how many were
    measured.
    """

    settings: AutoSparsePruning
    alpha: Tensor
    tuned: Tensor
    least: Tensor
    epochs: Tensor

    def __init__(self, weight: Tensor, settings: AutoSparsePruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        self.register_buffer("alpha", torch.full((), settings.alpha, dtype=weight.dtype, device=weight.device))
        self.register_buffer("tuned", torch.ones((), dtype=torch.float64))
        self.register_buffer("least", torch.full((), math.inf, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def effective(self, weight: Tensor) -> Tensor:
        wide = spread(weight, self.layout)
        shrunk: Tensor = applied(_Shrunk, wide, self.threshold, self.alpha, self.settings.backward_zeros)
        return shrunk if wide is weight else shrunk.reshape(weight.shape)

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.settled(weight).sign_().abs_()

    def settled(self, weight: Tensor) -> Tensor:
        wide = spread(weight.detach(), self.layout)
        return _shrink(wide, torch.sigmoid(self.threshold.detach())).reshape(weight.shape)

    # ---- hooks
    @classmethod
    def begin_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        settings: AutoSparsePruning = members[0].mask.settings
        factor = annealed(epoch, epochs) if epoch < settings.alpha_reset_epoch else 0.0
        for mask, _ in members:
            mask.alpha.copy_(mask.tuned * (settings.alpha * factor))

    @classmethod
    def measured(cls, members: Members, loss: float) -> None:
        settings: AutoSparsePruning = members[0].mask.settings
        for mask, _ in members:
            if mask.is_training:
                if int(mask.epochs) < settings.autotune_epochs and loss > float(mask.least):
                    mask.tuned.mul_(settings.autotune_factor)
                mask.epochs.add_(1)
            mask.least.clamp_(max=loss)


def _shrink(weight: Tensor, tau: Tensor) -> Tensor:
    return weight - torch.clamp(weight, -tau, tau)


class _Shrunk(torch.autograd.Function):
    """(W, T, alpha, share of zeros in the gradient) -> W shrunk towards 0 by sigmoid(T), with the gradients of the head of this file."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, threshold: Tensor, alpha: Tensor, zeros: float) -> Tensor:
        return _shrink(weight, torch.sigmoid(threshold))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.zeros = inputs[3]
        ctx.save_for_backward(*inputs[:3], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, threshold, alpha, shrunk = ctx.saved_tensors
        tau = torch.sigmoid(threshold)
        by_weight = torch.lerp(grad * alpha, grad, torch.sign(shrunk).abs_())  # exactly the one or the other
        if ctx.zeros:
            above = torch.abs(weight) - tau
            by_weight = by_weight * keep_largest(above, round(ctx.zeros * above.numel()))
        by_tau = (by_weight * torch.sign(weight)).sum_to_size(threshold.shape)
        return by_weight, by_tau * (tau * (tau - 1)), None, None
