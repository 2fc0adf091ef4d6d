"""Parameter-free Differentiable Pruning (Cho, Adya & Naik 2023): soft masks that follow the weights, without parameters of their own.

    m = sigmoid((W^2 - t^2) / tau);    W_eff = m W;    dL/dW = G (m + 2 W^2 / tau  m (1 - m))

The threshold t lies halfway between the smallest magnitude that stays and the largest that goes, and is constant for the
gradient. Weights near it get more than their own gradient, which pushes them off the fence. Structured: the same with the L2
norms of the outputs, biases included. N:M: each group has a t of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pquant_fx.config import PDPPruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.functions import applied
from pquant_fx.prune.budgets import layer_budgets
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members, Pruner
from pquant_fx.prune.selection import keep_largest, keep_pattern, keep_rows, kept_of_group, row_norms

__all__ = ["PDPMask"]

_RAMP = 1.5  # the target is reached after two thirds of the epochs, at the latest
_LEAST_TEMPERATURE = 1e-30  # keeps W^2 / tau finite


class PDPMask(Pruner):
    """W -> W * m in training, W * mask in evaluation. budget: the share of the weights (outputs) to prune; progress: how much of it
    is asked for now, 0 to 1. Of N:M there is no budget: t grows with `progress` instead.

    level (t^2) and temperature are found after every optimizer step from the weights of now, so that a forward selects nothing;
    -inf where nothing is pruned. mask: the hard decision, found at the beginning and the end of each epoch: m >= 1/2, of weights
    tied at the threshold those of lower index go (N:M: stay). The progress is not taken back when a new round begins;
    masks follow the weights, so that rewinding between rounds forgets them, and after the last round the decision stands.
    """

    settings: PDPPruning
    level: Tensor
    temperature: Tensor
    budget: Tensor
    progress: Tensor

    def __init__(self, weight: Tensor, settings: PDPPruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        if settings.nm is not None and sparsity is not None:
            what = f"a sparsity of {sparsity} was asked for, but 'nm: {settings.nm}' says how much goes"
            raise ConfigError(Problem("PQ407", what, "keep one of the two"))
        level = torch.full(weight.shape if settings.nm is not None else (), -torch.inf, dtype=weight.dtype, device=weight.device)
        self.register_buffer("level", level)
        self.register_buffer("temperature", torch.full_like(level, settings.temperature))
        for name in ("budget", "progress"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self._plan = (0.0, 0.0)  # mirrors of the two, so that no step waits for the device

    # ---- the weight
    def effective(self, weight: Tensor) -> Tensor:
        if not self.training:
            return weight * self.mask
        if self.settings.structured_pruning:
            rows = self.layout.rows(weight)
            return self.layout.restore(rows * self._soft_units(rows)[:, None, None], weight.shape)
        soft: Tensor = applied(_SoftMask, weight, self.level, self.temperature)[0]
        return soft

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.mask

    def units(self, weight: Tensor) -> Tensor | None:
        if not self.settings.structured_pruning:
            return None
        return self._soft_units(self.layout.rows(weight)) if self.training else self.layout.rows(self.mask)[:, 0, 0]

    def _soft_units(self, rows: Tensor) -> Tensor:
        return torch.sigmoid((rows.square().sum((1, 2)) - self.level) / self.temperature)

    # ---- what moves it
    def plan(self, budget: float, progress: float) -> None:
        """Ask for this share of the budget. Raises TrainingError (PQ412) once fixed."""
        self.check_free()
        self._plan = (budget, progress)
        self.budget.fill_(budget)
        self.progress.fill_(progress)

    def follow(self, weight: Tensor) -> None:
        """Put the threshold where the weights of now want it."""
        with torch.no_grad():
            threshold = self._threshold(weight.detach())
            if threshold is None:
                self.level.fill_(-torch.inf)
                self.temperature.fill_(self.settings.temperature)
                return
            self.level.copy_(torch.where(threshold.isinf(), threshold, threshold.square()))
            if self.settings.relative_temperature:
                scale = torch.where(self.level.isfinite(), self.level, 1.0)
                self.temperature.copy_((self.settings.temperature * scale).clamp(min=_LEAST_TEMPERATURE))

    def decide(self, weight: Tensor) -> None:
        """Take the hard decision on the weights of now; the threshold has to follow them first."""
        with torch.no_grad():
            self.mask.copy_(self._decided(weight.detach()))

    def _decided(self, weight: Tensor) -> Tensor:
        pattern, (_, progress) = self.settings.pattern, self._plan
        if pattern is not None:
            if progress < 1:
                return (weight.square() >= self.level).to(weight.dtype)
            return self.layout.restore(keep_pattern(self.layout.rows(weight).abs(), *pattern), weight.shape)
        if self.settings.structured_pruning:
            rows = self.layout.rows(weight)
            return self.layout.restore(keep_rows(rows, self._removed(len(rows))), weight.shape)
        return keep_largest(weight.abs(), self._removed(weight.numel()))

    def _removed(self, count: int) -> int:
        budget, progress = self._plan
        return count - max(1, round((1 - budget * progress) * count)) if count else 0

    def _threshold(self, weight: Tensor) -> Tensor | None:
        """t, 0-d or (N:M) of the weight's shape; None: nothing is pruned."""
        if self.settings.pattern is not None:
            return self._thresholds_of_groups(weight, *self.settings.pattern)
        scores = row_norms(self.layout.rows(weight)) if self.settings.structured_pruning else weight.abs().flatten()
        removed = self._removed(scores.numel())
        if removed <= 0:
            return None
        above = scores.kthvalue(removed).values  # the largest that goes; what is next is found without sorting
        larger = torch.where(scores > above, scores, torch.inf).amin()
        tied = (scores <= above).sum() > removed
        return (above + torch.where(tied, above, larger)) / 2

    def _thresholds_of_groups(self, weight: Tensor, keep: int, size: int) -> Tensor | None:
        progress = self._plan[1]
        if progress <= 0 or not weight.numel():
            return None
        scores = self.layout.rows(weight).abs()
        whole = scores.shape[-1] - scores.shape[-1] % size
        parts = [_between(scores[..., :whole].reshape(*scores.shape[:-1], -1, size), keep).flatten(-2)] if whole else []
        if whole < scores.shape[-1]:
            tail = scores[..., whole:]
            parts.append(_between(tail, kept_of_group(keep, size, tail.shape[-1])))
        return self.layout.restore(progress * torch.cat(parts, -1), weight.shape)

    # ---- hooks
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        super().begin(members, steps)
        settings: PDPPruning = members[0].mask.settings
        for (mask, weight), budget in zip(members, layer_budgets(members, settings.sparsity, settings.scope == "global")):
            mask.plan(budget, 0.0)
            mask.follow(weight)
            mask.decide(weight)

    @classmethod
    def begin_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        rate = max(members[0].mask.settings.epsilon, _RAMP / epochs)
        for mask, weight in members:
            budget, progress = mask._plan
            mask.plan(budget, max(progress, min(1.0, rate * (epoch + 1))))
            mask.follow(weight)
            mask.decide(weight)

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        for mask, weight in members:
            mask.follow(weight)

    @classmethod
    def end_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        for mask, weight in members:
            mask.decide(weight)

    @classmethod
    def end(cls, members: Members) -> None:
        for mask, weight in members:
            budget, progress = mask._plan
            if progress < 1:  # no epoch was trained; weights may have been rewound otherwise, and the decision stands
                mask.plan(budget, 1.0)
                mask.follow(weight)
                mask.decide(weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._plan = (float(self.budget), float(self.progress))


def _between(groups: Tensor, keep: int) -> Tensor:
    """Halfway between the smallest that stays and the largest that goes of each group, over the last axis, of the groups' shape."""
    if keep >= groups.shape[-1]:
        return torch.full_like(groups, -torch.inf)
    ends = groups.topk(keep + 1, dim=-1).values[..., -2:]
    return ends.mean(-1, keepdim=True).expand_as(groups)


class _SoftMask(torch.autograd.Function):
    """(W, t^2, tau) -> W m and m = sigmoid((W^2 - t^2) / tau), with a gradient for W only, through the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, level: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        mask = weight.square().sub_(level).div_(temperature).sigmoid_()
        return weight * mask, mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weight, _, temperature = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, output[1], temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        weight, mask, temperature = ctx.saved_tensors
        steepness = weight.square().mul_(2).div_(temperature).mul_(1 - mask)  # m + s m (1 - m) = m (1 + s (1 - m))
        return steepness.add_(1).mul_(mask).mul_(grad), None, None
