"""Masks that compare |W| with thresholds which are learned with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pquant_fx.config import ThresholdType
from pquant_fx.errors import Problem, TrainingError
from pquant_fx.graph.functions import applied, flat, parts
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.pruner import Members, Pruner

__all__ = ["Places", "ThresholdMask", "check_steps", "spread"]


class ThresholdMask(Pruner):
    """threshold: one of the layer (layerwise), one an output (channelwise) or one a weight (weightwise), learned; it broadcasts to
    `spread(weight)`. `threshold_decay` adds threshold_decay / 2 * sum T^2 to the loss: it pulls thresholds towards 0.

    Masks are fixed when the last round ends, before weights are rewound: what was learned is which weights stay.
    """

    threshold: nn.Parameter

    def __init__(self, weight: Tensor, settings: Any, layout: Layout | None = None, sparsity: float | None = None) -> None:
        super().__init__(weight, settings, layout, sparsity)
        shape = _shape(weight, settings.threshold_type, self.layout)
        self._places: Places | None = None
        self.threshold = nn.Parameter(torch.full(shape, settings.threshold_init, dtype=weight.dtype, device=weight.device))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": None}

    @classmethod
    def begin(cls, members: Members, steps: int) -> None:
        check_steps(members, steps)
        super().begin(members, steps)

    @classmethod
    def end_round(cls, members: Members, last: bool) -> None:
        if last:
            for mask, weight in members:
                mask.fix_(weight)

    @classmethod
    def loss(cls, members: Members) -> Tensor | None:
        """What thresholds add to the loss, those of all layers at once."""
        settings, thresholds = members[0].mask.settings, [mask.threshold for mask, _ in members]
        pull, push = settings.threshold_decay, cls.push(settings)
        added: Tensor | None = applied(_Terms, pull, push, *thresholds) if pull or push else None
        return added

    @classmethod
    def push(cls, settings: Any) -> float:
        """The factor of sum exp(-T) in the loss."""
        return 0.0


def check_steps(members: Members, steps: int) -> None:
    """Raises TrainingError (PQ412) where a method that learns its mask has nothing to learn it in."""
    if steps == 0:
        what = f"'{members[0].mask.settings.pruning_method}' learns what to prune in the training stage, which has 0 epochs"
        raise TrainingError(Problem("PQ412", what, "give the training stage epochs, or set pruning_parameters.enable_pruning: false"))


def spread(weight: Tensor, layout: Layout) -> Tensor:
    """A view of the weight in which one axis holds outputs only: a transposed convolution of several groups has them on two."""
    if layout.transposed and layout.groups > 1:
        return weight.reshape(layout.groups, -1, *weight.shape[1:])
    return weight


class Places:
    """Where the weights of several layers, as one vector (`flat`), find their thresholds in the vector of all thresholds.

    ends: where each layer begins, and the last one ends. rows: the same for the weights of each threshold, None where those are
    not side by side (transposed convolutions).
    """

    def __init__(self, masks: Sequence[ThresholdMask], device: torch.device) -> None:
        self.masks, self.device = masks, device
        self.too_few: Tensor | None = None  # of each layer, where a method counts
        wide = [spread(mask.mask, mask.layout).shape for mask in masks]
        thresholds = [mask.threshold.shape for mask in masks]
        bounds = list(accumulate((t.numel() for t in thresholds), initial=0))
        own = [np.broadcast_to(np.arange(a, b).reshape(t), w) for a, b, t, w in zip(bounds, bounds[1:], thresholds, wide)]
        places = np.concatenate([index.reshape(-1) for index in own])
        self.sizes, self.thresholds = [w.numel() for w in wide], bounds[-1]
        self._places = torch.from_numpy(places).to(device)
        self.ends = torch.tensor([0, *accumulate(self.sizes)], device=device)
        side_by_side = bool((np.diff(places) >= 0).all())
        rows = np.searchsorted(places, np.arange(self.thresholds + 1)) if side_by_side else None
        self.rows = None if rows is None else torch.from_numpy(rows).to(device)

    @classmethod
    def of(cls, masks: Sequence[ThresholdMask], device: torch.device) -> Places:
        """Those of the same masks as before, or new ones."""
        kept = masks[0]._places
        if kept is None or kept.masks != masks or kept.device != device:
            masks[0]._places = kept = cls(masks, device)
        return kept

    def spread(self, thresholds: Tensor) -> Tensor:
        """The threshold of each weight; nothing is recorded."""
        return thresholds.index_select(0, self._places)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the weights of each threshold."""
        if self.rows is not None:
            return torch.segment_reduce(values, "sum", offsets=self.rows)
        return values.new_zeros(self.thresholds).index_add_(0, self._places, values)


def _shape(weight: Tensor, kind: ThresholdType, layout: Layout) -> list[int]:
    if kind == "layerwise":
        return []
    wide = spread(weight, layout)
    if kind == "weightwise" or wide.dim() < 2:
        return list(wide.shape)
    kept = {layout.outputs} if wide is weight else {0, 2}
    return [size if axis in kept else 1 for axis, size in enumerate(wide.shape)]


class _Terms(torch.autograd.Function):
    """(pull, push, T...) -> pull / 2 * sum T^2 + push * sum exp(-T), 0-d, over all T together: a term a layer would cost a step 5 %."""

    generate_vmap_rule = True

    @staticmethod
    def forward(pull: float, push: float, *thresholds: Tensor) -> Tensor:
        together = flat(thresholds)
        pushed = torch.exp(-together).sum() * push
        return pushed if not pull else pushed + together.square().sum() * (pull / 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pull, ctx.push = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        thresholds = ctx.saved_tensors
        together = flat(thresholds)
        by_all = torch.exp(-together) * (grad * -ctx.push)
        if ctx.pull:
            by_all = torch.addcmul(by_all, together, grad, value=ctx.pull)
        return None, None, *parts(by_all, thresholds)
