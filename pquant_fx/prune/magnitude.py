"""Magnitude pruning on a cubic schedule (Zhu & Gupta 2017).

    s(t) = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3;    W_eff = m W, m = 0 for the round(s N) smallest |W|

The mask follows the latent weights: with `regrow`, pruned ones keep receiving the gradient of W_eff (straight-through),
so they come back when they grow. Ties go by index, so that every rank and every run decides alike. A 0/1 mask commutes
with quantization, because q(0) = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pquant_fx.errors import ConfigError, Problem, TrainingError
from pquant_fx.graph.dialect import Mask

__all__ = ["MagnitudeMask", "cubic_sparsity", "update_globally"]


def cubic_sparsity(t: float, start: float, end: float, initial: float = 0.0, final: float = 0.8) -> float:
    """The fraction of zeros at time `t` (any unit): `initial` until `start`, `final` from `end` on, a cubic between.

    Raises ConfigError (PQ407) for a sparsity outside [0, 1] or an end before the start.
    """
    _check(initial)
    _check(final)
    if end < start:
        raise ConfigError(Problem("PQ407", f"the schedule ends at {end}, before its start {start}", "let it end after it starts"))
    if t >= end:
        return final
    if t <= start:
        return initial
    return final + (initial - final) * (1.0 - (t - start) / (end - start)) ** 3


class MagnitudeMask(Mask):
    """W -> W * mask, a 0/1 buffer of W's shape, all ones at first.

    weight: the latent weight, for its shape, dtype and device only. target: the final sparsity of this weight, None to
    take the schedule's. regrow: dense gradient dL/dW = dL/dW_eff; otherwise, and once `freeze` was called, masked ones get 0.
    """

    mask: Tensor
    fixed: Tensor

    def __init__(self, weight: Tensor, target: float | None = None, regrow: bool = True) -> None:
        super().__init__()
        if target is not None:
            _check(target)
        self.target, self.regrow = target, regrow
        self.register_buffer("mask", torch.ones_like(weight, requires_grad=False).detach())
        self.register_buffer("fixed", torch.tensor(0))
        self._fixed = False

    @property
    def is_frozen(self) -> bool:
        """Whether `freeze` was called; a Python mirror of the buffer `fixed`, so that forward needs no synchronisation."""
        return self._fixed

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of the weight's shape."""
        if self.regrow and not self._fixed:
            dense: Tensor = _DenseMask.apply(weight, self.mask)  # type: ignore[no-untyped-call]
            return dense
        return weight * self.mask

    def sparsity(self) -> Tensor:
        """Fraction of weights that are masked, a 0-d tensor; 0 for an empty weight."""
        return (self.mask == 0).float().mean() if self.mask.numel() else torch.zeros((), device=self.mask.device)

    def keep(self) -> Tensor:
        """The mask itself."""
        return self.mask

    def update(self, weight: Tensor, sparsity: float) -> None:
        """Prune the round(sparsity * N) weights of least magnitude, of equal ones those of lower index.

        Raises ConfigError (PQ407) for a sparsity outside [0, 1], TrainingError (PQ412) once frozen.
        """
        update_globally([(self, weight)], sparsity)

    def freeze(self) -> None:
        """Keep the mask as it is from now on; masked weights receive no gradient any more."""
        self.fixed.fill_(1)
        self._fixed = True

    def reapply_(self, weight: Tensor, optimizer: Optimizer | None = None) -> None:
        """Zero the masked entries of `weight` itself, and of its optimizer state: momentum and decay move them otherwise."""
        with torch.no_grad():
            weight.mul_(self.mask)
            state = optimizer.state.get(weight, {}) if optimizer is not None else {}
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(self.mask)

    def extra_repr(self) -> str:
        return f"sparsity {float(self.sparsity()):.2%}{', frozen' if self._fixed else ''}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._fixed = bool(self.fixed)


def update_globally(pairs: Sequence[tuple[MagnitudeMask, Tensor]], sparsity: float) -> None:
    """Prune the round(sparsity * N) smallest of all N weights of the masks together; ties by order of the pairs, then by index.

    pairs: each mask with its latent weight. Raises ConfigError (PQ407) for a sparsity outside [0, 1], TrainingError (PQ412)
    when a mask is frozen.
    """
    _check(sparsity)
    if any(mask.is_frozen for mask, _ in pairs):
        raise TrainingError(Problem("PQ412", "a frozen mask was asked to change", "update masks before `freeze`"))
    if not pairs:
        return
    with torch.no_grad():
        sizes = [weight.numel() for _, weight in pairs]
        magnitudes = torch.cat([weight.detach().abs().reshape(-1) for _, weight in pairs])
        keep = torch.ones_like(magnitudes)
        keep[magnitudes.argsort(stable=True)[: round(sparsity * len(magnitudes))]] = 0
        for (mask, weight), part in zip(pairs, torch.split(keep, sizes)):
            mask.mask.copy_(part.reshape(weight.shape))


class _DenseMask(torch.autograd.Function):
    """W * m with the gradient of W_eff passed on to every entry of W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _check(sparsity: float) -> None:
    if not 0.0 <= sparsity <= 1.0:
        raise ConfigError(Problem("PQ407", f"a sparsity of {sparsity} is impossible", "give the fraction of zeros, 0 to 1"))
