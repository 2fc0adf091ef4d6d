"""Quantizers that learn: when they start, their bounds after every step, and when they stand still."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.quantize import LearnedQuantizer, TrackedQuantizer
from pquant_fx.train.events import EpochStart, Event, Stage, StageEnd, StageStart, StepEnd
from pquant_fx.train.plan import Plan

__all__ = ["LearnedFormats", "RangeTrace"]


class LearnedFormats:
    """Tells learned quantizers that training begins, and keeps bit-widths within their bounds after each optimizer step.

    What they learned stands still for the last `share` of the training stage, so that weights settle on one grid, and in
    fine-tuning unless `learn_on`; formats that follow their data stop before fine-tuning. Values are put back after each step
    rather than cut off from their gradients, because DistributedDataParallel waits for the gradient of every parameter.
    """

    def __init__(self, gm: GraphModule, share: float = 0.0, learn_on: bool = False) -> None:
        self._learned = [m for m in gm.modules() if isinstance(m, LearnedQuantizer)]
        self._tracked = [m for m in gm.modules() if isinstance(m, TrackedQuantizer)]
        self._share, self._learn_on = share, learn_on
        self._kept: list[Tensor] = []

    @property
    def still(self) -> bool:
        """Whether nothing is learned now."""
        return bool(self._kept)

    def keep(self) -> None:
        """Hold the formats of now."""
        self._kept = [p.detach().clone() for p in self._parameters()]

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochStart):
            for module in self._learned:
                module.begin_learning()
        elif isinstance(event, StageStart):
            self._begin(event.stage)
        elif isinstance(event, StepEnd):
            self._after(event)
        elif isinstance(event, StageEnd) and event.stage == "fine_tuning":
            self._kept = []

    def loss(self) -> Tensor | None:
        """What learned ranges add to the loss by themselves (PACT decays its clipping bound); None while they stand still."""
        terms = [] if self.still else [term for m in self._learned if (term := m.penalty()) is not None]
        return torch.stack(terms).sum() if terms else None

    def _begin(self, stage: Stage) -> None:
        for tracked in self._tracked:
            tracked.freeze_range(stage == "fine_tuning")
        self._kept = []
        if stage == "fine_tuning" and not self._learn_on:
            self.keep()

    def _after(self, event: StepEnd) -> None:
        if self.still:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters(), self._kept)
            return
        for module in self._learned:
            module.clamp_()
        if event.stage == "training" and event.step == math.ceil((1 - self._share) * event.steps):
            self.keep()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept = [kept.to(p) for kept, p in zip(state["kept"], self._parameters())]

    def _parameters(self) -> list[Tensor]:
        return [p for module in self._learned for p in module.parameters()]


class RangeTrace:
    """Traces ranges that wrap over the training data once the last step is made: a circuit has no range that follows its data."""

    def __init__(self, plan: Plan, retrace: Callable[[], None]) -> None:
        self._plan, self._retrace = plan, retrace

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepEnd) and self._plan.is_last(event):
            self._retrace()
