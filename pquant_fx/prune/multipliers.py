"""The modified differential method of multipliers (Platt & Barr 1988): constraints on a metric as a term of the loss.

    equality     min L + a (lambda g + c/2 g^2)                      g = metric - v, signed
    inequality   min L + a c/2 (max(0, lambda/c + g)^2 - (lambda/c)^2)    g <= 0 wanted; g = metric - v, or v - metric

Weights descend, the multiplier ascends: lambda <- lambda + eta a g, never below 0 for an inequality. An inequality that holds
with lambda = 0 adds nothing. a: scale, c: damping, eta: the multiplier's rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["ascended", "ascent", "lagrangian", "violations"]


def violations(metric: Tensor, kind: str, target: float, upper: float | None = None) -> Tensor:
    """g of each constraint, (1,), for `Bounds` (2,): below `target`, above `upper`. metric: 0-d.

    kind: Equality, LessThanOrEqual, GreaterThanOrEqual, Bounds.
    """
    if kind == "Bounds":
        assert upper is not None
        return torch.stack((target - metric, metric - upper))
    g = target - metric if kind == "GreaterThanOrEqual" else metric - target
    return g.reshape(1)


def lagrangian(g: Tensor, multiplier: Tensor, scale: float, damping: float, inequality: bool) -> Tensor:
    """The term of the loss, 0-d; g, multiplier: (constraints,)."""
    active = multiplier * g + 0.5 * damping * g.square()
    if inequality:
        resting = multiplier.square() / (-2.0 * damping) if damping else torch.zeros_like(multiplier)
        active = torch.where(multiplier + damping * g > 0, active, resting)
    return scale * active.sum()


def ascended(multiplier: Tensor, g: Tensor, step: float, inequality: bool, tolerance: float = 0.0) -> Tensor:
    """The multiplier after a step of `step` = eta * a; it rests where |g| <= tolerance."""
    moved = multiplier + step * g
    if inequality:
        moved = moved.clamp_min(0.0)
    return torch.where(g.abs() <= tolerance, multiplier, moved)


def ascent(multiplier: Tensor, resting: Tensor) -> Tensor:
    """The multiplier itself, with its gradient turned round, so that an optimizer that descends lets it ascend; 0 where `resting`."""
    turned: Tensor = _Ascent.apply(multiplier, resting)  # type: ignore[no-untyped-call]
    return turned


class _Ascent(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(multiplier: Tensor, resting: Tensor) -> Tensor:
        return multiplier.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (resting,) = ctx.saved_tensors
        return grad.neg().masked_fill(resting, 0.0), None
