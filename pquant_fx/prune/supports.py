"""S(W): which weights a constraint wants to keep, for each kind of pattern; the rest is the tail that it drives to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pquant_fx.config import MDMMPruning
from pquant_fx.prune.gradient_record import GradientRecord
from pquant_fx.prune.hardware_groups import group_costs, hardware_groups, keep_affordable
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.patterns import (
    check_kernels,
    dominant_patterns,
    kernels_of,
    nearest_pattern,
    restore_kernels,
    strongest_positions,
)
from pquant_fx.prune.selection import keep_largest, keep_pattern
from pquant_fx.prune.weight_groups import WeightGroups

__all__ = ["HardwareSupport", "Support", "make_support"]


class Support(nn.Module):
    """The largest groups: single weights, outputs, or blocks of an output. groups: what is kept or removed as one.

    At least one group always stays: a layer without weights has no tail, and is no layer.
    """

    def __init__(self, groups: WeightGroups) -> None:
        super().__init__()
        self.groups = groups

    def amounts(self, weight: Tensor) -> Tensor:
        """The magnitude of each group, (groups,), with its gradient."""
        return self.groups.amounts(weight)

    def kept(self, mask: Tensor) -> Tensor:
        """Which groups a mask keeps, (groups,)."""
        return self.groups.kept(mask)

    def advance(self, weight: Tensor, progress: float, sparsity: float) -> bool:
        """Training has come to `progress`, 0 to 1; True if other weights are wanted from now on."""
        return False

    def choose(self, weight: Tensor, sparsity: float) -> Tensor:
        """S(W) as a mask of the weight's shape."""
        (mask,) = self.choose_together([weight], [self], sparsity)
        return mask

    @classmethod
    def choose_together(cls, weights: Sequence[Tensor], supports: Sequence[Support], sparsity: float) -> list[Tensor]:
        """The same for layers that share one budget; each keeps its largest group whatever the others have."""
        amounts = [support.amounts(weight.detach()) for weight, support in zip(weights, supports)]
        if len(amounts) == 1:
            kept = [keep_largest(amounts[0], min(round(sparsity * len(amounts[0])), len(amounts[0]) - 1))]
        else:
            first = [a.scatter(0, a.argmax(0, keepdim=True), torch.inf) for a in amounts]
            every = torch.cat(first)
            removed = min(round(sparsity * len(every)), len(every) - len(first))
            kept = list(torch.split(keep_largest(every, removed), [len(a) for a in amounts]))
        return [support.groups.spread(k, weight) for k, weight, support in zip(kept, weights, supports)]


class FewOfMany(Support):
    """N:M: of every M inputs the N largest, more while the sparsity asked for is less. pattern: (N, M)."""

    def __init__(self, groups: WeightGroups, pattern: tuple[int, int]) -> None:
        super().__init__(groups)
        self.pattern = pattern

    def choose(self, weight: Tensor, sparsity: float) -> Tensor:
        layout = self.groups.layout
        keep, size = self.pattern
        now = max(keep, math.ceil(size * (1 - sparsity) - 1e-6))
        return layout.restore(keep_pattern(layout.rows(weight.detach()).abs(), now, size), weight.shape)


class HardwareSupport(Support):
    """The most valuable DSP or BRAM groups that the budget pays for. value: what makes a group valuable, by its weights w

        l2, l1     sqrt(sum w^2), sum |w|
        gradient   sum |w G|, the first-order change of the loss       G: the mean gradient of the task's loss, by `record`
        saliency   sum w^2 G^2, where G^2 stands for the Hessian's diagonal

    The last two are the first while no step was made.
    """

    def __init__(self, groups: WeightGroups, costs: Tensor, value: str, record: GradientRecord | None) -> None:
        super().__init__(groups)
        self.costs, self.value, self.record = costs, value, record

    def values(self, weight: Tensor) -> Tensor:
        """What each group is worth, (groups,)."""
        if self.value == "l1":
            return self.groups.cut(weight.abs()).sum(1)
        if self.record is None or not int(self.record.steps):
            return self.amounts(weight)
        each = weight.square() * self.record.mean if self.record.squared else (weight * self.record.mean).abs()
        return self.groups.cut(each).sum(1)

    @classmethod
    def choose_together(cls, weights: Sequence[Tensor], supports: Sequence[Support], sparsity: float) -> list[Tensor]:
        hardware = [support for support in supports if isinstance(support, HardwareSupport)]
        values = [support.values(weight.detach()) for weight, support in zip(weights, hardware)]
        kept = keep_affordable(values, [support.costs for support in hardware], sparsity)
        return [support.groups.spread(k, weight) for k, weight, support in zip(kept, weights, supports)]


class PatternSupport(Support):
    """PACA: first the strongest n of each kernel's positions, and once the dominant patterns are found, the nearest one.

    n = round((1 - sparsity) * positions), at least 1. patterns: (num_patterns_to_keep, positions), of which the first `found`
    are in use, 0 until they are selected.
    """

    patterns: Tensor
    found: Tensor

    def __init__(self, groups: WeightGroups, weight: Tensor, settings: MDMMPruning) -> None:
        super().__init__(groups)
        check_kernels(weight, groups.layout)
        self.settings = settings
        positions = groups.layout.rows(weight).shape[1]
        self.register_buffer("patterns", weight.new_zeros(settings.num_patterns_to_keep, positions))
        self.register_buffer("found", torch.zeros((), dtype=torch.int64, device=weight.device))

    def advance(self, weight: Tensor, progress: float, sparsity: float) -> bool:
        if progress < self.settings.selection_fraction or int(self.found):
            return False
        kernels = kernels_of(weight.detach(), self.groups.layout)
        support = self._strongest(kernels, sparsity) * (kernels.abs() > self.settings.epsilon)
        dominant = dominant_patterns(support, self.settings.beta, self.settings.num_patterns_to_keep)
        self.patterns[: len(dominant)] = dominant
        self.found.fill_(len(dominant))
        return True

    def choose(self, weight: Tensor, sparsity: float) -> Tensor:
        kernels = kernels_of(weight.detach(), self.groups.layout)
        used = self.patterns[: int(self.found)]
        if len(used):
            wanted = used[nearest_pattern(kernels, used, self.settings.epsilon, self.settings.distance_metric)]
        else:
            wanted = self._strongest(kernels, sparsity)
        return restore_kernels(wanted, weight, self.groups.layout)

    def _strongest(self, kernels: Tensor, sparsity: float) -> Tensor:
        return strongest_positions(kernels, max(1, round((1 - sparsity) * kernels.shape[1])))


def make_support(weight: Tensor, settings: MDMMPruning, layout: Layout) -> Support:
    """The support of `settings.metric_type` for this weight.

    Raises ConfigError (PQ407) where the layer can not have it: no kernels, or too large ones; a reuse factor that does not divide.
    """
    kind = settings.metric_type
    if kind == "NMSparsity":
        return FewOfMany(WeightGroups(layout), settings.pattern)
    if kind == "PACAPatternSparsity":
        return PatternSupport(WeightGroups(layout), weight, settings)
    if kind == "FPGAAwareSparsity":
        groups = hardware_groups(weight, settings, layout)
        record = GradientRecord(weight, settings.value == "saliency") if settings.value in ("gradient", "saliency") else None
        return HardwareSupport(groups, group_costs(weight, settings, groups), settings.value, record)
    if kind == "StructuredSparsity":
        whole = layout.rows(weight)[0].numel()
        return Support(WeightGroups(layout, size=whole if settings.rf == 1 else min(settings.rf, whole), per_output=True))
    return Support(WeightGroups(layout))
