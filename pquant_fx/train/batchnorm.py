"""Batch statistics stop before a training does, so that its end sees the network that the circuit will be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.train.events import STAGES, Event, StageEnd, StageStart, StepEnd
from pquant_fx.train.plan import Plan

__all__ = ["StatisticsFreeze"]


class StatisticsFreeze:
    """Fixes the statistics of every folded BatchNorm for the last `share` of the steps of the last stage (Krishnamoorthi 2018).

    They are free again once the training is over. Under torch.compile the switch costs one recompilation.
    """

    def __init__(self, gm: GraphModule, share: float, plan: Plan) -> None:
        self._modules = [m for m in gm.modules() if isinstance(m, BatchCorrection)]
        self._stage = next((stage for stage in reversed(STAGES) if plan.epochs_of(stage)), STAGES[-1])
        self._from = math.ceil((1 - share) * plan.steps_of(self._stage))

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStart | StepEnd) and event.stage == self._stage:
            done = event.step if isinstance(event, StepEnd) else 0
            if done == self._from:
                self._fix(done < event.steps)
        elif isinstance(event, StageEnd) and event.stage == self._stage:
            self._fix(False)

    def state_dict(self) -> dict[str, Any]:
        return {"fixed": any(module.fixed for module in self._modules)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._fix(bool(state["fixed"]))

    def _fix(self, on: bool) -> None:
        for module in self._modules:
            module.fix(on)
