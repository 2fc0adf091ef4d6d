"""Continuous Sparsification (Savarese, Silva & Maire 2020): a mask that hardens while it is learned.

    m = c0 sigmoid(beta s);    W_eff = m W;    loss += threshold_decay * sum m        c0 = 1 / sigmoid(s0)
    beta = final_temp ^ (e / (E - 1)) during epoch e of the E of a round
    after a round, but not after the last: s <- min(final_temp s, s0)
    ticket: W_eff = c0 1[s > 0] W

A logit s for each weight starts at s0 = `threshold_init`. After a round what is suppressed stays so, everything else starts
again at s0. In the ticket the factor c0 becomes part of the weights, also of rewound ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pquant_fx.config import CSPruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members, Pruner
from pquant_fx.prune.thresholds import check_steps

__all__ = ["CSMask", "temperature"]


def temperature(epoch: int, epochs: int, final: float) -> float:
    """beta during the 0-based `epoch` of `epochs`: from 1 to `final` by equal factors; `final` in a round of one epoch.

    Raises ConfigError (PQ407) for an epoch that is not there.
    """
    if not 0 <= epoch < epochs:
        raise ConfigError(Problem("PQ407", f"there is no epoch {epoch} in {epochs} epochs", "count epochs from 0"))
    return float(final ** (epoch / (epochs - 1))) if epochs > 1 else final


class CSMask(Pruner):
    """W -> c0 sigmoid(beta * logits) W. logits: learned, of W's shape; beta: 0-d. A logit of 0 counts as pruned."""

    settings: CSPruning
    logits: nn.Parameter
    beta: Tensor

    def __init__(self, weight: Tensor, settings: CSPruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        self.logits = nn.Parameter(torch.full_like(weight, settings.threshold_init, requires_grad=False))
        self.register_buffer("beta", torch.ones((), dtype=weight.dtype, device=weight.device))

    @property
    def factor(self) -> float:
        """c0: what a soft mask of logit s0 has to be multiplied by to be 1."""
        return 1 + math.exp(-self.settings.threshold_init)

    def soft_mask(self) -> Tensor:
        """m, of the weight's shape, differentiable."""
        return torch.sigmoid(self.logits * self.beta) * self.factor

    def effective(self, weight: Tensor) -> Tensor:
        return weight * self.soft_mask()

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.logits.detach().sign().clamp_(min=0)

    def settled(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def penalty(self, weight: Tensor) -> Tensor | None:
        decay = self.settings.threshold_decay
        return self.soft_mask().sum() * decay if decay else None

    # ---- hooks
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        check_steps(members, steps)
        super().begin(members, steps)

    @classmethod
    def begin_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        for mask, _ in members:
            mask.beta.fill_(temperature(epoch, epochs, mask.settings.final_temp))

    @classmethod
    def end_round(cls, members: Members, last: bool) -> None:
        if last:
            return
        with torch.no_grad():
            for mask, _ in members:
                mask.logits.mul_(mask.settings.final_temp).clamp_(max=mask.settings.threshold_init)
                mask.beta.fill_(1.0)
