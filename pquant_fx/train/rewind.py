"""Back to earlier weights between rounds: what was learned is which weights stay, not their values (Frankle & Carbin 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.config import TrainingParameters
from pquant_fx.graph.rewriter import OWN
from pquant_fx.train.events import EpochStart, Event, RoundEnd
from pquant_fx.train.loop import Loop

__all__ = ["Rewind"]


class Rewind:
    """Keeps the user's parameters and buffers as they are when epoch `save_weights_epoch` of the first round begins, and puts them back

    every-round            after each round
    post-training-stage    after the last one

    with the optimizer's state cleared. What masks and quantizers hold stays as it was learned. It is told after the masks.
    """

    def __init__(self, gm: GraphModule, training: TrainingParameters, loop: Loop) -> None:
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
