"""Who tells the masks what to do and when: the cubic schedule in training, hard masks in fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.config import Config, MagnitudePruning
from pquant_fx.graph.dialect import Mask, attribute_at, module_of
from pquant_fx.prune.magnitude import MagnitudeMask, cubic_sparsity, update_globally
from pquant_fx.train.events import Event, Listener, StageEnd, StageStart, StepEnd

__all__ = ["MagnitudeSchedule", "masks_of", "pruning_listeners", "sparsity"]

_LEAST_UPDATES = 10  # fewer jumps than this cost accuracy (Zhu & Gupta 2017 prune gradually)


def pruning_listeners(gm: GraphModule, config: Config) -> list[Listener]:
    """The listeners that the masks in `gm` need; none for a network without masks, or with masks of somebody else's."""
    settings = config.pruning_parameters
    magnitude = [(mask, path) for mask, path in masks_of(gm) if isinstance(mask, MagnitudeMask)]
    if not magnitude or not isinstance(settings, MagnitudePruning):
        return []
    return [MagnitudeSchedule(gm, magnitude, settings)]


@dataclass
class _Group:
    """Masks that share a budget, their final sparsity, and the one from which this training starts."""

    members: list[tuple[MagnitudeMask, str]]
    final: float
    initial: float = 0.0
    now: float | None = None


class MagnitudeSchedule:
    """Moves the sparsity of magnitude masks along the cubic schedule of Zhu & Gupta 2017 over the steps of the training stage.

    Masks change every `interval` steps, more often where that would be fewer than ten times, and for the last time where
    the schedule ends, at exactly the final sparsity. In fine-tuning they are fixed and masked weights are held at zero.
    A training that follows starts from the sparsity that is there, and leaves fixed masks as they are.
    """

    def __init__(self, gm: GraphModule, masks: Sequence[tuple[MagnitudeMask, str]], settings: MagnitudePruning) -> None:
        self._gm = gm
        self._masks = tuple(masks)
        self._settings = settings
        self._groups = _groups(masks, settings)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStart) and event.stage == "training":
            self._start()
        elif isinstance(event, StepEnd) and event.stage == "training":
            self._step(event.step, event.steps)
        elif isinstance(event, StageEnd) and event.stage == "training":
            for group in self._groups:
                self._set(group, group.final)
        elif isinstance(event, StageStart) and event.stage == "fine_tuning":
            for mask, _ in self._masks:
                mask.freeze()
            self._reapply()
        elif isinstance(event, StepEnd) and event.stage == "fine_tuning":
            self._reapply()

    def state_dict(self) -> dict[str, Any]:
        return {"groups": [[group.initial, group.now] for group in self._groups]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for group, (initial, now) in zip(self._groups, state["groups"]):
            group.initial, group.now = initial, now

    def _start(self) -> None:
        for group in self._groups:
            group.now = _share(self._gm, group.members)
            group.initial = min(max(self._settings.initial_sparsity, group.now), group.final)
            self._set(group, group.initial)

    def _step(self, step: int, steps: int) -> None:
        start, end = self._settings.start_fraction * steps, self._settings.end_fraction * steps
        first, last = math.ceil(start), math.ceil(end)
        interval = max(1, min(self._settings.interval, (last - first) // _LEAST_UPDATES))
        if not first <= step <= last or (step != last and (step - first) % interval):
            return
        for group in self._groups:
            self._set(group, cubic_sparsity(step, start, end, group.initial, group.final))

    def _set(self, group: _Group, level: float) -> None:
        if level == group.now:
            return
        group.now = level
        free = [(mask, _weight(self._gm, path)) for mask, path in group.members if not mask.is_frozen]
        update_globally(free, level)

    def _reapply(self) -> None:
        for mask, path in self._masks:
            mask.reapply_(_weight(self._gm, path))


def masks_of(gm: GraphModule) -> list[tuple[Mask, str]]:
    """Each mask with the path of the parameter that it acts on, once, in the order of the graph."""
    found: dict[int, tuple[Mask, str]] = {}
    for node in gm.graph.nodes:
        mask = module_of(gm, node)
        if isinstance(mask, Mask):
            found.setdefault(id(mask), (mask, str(node.all_input_nodes[0].target)))
    return list(found.values())


def sparsity(gm: GraphModule) -> float:
    """Fraction of all maskable weights that the masks remove; 0 when there is no mask."""
    return _share(gm, masks_of(gm))


def _groups(masks: Sequence[tuple[MagnitudeMask, str]], settings: MagnitudePruning) -> list[_Group]:
    """One group a mask, or one for all masks without a target of their own when the scope is global."""
    shared = [m for m in masks if m[0].target is None] if settings.scope == "global" else []
    alone = [m for m in masks if m not in shared]
    groups = [_Group([(mask, path)], settings.sparsity if mask.target is None else mask.target) for mask, path in alone]
    return groups + ([_Group(shared, settings.sparsity)] if shared else [])


def _share(gm: GraphModule, masks: Sequence[tuple[Mask, str]]) -> float:
    if not masks:
        return 0.0
    counts = torch.tensor([_weight(gm, path).numel() for _, path in masks], dtype=torch.float64)
    removed = torch.stack([mask.sparsity().double().cpu() for mask, _ in masks])
    return float((removed * counts).sum() / counts.sum())


def _weight(gm: GraphModule, path: str) -> Tensor:
    """The tensor of today: `.to()` and `load_state_dict(assign=True)` may have replaced yesterday's."""
    found = attribute_at(gm, path)
    assert isinstance(found, Tensor)
    return found
