"""Pruning by weights and activations (Wanda: Sun, Liu, Bair & Kolter 2024): by how much a weight moves its output.

    S_oj = |W_oj| ||x_j||_2,  compared within each output o; of convolutions x_j is a channel, over batch and space

Once, as published, or in training little by little (`iterations`): weights that stay learn to do without the others.

The norm is that of what the layer takes in, quantized where it is. Layers are pruned one after the other, in the order of the
network, so that the norms of a later one are those behind the pruned earlier ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pquant_fx.config import WandaPruning
from pquant_fx.errors import ConfigError, Problem, TrainingError
from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.prune.budgets import layer_budgets
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members, Pruner
from pquant_fx.prune.selection import keep_largest, keep_lowest_out, keep_pattern

__all__ = ["WandaMask", "collection_times"]

_DONE_BY = 0.75  # of the steps of the training stage; the rest lets the weights that stay recover


class WandaMask(Pruner):
    """W -> W * mask, all ones until `prune`. statistics: the mean square of each channel that the layer takes in; budget: the share
    of the weights that goes.
    """

    settings: WandaPruning
    budget: Tensor
    statistics: ActivationStatistics

    def __init__(self, weight: Tensor, settings: WandaPruning, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        if settings.pattern is not None and sparsity is not None:
            what = f"a sparsity of {sparsity} was asked for, but N: {settings.N} and M: {settings.M} say how much goes"
            raise ConfigError(Problem("PQ407", what, "keep one of the two"))
        if weight.dim() < 2:
            channels = weight.numel()
        else:
            channels = weight.shape[self.layout.inputs] * (1 if self.layout.transposed else self.layout.groups)
        self.register_buffer("budget", torch.zeros((), dtype=torch.float64))
        self.statistics = ActivationStatistics(channels, 1 if weight.dim() > 2 else -1, "square", "input", weight.device)

    def effective(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def hard_mask(self, weight: Tensor) -> Tensor:
        return self.mask

    def scores(self, weight: Tensor) -> Tensor:
        """|W| ||x||_2 as (outputs, kernel positions, inputs), up to a common factor. Raises TrainingError (PQ411, PQ412)."""
        rows = self._rows(self.judged(weight.detach()).abs())
        norms = self.statistics.means().sqrt().to(rows).reshape(self.layout.groups, 1, -1)
        return rows * norms.repeat_interleave(len(rows) // self.layout.groups, 0)

    def prune(self, weight: Tensor, progress: float = 1.0) -> None:
        """Remove `budget` of the weights, or what the pattern says, by what was collected: `progress` (0 to 1) of that. What is
        pruned already goes first, and stays away. Raises TrainingError (PQ411, PQ412).
        """
        self.check_free()
        with torch.no_grad():
            scores, pattern = self.scores(weight), self.settings.pattern
            scores.masked_fill_(self._rows(self.mask) == 0, -torch.finfo(scores.dtype).tiny)  # below those of silent inputs
            if pattern is None:
                kept = self._compared(scores, float(self.budget) * progress)
            else:
                keep, size = pattern
                kept = keep_pattern(scores, size - math.floor((size - keep) * progress + 1e-9), size)
            self.mask.copy_(kept.reshape(weight.shape) if weight.dim() < 2 else self.layout.restore(kept, weight.shape))
        self.statistics.end()

    def _compared(self, scores: Tensor, share: float) -> Tensor:
        if self.settings.comparison_group == "output":
            return keep_lowest_out(scores, share, self.settings.exact_sparsity)
        return keep_largest(scores, min(round(share * scores.numel()), scores.numel() - 1))

    def fix_(self, weight: Tensor) -> None:
        super().fix_(weight)
        self.statistics.end()

    def _rows(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, 1, -1) if weight.dim() < 2 else self.layout.rows(weight)

    # ---- hooks
    @classmethod
    def set_budgets(cls, members: Members) -> None:
        """What each layer loses, by its weights of now."""
        settings: WandaPruning = members[0].mask.settings
        for (mask, _), budget in zip(members, layer_budgets(members, settings.sparsity, settings.calculate_pruning_budget)):
            mask.budget.fill_(budget)

    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        if steps < len(members):
            what = f"{len(members)} layers are to be pruned one after the other, but the training stage has {steps} steps"
            raise TrainingError(Problem("PQ412", what, "train longer, or call pq.prune_by_wanda(model, batches) instead"))
        super().begin(members, steps)
        cls.set_budgets(members)
        cls._move(members, 0, steps)

    @classmethod
    def step(cls, members: Members, step: int, steps: int) -> None:
        cls._move(members, step, steps)

    @classmethod
    def _move(cls, members: Members, step: int, steps: int) -> None:
        settings: WandaPruning = members[0].mask.settings
        iterations = min(settings.iterations, steps // len(members))
        turns = len(members) * iterations
        start, window = collection_times(settings, len(members), steps)
        turn, inside = divmod(step - start, window)
        if inside or not 0 <= turn <= turns:
            return
        if turn > 0:
            iteration, last = divmod(turn - 1, len(members))
            members[last].mask.prune(members[last].weight, 1 - (1 - (iteration + 1) / iterations) ** 3)
        if turn < turns:
            members[turn % len(members)].mask.statistics.begin()


def collection_times(settings: WandaPruning, layers: int, steps: int) -> tuple[int, int]:
    """(start, window): the n-th layer looks at steps start + n * window to start + (n + 1) * window of the training stage.

    After the last layer comes the first again, `iterations` times in all, or fewer where there are fewer steps. As the settings
    say, or both shrunk by the same factor where the last turn would not end after 3/4 of the steps; a window is one step at least.
    """
    start, window = settings.t_start_collecting_batch, settings.t_delta
    shrink = _DONE_BY * steps / (start + layers * max(1, min(settings.iterations, steps // layers)) * window)
    if shrink >= 1:
        return start, window
    return (math.floor(start * shrink), math.floor(window * shrink)) if window * shrink >= 1 else (0, 1)
