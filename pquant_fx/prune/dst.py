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
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor

from pquant_fx.config import DSTPruning
from pquant_fx.graph.functions import alike, applied, flat, parts
from pquant_fx.prune.pruner import Members, with_value
from pquant_fx.prune.thresholds import Places, ThresholdMask, spread

__all__ = ["DSTMask"]

_above = torch.ops.aten.threshold_backward  # (x, z, 0): x where z > 0, else 0. One pass, no boolean of the weight's size
_inside = torch.ops.aten.hardtanh_backward  # (x, z, low, high): x where low < z < high, else 0


class DSTMask(ThresholdMask):
    """W -> W where |W| > threshold, else 0."""

    settings: DSTPruning

    def effective(self, weight: Tensor) -> Tensor:
        wide = spread(self.judged(weight), self.layout)
        masked: Tensor = applied(_Masked, wide, self.threshold, self._scale(weight))
        masked = masked if wide.shape == weight.shape else masked.reshape(weight.shape)
        return masked if self.seen is None else with_value(masked, weight * self.hard_mask(weight))

    def hard_mask(self, weight: Tensor) -> Tensor:
        wide = spread(self.judged(weight).detach(), self.layout)
        kept: Tensor = (wide.abs() - self.threshold.detach()).sign_().clamp_(min=0)
        return kept.reshape(weight.shape)

    @classmethod
    def together(cls, masks: Sequence[Self], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """All weights as one vector, where they learn together in the same way."""
        thresholds = [mask.threshold for mask in masks]
        scaled = any(mask.settings.scale_by_std for mask in masks)
        if scaled or not all(mask.is_training and mask.seen is None for mask in masks) or not alike((*weights, *thresholds)):
            return super().together(masks, weights)
        return cast(Sequence[Tensor], applied(_AllMasked, Places.of(masks, weights[0].device), *weights, *thresholds))

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
    masks, weights = zip(*members)
    if not alike(weights):  # layers on several devices
        for member in members:
            _reset([member])
        return
    thresholds = [mask.threshold for mask in masks]
    together = flat([mask.judged(weight.detach()) for mask, weight in members])
    places = Places.of(masks, together.device)
    kept = torch.abs(together).sub_(places.spread(flat(thresholds))).sign_().clamp_min_(0.0)
    stay = torch.segment_reduce(kept, "sum", offsets=places.ends).sub_(_too_few(places)).sign_().clamp_min_(0.0)
    torch._foreach_mul_(thresholds, stay.unbind())


def _too_few(places: Places) -> Tensor:
    """So many weights of each layer, and fewer, are left when `max_pruning_pct` or more is gone."""
    if places.too_few is None:
        most = places.masks[0].settings.max_pruning_pct
        places.too_few = torch.tensor([float(size - math.ceil(most * size - 1e-6)) for size in places.sizes], device=places.device)
    return places.too_few


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
        by_weight, moved = _gradients(grad, size, size - threshold, scale)
        return by_weight, (moved * weight).sum_to_size(threshold.shape).neg_(), None


class _AllMasked(torch.autograd.Function):
    """(places, W..., t...) -> W 1[|W| > t]..., the same on one vector that holds all weights."""

    @staticmethod
    def forward(ctx: Any, places: Places, *tensors: Tensor) -> tuple[Tensor, ...]:
        half = len(tensors) // 2
        weights, thresholds = tensors[:half], tensors[half:]
        together = flat(weights)
        size = torch.abs(together)
        z = size - places.spread(flat(thresholds))
        ctx.save_for_backward(together, size, z)
        ctx.places, ctx.weights, ctx.thresholds = places, weights, thresholds  # the tensors for their shapes
        return parts(_above(together, z, 0), weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        together, size, z = ctx.saved_tensors
        by_weight, moved = _gradients(flat(grads), size, z, None)
        by_threshold = ctx.places.summed(moved.mul_(together)).neg_()
        return None, *parts(by_weight, ctx.weights), *parts(by_threshold, ctx.thresholds)


def _gradients(grad: Tensor, size: Tensor, z: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """dL/dW, and G H'(z), of which dL/dt is the negative sum of products with W."""
    kept = _above(grad, z, 0)
    if scale is not None:
        z = z / scale
    edge = 1 + torch.finfo(z.dtype).eps
    slope = _inside(torch.rsub(torch.abs(z), 2, alpha=4).clamp_min_(0.4), z, -edge, edge)
    moved = grad * (slope if scale is None else slope / scale)
    return torch.addcmul(kept, moved, size), moved
