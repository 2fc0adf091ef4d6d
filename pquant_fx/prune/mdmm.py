"""Constrained pruning by the modified differential method of multipliers (MDMM, Platt & Barr 1988).

    min L(W)  subject to  metric(W) = v  (or <= v, >= v, between two values)

The weights stay dense while they are trained: a term of the loss drives the metric to its value, a multiplier makes the term
as strong as it has to be. The metric measures how far W is from the target pattern S(W) (`mdmm_metrics`, `supports`);
S(W) is chosen between steps, so that a forward neither sorts nor waits. When training ends the mask is 1 on S(W):

    loss      + a (lambda g + c/2 g^2)        g(W) with the S(W) in force
    step      lambda <- lambda + eta a g      with the g that the loss had; then S(W) and g are taken from the new weights
    hardening m = 1[j in S(W)], fixed         term and multiplier rest
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pquant_fx.config import MDMMPruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.prune.gradient_record import GradientRecord
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.magnitude import cubic_sparsity
from pquant_fx.prune.mdmm_metrics import bell_width, count, tail
from pquant_fx.prune.multipliers import ascended, ascent, lagrangian, violations
from pquant_fx.prune.pruner import Members, Pruner
from pquant_fx.prune.supports import HardwareSupport, make_support

__all__ = ["MDMMMask"]


class MDMMMask(Pruner):
    """W -> W in training, W * 1[S(W)] once fixed.

    `mask` is S(W) from the beginning of training on. multiplier: of each constraint, (1,), or (2,) between bounds; violation:
    their g at the weights of the coming step, of the metric as a mean. level: the share that is to go by now.
    start_width, width: of the smooth count, at first and now. Raises ConfigError (PQ407) where the layer can not have the
    metric, or its own goal is none that the metric knows.
    """

    settings: MDMMPruning
    multiplier: Tensor
    violation: Tensor
    level: Tensor

    def __init__(self, weight: Tensor, settings: MDMMPruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        if sparsity is not None and not (0 <= sparsity < 1 and settings.metric_type != "NMSparsity"):
            what = f"a sparsity of {sparsity} can not be the goal of the constraint {settings.metric_type}"
            raise ConfigError(Problem("PQ407", what, "give 0 <= sparsity < 1; of NMSparsity the pattern nm says it"))
        self.support = make_support(weight.detach(), settings, self.layout)
        constraints = weight.new_zeros(2 if settings.constraint_type == "Bounds" else 1, requires_grad=False)
        if settings.use_grad:
            self.multiplier = nn.Parameter(constraints)
        else:
            self.register_buffer("multiplier", constraints)
        self.register_buffer("violation", constraints.detach().clone())
        self.register_buffer("level", torch.zeros((), dtype=torch.float64, device=weight.device))
        self.slack = nn.Parameter(weight.new_zeros(1)) if settings.slack else None
        if settings.l0_mode == "smooth":
            self.register_buffer("start_width", weight.new_zeros(()))
            self.register_buffer("width", weight.new_zeros(()))
        else:
            self.start_width = self.width = None

    @property
    def record(self) -> GradientRecord | None:
        """What the support has to know of gradients; None where it goes by weights."""
        return self.support.record if isinstance(self.support, HardwareSupport) else None

    @property
    def goal(self) -> float:
        """The share of the weights (outputs, groups) that goes."""
        if self.settings.metric_type == "NMSparsity":
            keep, size = self.settings.pattern
            return 1.0 - keep / size
        return self.settings.target_sparsity if self.target is None else self.target

    def effective(self, weight: Tensor) -> Tensor:
        seen: Tensor = weight if self.record is None else self.record(weight)
        return seen

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.mask

    def units(self, weight: Tensor) -> Tensor | None:
        """Ones: an output that will go is there until training ends. None where single weights or blocks go."""
        if self.settings.metric_type != "StructuredSparsity" or self.settings.rf != 1:
            return None
        return weight.new_ones(self.layout.units(weight))

    # ---- the constraint
    def metric(self, weight: Tensor) -> Tensor:
        """How far `weight` is from the target pattern, 0-d; for the S(W) in force."""
        amounts = self.support.amounts(self.judged(weight))
        if self.settings.counts:
            return count(amounts, self.level.to(amounts.dtype), self.settings.epsilon, self.width)
        return tail(amounts, self.support.kept(self.mask))

    def violations(self, weight: Tensor) -> Tensor:
        """g of each constraint, (constraints,)."""
        s = self.settings
        g = violations(self.metric(weight), s.constraint_type, s.target_value, s.upper_value)
        return g if self.slack is None else g + self.slack.square()

    def penalty(self, weight: Tensor) -> Tensor:
        s = self.settings
        multiplier = self.multiplier
        if s.use_grad:
            multiplier = ascent(multiplier, self.violation.abs() <= self._tolerance)
        term = lagrangian(self.violations(weight) * self._elements, multiplier, s.scale, s.damping, self._projected)
        return term + s.group_lasso * self.support.amounts(weight).sum() if s.group_lasso else term

    @property
    def _elements(self) -> float:
        return float(self.mask.numel()) if self.settings.scale_mode == "sum" else 1.0

    @property
    def _projected(self) -> bool:
        return self.settings.constraint_type != "Equality" and not self.settings.slack

    @property
    def _tolerance(self) -> float:
        return 0.0 if self.settings.counts else self.settings.epsilon

    # ---- between steps
    def _ascend(self) -> None:
        s = self.settings
        if not s.use_grad:
            rate = s.constraint_lr * s.scale * self._elements
            self.multiplier.copy_(ascended(self.multiplier, self.violation, rate, self._projected, self._tolerance))
        elif self._projected:
            self.multiplier.clamp_(min=0.0)  # the optimizer may have gone through zero

    def _start_bell(self, weight: Tensor) -> None:
        if self.start_width is not None:
            self.start_width.copy_(0.5 * self.support.amounts(self.judged(weight)).square().mean().sqrt())

    def _start_slack(self, weight: Tensor) -> None:
        if self.slack is not None:
            self.slack.zero_()
            self.slack.copy_((-self.violations(weight)).relu().sqrt())

    def _progress(self, weight: Tensor, progress: float) -> bool:
        """Follow the schedules to `progress`, 0 to 1; True where S(W) has to be chosen at once."""
        s = self.settings
        end = min(s.ramp_fraction, s.selection_fraction) if s.metric_type == "PACAPatternSparsity" else s.ramp_fraction
        before = float(self.level)
        self.level.fill_(cubic_sparsity(progress, 0.0, end, 0.0, self.goal))
        if self.width is not None:
            self.width.copy_(bell_width(self.start_width, s.epsilon, progress))
        arrived = progress >= end and before != float(self.level)
        return self.support.advance(self.judged(weight), progress, self.goal) or arrived

    # ---- hooks
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        super().begin(members, steps)
        with torch.no_grad():
            for mask, weight in members:
                mask._start_bell(weight)
                mask._progress(weight, 0.0 if steps else 1.0)
            _choose(members)
            for mask, weight in members:
                mask._start_slack(weight)
            _measure(members)

    @classmethod
    def begin_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        """Weights may have been rewound or loaded since the last step."""
        with torch.no_grad():
            _choose(members)
            _measure(members)

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        with torch.no_grad():
            for mask, _ in members:
                mask._ascend()
            moved = [mask._progress(weight, step / steps) for mask, weight in members]
            if any(moved) or step % members[0].mask.settings.interval == 0:
                _choose(members)
            _measure(members)

    @classmethod
    def end_round(cls, members: Members, last: bool) -> None:
        """The mask is that of the trained weights, also where they are rewound after this."""
        with torch.no_grad():
            for mask, _ in members:
                if last:
                    mask.level.fill_(mask.goal)
            _choose(members)
            _measure(members)


def _choose(members: Members) -> None:
    """S(W) of all, together where they share a budget."""
    together = [m for m in members if m.mask.settings.scope == "global" and m.mask.target is None]
    for mask, weight in members:
        if not any(mask is other.mask for other in together):
            mask.mask.copy_(mask.support.choose(mask.judged(weight), float(mask.level)))
    if together:
        masks, weights = [m.mask for m in together], [m.mask.judged(m.weight) for m in together]
        supports = [mask.support for mask in masks]
        for mask, kept in zip(masks, type(supports[0]).choose_together(weights, supports, float(masks[0].level))):
            mask.mask.copy_(kept)


def _measure(members: Members) -> None:
    for mask, weight in members:
        mask.violation.copy_(mask.violations(weight))
