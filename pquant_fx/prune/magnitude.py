"""Magnitude pruning on a cubic schedule (Zhu & Gupta 2017).

    s(t) = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3;    W_eff = m W, m = 0 for the round(s N) smallest |W|

Pruned weights keep their value and come back when others fall below them. With `regrow` they receive the gradient of W_eff
too (straight-through) and `decay_pruned` times themselves (SR-STE, Zhou et al. 2021); without that pull an optimizer such
as Adam moves them, without any effect on the loss, to where they displace useful ones.
Structured: the outputs of smallest L2 norm go, with their biases. N:M: of every M inputs N stay; N falls from M.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pquant_fx.config import MagnitudePruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.functions import applied
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members, Pruner
from pquant_fx.prune.selection import keep_largest, keep_largest_of_all, keep_pattern, keep_rows

__all__ = ["MagnitudeMask", "cubic_sparsity"]

_LEAST_UPDATES = 10  # fewer jumps than this cost accuracy (Zhu & Gupta 2017 prune gradually)


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


class MagnitudeMask(Pruner):
    """W -> W * mask, all ones at first. level: the sparsity that was last asked for; initial: the one from which this training starts."""

    settings: MagnitudePruning
    level: Tensor
    initial: Tensor

    def __init__(self, weight: Tensor, settings: MagnitudePruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        if sparsity is not None:
            _check(sparsity)
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))
        self.register_buffer("initial", torch.zeros((), dtype=torch.float64))

    @property
    def final(self) -> float:
        """The sparsity that the schedule ends at; of N:M that of the pattern."""
        if self.settings.granularity == "nm":
            keep, size = self.settings.pattern
            return 1.0 - keep / size
        return self.settings.sparsity if self.target is None else self.target

    def effective(self, weight: Tensor) -> Tensor:
        if not self.settings.regrow:
            return weight * self.mask
        dense: Tensor = applied(_DenseMask, weight, self.mask, self.settings.decay_pruned)
        return dense

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.mask

    def units(self, weight: Tensor) -> Tensor | None:
        return self.layout.rows(self.mask)[:, 0, 0] if self.settings.granularity == "structured" else None

    def update(self, weight: Tensor, sparsity: float) -> None:
        """Prune this share of the weights (outputs, inputs of a group) of least magnitude, of equal ones those of lower index.

        Raises ConfigError (PQ407) for a sparsity outside [0, 1], TrainingError (PQ412) once fixed.
        """
        _check(sparsity)
        self.check_free()
        with torch.no_grad():
            self.mask.copy_(self._selected(self.judged(weight.detach()), sparsity))
            self.level.fill_(sparsity)

    def _selected(self, weight: Tensor, sparsity: float) -> Tensor:
        if self.settings.granularity == "unstructured":
            return keep_largest(weight.abs(), round(sparsity * weight.numel()))
        rows = self.layout.rows(weight)
        if self.settings.granularity == "structured":
            kept = keep_rows(rows, round(sparsity * len(rows)))
        else:
            keep, size = self.settings.pattern
            kept = keep_pattern(rows.abs(), max(keep, math.ceil(size * (1 - sparsity) - 1e-9)), size)
        return self.layout.restore(kept, weight.shape)

    # ---- hooks
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        super().begin(members, steps)
        for group in _groups(members):
            final = group[0].mask.final
            now = 1 - float(sum(mask.mask.sum() for mask, _ in group) / sum(weight.numel() for _, weight in group))
            initial = min(max(group[0].mask.settings.initial_sparsity, now), final)
            for mask, _ in group:
                mask.initial.fill_(initial)
                mask.level.fill_(now)
            _set(group, initial)

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        """Masks change every `interval` steps, more often where that would be fewer than ten times, and for the last time where
        the schedule ends."""
        settings: MagnitudePruning = members[0].mask.settings
        start, end = settings.start_fraction * steps, settings.end_fraction * steps
        first, last = math.ceil(start), math.ceil(end)
        interval = max(1, min(settings.interval, (last - first) // _LEAST_UPDATES))
        if first <= step <= last and (step == last or (step - first) % interval == 0):
            for group in _groups(members):
                mask: MagnitudeMask = group[0].mask
                _set(group, cubic_sparsity(step, start, end, float(mask.initial), mask.final))

    @classmethod
    def end(cls, members: Members) -> None:
        for group in _groups(members):
            _set(group, group[0].mask.final)


def _groups(members: Members) -> list[Members]:
    """Those that share a budget: all that have no goal of their own under `scope: global`, every other one alone. Fixed ones stay out."""
    free = [m for m in members if not m.mask.is_fixed]
    shared = [m for m in free if m.mask.target is None and m.mask.settings.scope == "global"]
    return [*([m] for m in free if m not in shared), *([shared] if shared else [])]


def _set(group: Members, level: float) -> None:
    if all(float(mask.level) == level for mask, _ in group):
        return
    if len(group) == 1:
        group[0].mask.update(group[0].weight, level)
        return
    with torch.no_grad():
        for (mask, _), kept in zip(group, keep_largest_of_all([mask.judged(weight.detach()).abs() for mask, weight in group], level)):
            mask.mask.copy_(kept)
            mask.level.fill_(level)


class _DenseMask(torch.autograd.Function):
    """W * m with the gradient of W_eff passed on to every entry of W, plus decay * W where m = 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.decay = inputs[2]
        if ctx.decay:
            ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.decay:
            return grad, None, None
        weight, mask = ctx.saved_tensors
        return grad + ctx.decay * (1 - mask) * weight, None, None


def _check(sparsity: float) -> None:
    if not 0.0 <= sparsity <= 1.0:
        raise ConfigError(Problem("PQ407", f"a sparsity of {sparsity} is impossible", "give the fraction of zeros, 0 to 1"))
