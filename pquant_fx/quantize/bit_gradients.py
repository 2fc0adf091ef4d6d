"""How gradients reach the parameters behind bit counts: through rounding and bounds, scaled, or for many quantizers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pquant_fx.quantize.gradients import applied

__all__ = ["learned_bits", "scaled_gradient", "straight"]


def straight(parameter: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `parameter` (exact where value is the parameter rounded or clipped)."""
    return parameter + (value - parameter.detach())


def learned_bits(bits: Sequence[Tensor], alive: Sequence[Tensor], owners: Sequence[int], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """`bits`, each with the gradient, where it is alive, of those parameters that own it (bits[owners[n]] for parameters[n])."""
    found: Sequence[Tensor] = applied(_LearnedBits, bits, alive, owners, *parameters)
    return found


class _LearnedBits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, bits: Sequence[Tensor], alive: Sequence[Tensor], owners: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.owners = owners
        ctx.save_for_backward(*alive)
        return tuple(bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        passed = [grad * alive for grad, alive in zip(grads, ctx.saved_tensors)]
        return None, None, None, *(passed[n] for n in ctx.owners)


def scaled_gradient(x: Tensor, factor: float | Tensor) -> Tensor:
    """`x` itself, with its gradient times `factor`."""
    result: Tensor = applied(_ScaledGradient, x, factor)
    return result


class _ScaledGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float | Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
