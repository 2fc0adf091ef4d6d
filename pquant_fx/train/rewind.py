"""Back to earlier weights between rounds: what was learned is which weights stay, not their values (Frankle & Carbin 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.config import TrainingParameters
from pquant_fx.errors import Problem, TrainingError
from pquant_fx.graph.rewriter import OWN
from pquant_fx.train.events import EpochStart, Event, RoundEnd
from pquant_fx.train.loop import Loop
from pquant_fx.train.plan import Plan

__all__ = ["Rewind"]


class Rewind:
    """Keeps the user's parameters and buffers as they are when epoch `save_weights_epoch` of the first round begins, and puts them back

    every-round            after each round
    post-training-stage    after the last one

    with the optimizer's state cleared. What masks and quantizers hold stays as it was learned. It is told after the masks.
    Raises TrainingError (PQ412) where the first round of `plan` does not reach that epoch: an own loop says itself how long it is.
    """

    def __init__(self, gm: GraphModule, training: TrainingParameters, plan: Plan, loop: Loop) -> None:
        _check_kept(training, plan)
        self._gm, self._when, self._epoch, self._loop = gm, training.rewind, training.save_weights_epoch, loop
        self._kept: dict[str, Tensor] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochStart) and event.stage == "training" and (event.round, event.epoch) == (0, self._epoch):
            self._kept = {name: value.detach().clone() for name, value in self._values().items()}
        elif isinstance(event, RoundEnd) and (self._when == "every-round" or event.last):
            self._go_back()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept = {name: value.clone() for name, value in state["kept"].items()}

    def _values(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._gm.state_dict(keep_vars=True).items() if not name.startswith(f"{OWN}.")}

    def _go_back(self) -> None:
        with torch.no_grad():
            for name, value in self._values().items():
                value.copy_(self._kept[name])
        if self._loop.optimizer is not None:
            self._loop.optimizer.state.clear()


def _check_kept(training: TrainingParameters, plan: Plan) -> None:
    epochs = plan.in_round("training", 0)[1] if plan.training else 0
    if 0 <= training.save_weights_epoch < epochs:
        return
    what = f"rewind: {training.rewind} goes back to epoch save_weights_epoch: {training.save_weights_epoch} of the first round,"
    if epochs:
        what = f"{what} which has {epochs} of the {plan.training} epochs of training"
        remedy = f"announce more epochs to the session, give save_weights_epoch 0 to {epochs - 1}, or set rewind: never"
    else:
        what = f"{what} but the training stage has 0 epochs"
        remedy = "announce more epochs than pretraining_epochs and fine_tuning_epochs take, or set rewind: never"
    raise TrainingError(Problem("PQ412", what, remedy))
