"""Activation Pruning (after Golkar, Kagan & Cho 2019): outputs that seldom get through the ReLU behind them are removed.

    a_j = fraction of samples and positions where unit j is positive, or the mean of what the ReLU gives
    m_j <- m_j and not (a_j <= threshold)
    loss += l1 * sum |W|                        with it more units fall silent

Activities are measured in front of the ReLU and of any quantizer. A unit goes with its bias and with the offset of the
BatchNorm behind it, which would fire for ever otherwise, and stays away.
"""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from pquant_fx.config import ActivationPruning
from pquant_fx.errors import PQuantWarning
from pquant_fx.graph.activation_statistics import ActivationStatistics, Quantity
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members, Pruner

__all__ = ["ActivationMask"]

_MEASURED: dict[str, Quantity] = {"active_fraction": "active", "mean_activation": "rectified"}


class ActivationMask(Pruner):
    """W -> W * mask, whole outputs of which are 0. activity: a_j of each output in the last window (outputs,), infinite while there
    is none that was not acted upon.
    """

    rectified: ClassVar[bool] = True
    settings: ActivationPruning
    activity: Tensor
    statistics: ActivationStatistics

    def __init__(self, weight: Tensor, settings: ActivationPruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        units = self.layout.units(weight)
        self.register_buffer("activity", torch.full((units,), torch.inf, dtype=torch.float64, device=weight.device))
        axis = 1 if weight.dim() > 2 else -1
        self.statistics = ActivationStatistics(units, axis, _MEASURED[settings.criterion], "output", weight.device)

    def penalty(self, weight: Tensor) -> Tensor | None:
        return self.settings.l1 * weight.abs().sum() if self.settings.l1 else None

    def effective(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.mask

    def units(self, weight: Tensor) -> Tensor | None:
        return self.layout.rows(self.mask)[:, 0, 0]

    def measure(self) -> None:
        """Close a window, and begin the next. Raises TrainingError (PQ411, PQ412)."""
        self.activity.copy_(self.statistics.means())
        self.statistics.begin()

    def remove(self) -> None:
        """Remove the units whose last window says so, the least active first, of equal ones those of lower index."""
        self.check_free()
        with torch.no_grad():
            rows = self.layout.rows(self.mask)
            alive = rows[:, 0, 0] > 0
            left = int(alive.sum())
            most = min(max(1, math.floor(self.settings.max_removed * left)), left - 1)
            activity = torch.where(alive & (self.activity <= self.settings.threshold), self.activity, torch.inf)
            order = activity.argsort(stable=True)[:most]
            gone = order[activity[order].isfinite()]
            kept = rows.clone()
            kept[gone] = 0
            self.mask.copy_(self.layout.restore(kept, self.mask.shape))
            self.activity.fill_(torch.inf)

    def fix_(self, weight: Tensor) -> None:
        super().fix_(weight)
        self.statistics.end()

    # ---- hooks
    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        super().begin(members, steps)
        settings: ActivationPruning = members[0].mask.settings
        first = settings.t_start_collecting_batch + settings.t_delta
        if first > steps:
            what = f"activation pruning has its first statistics after {first} batches, the training stage has {steps}: nothing is removed"
            warnings.warn(PQuantWarning(f"{what}; lower t_start_collecting_batch and t_delta"), stacklevel=2)
        cls._start(members, 0)

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        settings: ActivationPruning = members[0].mask.settings
        since = step - settings.t_start_collecting_batch
        if since > 0 and since % settings.t_delta == 0:
            for mask, _ in members:
                mask.measure()
        cls._start(members, step)

    @classmethod
    def _start(cls, members: Members, step: int) -> None:
        if step == members[0].mask.settings.t_start_collecting_batch:
            for mask, _ in members:
                mask.statistics.begin()

    @classmethod
    def end_epoch(cls, members: Members, epoch: int, epochs: int) -> None:
        for mask, _ in members:
            mask.remove()

    @classmethod
    def end(cls, members: Members) -> None:
        for mask, _ in members:
            mask.statistics.end()
