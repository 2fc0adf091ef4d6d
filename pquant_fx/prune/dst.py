"""Dynamic Sparse Training (Liu et al. 2020): thresholds learn, with the weights, where a weight is worth its place.

    z = |W| - t;    W_eff = W * 1[z > 0]
    dL/dW = G 1[z > 0] + G |W| H'(z);    dL/dt = -sum G W H'(z)      G = dL/dW_eff
    H'(z) = 2 - 4 |z| up to |z| = 0.4, 0.4 up to |z| = 1, then 0     in place of the derivative of the step
    loss += alpha * sum exp(-t)                                      presses thresholds up

H' is wide: 0.4 is more than most weights of a large layer. `scale_by_std: c` measures z in units of c std(W) instead.
A layer of which `max_pruning_pct` or more is gone gets all its thresholds back at 0 (before the next forward).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pquant_fx.config import DSTPruning
from pquant_fx.graph.functions import applied
from pquant_fx.prune.pruner import Members
from pquant_fx.prune.thresholds import ThresholdMask, spread

__all__ = ["DSTMask"]

_above = torch.ops.aten.threshold_backward  # (x, z, 0): x where z > 0, else 0. One pass, no boolean of the weight's size
_inside = torch.ops.aten.hardtanh_backward  # (x, z, low, high): x where low < z < high, else 0


class DSTMask(ThresholdMask):
    """W -> W where |W| > threshold, else 0."""

    settings: DSTPruning

    def effective(self, weight: Tensor) -> Tensor:
        wide = spread(weight, self.layout)
        masked: Tensor = applied(_Masked, wide, self.threshold, self._scale(weight))
        return masked if wide is weight else masked.reshape(weight.shape)

    def hard_mask(self, weight: Tensor) -> Tensor:
        wide = spread(weight, self.layout).detach()
        kept: Tensor = (wide.abs() - self.threshold.detach()).sign_().clamp_(min=0)
        return kept.reshape(weight.shape)

    def _scale(self, weight: Tensor) -> Tensor | None:
        """The width of z = 1; where all weights are equal there is none, and z stays as it is."""
        if not self.settings.scale_by_std:
            return None
        wide = weight.detach().std(correction=0) * self.settings.scale_by_std
        return wide + (wide == 0)

    @classmethod
    def push(cls, settings: DSTPruning) -> float:
        return settings.alpha

    # ---- hooks
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        super().begin(members, steps)
        _reset(members)

    @classmethod
    def begin_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        _reset(members)  # weights may have been rewound

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        _reset(members)


@torch.no_grad()
def _reset(members: Members) -> None:
    """Thresholds to 0 in layers that are all but gone: without waiting for the device, all layers at once."""
    masks = [mask for mask, _ in members]
    kept = torch._foreach_abs([spread(weight.detach(), mask.layout) for mask, weight in members])
    torch._foreach_sub_(kept, [mask.threshold.detach() for mask in masks])
    torch._foreach_sign_(kept)
    torch._foreach_clamp_min_(kept, 0.0)
    stay = list(torch._foreach_norm(kept, 1))  # how many weights of each layer are kept
    torch._foreach_sub_(stay, [float(weight.numel() - _enough(mask, weight)) for mask, weight in members])
    torch._foreach_sign_(stay)
    torch._foreach_clamp_min_(stay, 0.0)
    torch._foreach_mul_([mask.threshold for mask in masks], stay)


def _enough(mask: DSTMask, weight: Tensor) -> int:
    """So many removed weights are `max_pruning_pct` of all."""
    return math.ceil(mask.settings.max_pruning_pct * weight.numel() - 1e-6)


class _Masked(torch.autograd.Function):
    """(W, t, unit of z or None) -> W 1[|W| > t], with the gradients of the head of this file."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, threshold: Tensor, scale: Tensor | None) -> Tensor:
        masked: Tensor = _above(weight, torch.abs(weight) - threshold, 0)
        return masked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, threshold, scale = ctx.saved_tensors
        size = torch.abs(weight)
        z = size - threshold
        kept = _above(grad, z, 0)
        if scale is not None:
            z = z / scale
        edge = 1 + torch.finfo(z.dtype).eps
        slope = _inside(torch.rsub(torch.abs(z), 2, alpha=4).clamp_min_(0.4), z, -edge, edge)
        moved = grad * (slope if scale is None else slope / scale)
        return torch.addcmul(kept, moved, size), (moved * weight).sum_to_size(threshold.shape).neg_(), None
