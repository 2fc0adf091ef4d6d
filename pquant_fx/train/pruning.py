"""Who tells the masks what to do and when: each method's schedule in training, hard masks in fine-tuning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.errors import PQuantWarning
from pquant_fx.graph.dialect import Mask, attribute_at, module_of, owner_of
from pquant_fx.graph.fusion import statistics_of
from pquant_fx.prune import Member, Members, Pruner
from pquant_fx.train.events import EpochEnd, EpochStart, Event, Listener, RoundEnd, StageEnd, StageStart, StepEnd
from pquant_fx.train.loop import Loop
from pquant_fx.train.quantized_weights import show_quantized

__all__ = ["PruningStages", "masks_of", "pruning_listeners", "sparsity"]

Group = tuple[type[Pruner], Sequence[tuple[Pruner, str]]]


def pruning_listeners(gm: GraphModule, loop: Loop) -> list[Listener]:
    """The listeners that the masks in `gm` need; none for a network without masks, or with masks of somebody else's."""
    pruners = [(mask, path) for mask, path in masks_of(gm) if isinstance(mask, Pruner)]
    return [PruningStages(gm, pruners, loop)] if pruners else []


class PruningStages:
    """Leads every pruning method through the stages: idle, training, fixed.

    Masks with the same method and the same settings are told together. When fine-tuning begins, also one of 0 epochs, masks
    are fixed and factors and shrinkage become part of the weights; from then on masked weights are held at zero, in the
    optimizer's state too. A training that follows leaves fixed masks as they are.
    """

    def __init__(self, gm: GraphModule, pruners: Sequence[tuple[Pruner, str]], loop: Loop) -> None:
        self._gm, self._pruners, self._loop = gm, tuple(pruners), loop
        found: dict[tuple[type[Pruner], object], list[tuple[Pruner, str]]] = {}
        for mask, path in pruners:
            found.setdefault((type(mask), mask.settings), []).append((mask, path))
        self._owners = {path: owner_of(gm, path) for _, path in pruners}
        self._groups: list[Group] = [(method, members) for (method, _), members in found.items()]
        self._statistics = list(dict.fromkeys(statistics_of(gm)))
        self._adds_loss = any(_adds(type(mask)) for mask, _ in pruners)
        self._records: list[Any] = [record for mask, _ in pruners if (record := getattr(mask, "record", None)) is not None]
        self._quantized = any(mask.seen is not None for mask, _ in pruners)
        self._measures = any(type(mask).measured.__func__ is not Pruner.measured.__func__ for mask, _ in pruners)  # type: ignore[attr-defined]

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnd):
            if event.loss is not None and event.stage != "fine_tuning" and self._measures:
                self._tell(replace(event, loss=self._loop.agree(event.loss)))
        elif isinstance(event, RoundEnd) or event.stage == "training":
            self._tell(event)
        elif event.stage == "fine_tuning" and isinstance(event, StageStart | StepEnd):
            if isinstance(event, StageStart):
                self._fix()
            self._reapply()

    def loss(self) -> Tensor | None:
        """What the methods add to the loss, in training only."""
        if not self._adds_loss:
            return None
        found = []
        for method, masks in self._groups:
            members = [Member(mask, self._weight(path)) for mask, path in masks if mask.is_training]
            if members and (term := method.loss(members)) is not None:
                found.append(term)
        return found[0] if len(found) == 1 else torch.stack(found).sum() if found else None

    def _weight(self, path: str) -> Tensor:
        """The tensor of today: `.to()` and `load_state_dict(assign=True)` may have replaced yesterday's."""
        owner, name = self._owners[path]
        found: Tensor = getattr(owner, name)
        return found

    def _tell(self, event: Event) -> None:
        if isinstance(event, StepEnd):
            for statistics in self._statistics:
                if statistics.is_collecting:
                    statistics.gather(self._loop.add_ranks)
            for record in self._records:
                record.gather(self._loop.add_ranks)
        if self._quantized:
            show_quantized(self._gm)
        for method, masks in self._groups:
            members = [Member(mask, self._weight(path)) for mask, path in masks if not mask.is_fixed]
            if members:
                _hook(method, members, event)

    def _fix(self) -> None:
        if self._quantized:
            show_quantized(self._gm)
        for mask, path in self._pruners:
            mask.fix_(self._weight(path))
            if mask.mask.numel() and not mask.mask.any():
                warnings.warn(PQuantWarning(_dead(mask, path)), stacklevel=2)

    def _reapply(self) -> None:
        for mask, path in self._pruners:
            mask.reapply_(self._weight(path), self._loop.optimizer)


def _hook(method: type[Pruner], members: Members, event: Event) -> None:
    if isinstance(event, StageStart):
        method.begin(members, event.steps)
    elif isinstance(event, EpochStart):
        method.begin_epoch(members, event.epoch, event.epochs)
    elif isinstance(event, StepEnd):
        method.step(members, event.step, event.steps)
        if event.last:
            method.end_epoch(members, event.epoch, event.epochs)
    elif isinstance(event, RoundEnd):
        method.end_round(members, event.last)
    elif isinstance(event, StageEnd):
        method.end(members)
    elif isinstance(event, EpochEnd) and event.loss is not None:
        method.measured(members, event.loss)


def _dead(mask: Pruner, path: str) -> str:
    layer, method, count = path.rpartition(".")[0] or path, mask.settings.pruning_method, mask.mask.numel()
    what = f"layer '{layer}' is dead: '{method}' removed all {count} weights of '{path}' (sparsity 1), so that it gives a constant"
    return f"{what}; prune it less by {mask.settings.gentler}, in a rule of its own under `layers`, or spare it with `prune: false`"


def _adds(method: type[Pruner]) -> bool:
    """Whether the method has anything to say about the loss."""
    return method.penalty is not Pruner.penalty or method.loss.__func__ is not Pruner.loss.__func__  # type: ignore[attr-defined]


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
    masks = [(mask, attribute_at(gm, path).detach()) for mask, path in masks_of(gm)]
    if not masks:
        return 0.0
    counts = torch.tensor([weight.numel() for _, weight in masks], dtype=torch.float64)
    with torch.no_grad():
        removed = torch.stack([mask.sparsity(weight).double().cpu() for mask, weight in masks])
    return float((removed * counts).sum() / counts.sum())
