"""What learned bits add to the loss: beta * EBOPs + gamma * sum of bits, and the exact count behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pquant_fx.errors import LoweringError
from pquant_fx.estimate import Ebops
from pquant_fx.quantize import HGQQuantizer
from pquant_fx.train.compiled import Compiled
from pquant_fx.train.events import EpochEnd, EpochStart, Event, StageStart, StepEnd
from pquant_fx.train.learned import LearnedFormats
from pquant_fx.train.loop import Loop

__all__ = ["ResourceTerms"]


class ResourceTerms:
    """The terms beside the task's loss in HGQ (Sun et al. 2024, arXiv 2405.00645): beta * EBOPs + gamma * sum of i + f (or b) of `learned`.

    Off in pre-training, and while `formats` stand still. Somebody else sets `beta`, a number or a 0-d tensor; the loss uses the
    differentiable `surrogate` of the count, `count` is exact. Rows of the history get it every `every` epochs and at the end
    of a stage, because the exact count of a small network takes as long as several steps.
    """

    def __init__(
        self, model: Compiled, learned: Sequence[HGQQuantizer], formats: LearnedFormats, loop: Loop, gamma: float, every: int = 1
    ) -> None:
        self.beta: float | Tensor = 0.0
        self.surrogate: Tensor | None = None
        self._model, self._agree = model, loop.agree
        self._plan = model.ebops_plan()
        self._learned, self._formats, self._gamma = tuple(learned), formats, gamma
        self._on = False
        self._every, self._epochs, self._due = every, 0, True
        self._counted: Ebops | None = None
        self._total: float | None = None  # None: to be counted again
        self._measured: dict[str, Tensor] | None = None  # the network as `refresh` saw it, while that can not be seen again

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStart):
            self._on, self._epochs = event.stage != "pretraining", event.epochs
        elif isinstance(event, EpochStart):
            if self._due:  # what has no gradient, in the surrogate, as often as the exact count
                self._plan.refresh()
                self._measured = {name: value.clone() for name, value in self._model.graph_module.state_dict().items()}
            self._due = (event.epoch + 1) % self._every == 0 or event.epoch + 1 == self._epochs
        elif isinstance(event, StepEnd):
            self.changed()
        elif isinstance(event, EpochEnd) and self._due:
            self._measured = None  # the next epoch begins with another measurement

    def loss(self) -> Tensor | None:
        """beta * EBOPs + gamma * sum of bits, a 0-d tensor; None while the terms are off."""
        if not self._on or self._formats.still:
            return None
        terms = []
        if not _is_zero(self.beta):
            surrogate = self._plan()
            self.surrogate = surrogate.detach()
            terms.append(self.beta * surrogate)
        if self._gamma:
            terms.append(self._gamma * torch.stack([m.regularization() for m in self._learned]).sum())
        return sum(terms[1:], terms[0]) if terms else None

    def estimate(self) -> Tensor:
        """The surrogate of the network as it is now, a 0-d tensor without gradient."""
        with torch.no_grad():
            return self._plan().detach()

    def state_dict(self) -> dict[str, Any]:
        return {"on": self._on, "epochs": self._epochs, "due": self._due, "total": self._total, "measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._on, self._epochs, self._due = state["on"], state["epochs"], state["due"]
        self._counted, self._total, self._measured = None, state["total"], state["measured"]
        if self._measured is not None:
            gm = self._model.graph_module
            now = {name: value.clone() for name, value in gm.state_dict().items()}
            gm.load_state_dict(self._measured)
            self._plan.refresh()
            gm.load_state_dict(now)

    def count(self) -> float:
        """Exact EBOPs of one sample, the same on all ranks, counted at most once between two steps."""
        if self._total is None:
            self._counted = self._model.ebops()
            self._total = self._agree(self._counted.total)
        return self._total

    def report(self) -> Ebops:
        """The count node by node, as this rank sees it."""
        return self._model.ebops() if self._counted is None else self._counted

    def changed(self) -> None:
        """Bits were changed beside the optimizer: count again."""
        self._counted = self._total = None

    def measure(self) -> Mapping[str, float]:
        found = {"beta": float(self.beta)}
        if self._due:
            with suppress(LoweringError):  # operators that have no exact meaning train all the same: it is freeze that refuses them
                found["ebops"] = self.count()
        return found


def _is_zero(beta: float | Tensor) -> bool:
    return isinstance(beta, float | int) and beta == 0
