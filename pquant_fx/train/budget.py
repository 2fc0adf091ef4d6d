"""A budget of effective bit operations as a hard constraint: a multiplier takes the place of beta."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pquant_fx.config import Budget
from pquant_fx.errors import PQuantWarning, Problem, TrainingError
from pquant_fx.estimate import Ebops
from pquant_fx.quantize import HGQData, HGQQuantizer
from pquant_fx.train.events import EpochStart, Event, StepEnd
from pquant_fx.train.learned import LearnedFormats
from pquant_fx.train.loop import Loop
from pquant_fx.train.plan import Plan
from pquant_fx.train.resources import ResourceTerms
from pquant_fx.train.trim import shift_into

__all__ = ["BudgetControl"]

_FIRST = 0.1  # beta * EBOPs at the start, where the user gives no beta
_BOUNDS = (1e-4, 1e2)  # of beta * N: the multiplier need not come back from farther away
_COUNTS = (20, 100)  # exact counts while the limit comes down, at least and at most
_TRACED = (5, 25)  # the same where ranges are tracked, because each of them reads all training data
_STEEP = 4  # log(limit) comes down as (1 - t)^4: fast while the learning rate is large, slowly where weights have to follow
_HOLD = 0.15  # share of the training at whose end the limit is held by moving bits, when gradients have become small
_TRIES = 3
_MOST_SHIFT = 1.0  # bits: a larger one is no trimming but another network


class BudgetControl:
    """min loss s.t. EBOPs <= N, as a Lagrangian whose multiplier is beta (Platt & Barr 1988), steered in the log domain.

    The limit comes down from what the network costs to just under N, so that weights can follow. After every step

        e = log(EBOPs / limit);   I <- I + rate e;   beta = exp(I + damping e)

    with EBOPs as the surrogate times the measured ratio exact / surrogate; nothing of it waits for the device. I falls faster
    than it rises, because under the limit nothing has to be pressed. It stands still at the end, where the learning rate is too
    small to follow it: there the exact count is held once an epoch by moving the bits that matter least (`shift_into`), and
    for the last time after the last step, under N for certain.
    A budget that can not be met warns (PQuantWarning) and names the layer with most of what is left.
    """

    def __init__(
        self,
        terms: ResourceTerms,
        learned: Sequence[HGQQuantizer],
        formats: LearnedFormats,
        budget: Budget,
        plan: Plan,
        loop: Loop,
        beta: float = 0.0,
    ) -> None:
        assert budget.ebops is not None
        self._terms, self._learned, self._formats, self._plan, self._retrace = terms, tuple(learned), formats, plan, loop.retrace
        self._tracked = [q for q in learned if isinstance(q, HGQData) and q.tracked]
        self._budget, self._limit, self._aim = budget, budget.ebops, budget.ebops * (1 - budget.tolerance / 2)
        steps = plan.steps_of("training")
        self._rate = budget.rate * min(0.03, 130 / max(steps, 1))
        self._damping = 2.0 * budget.damping
        least, most = _COUNTS if not self._tracked else _TRACED
        self._every = max(1, min(plan.steps_per_epoch, steps // least), steps // most)
        self._start: float | None = None
        self._ratio = 1.0
        self._beta = beta
        self._integral = torch.zeros(())

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochStart) and event.stage == "training" and self._start is None:
            self._begin()
        if not isinstance(event, StepEnd) or event.stage == "pretraining":
            return
        if event.stage == "training" and not self._formats.still:
            self._steer(event.step, event.steps)
        if self._plan.is_last(event):
            self._finish()
        elif event.stage == "training" and event.last and self._is_late(event):
            self._hold(0.75, 0.25)

    # ---- while training
    def _begin(self) -> None:
        self._start = max(self._terms.count(), self._aim)
        estimate = self._terms.estimate()
        self._integral = torch.full_like(estimate, math.log(self._beta or _FIRST / self._start))
        self._terms.beta = self._integral.exp()
        self._measure(estimate)

    def _measure(self, estimate: Tensor) -> None:
        self._ratio = max(self._terms.count() * self._inflation(), 1.0) / max(float(estimate), 1.0)

    def _inflation(self) -> float:
        """What a trace of the tracked ranges will do to the exact count: batches ask for fewer integer bits than the whole data."""
        if self._retrace is None or not self._tracked:
            return 1.0
        undo = [q.snapshot() for q in self._tracked]
        before = self._terms.count()
        self._trace()
        after = self._terms.count()
        for restore in undo:
            restore()
        self._terms.changed()
        return after / max(before, 1.0)

    def _steer(self, step: int, steps: int) -> None:
        if self._terms.surrogate is None:
            remedy = "add what the session asks for: loss = criterion(model(x), y) + s.loss()"
            raise TrainingError(Problem("PQ412", "a budget needs the loss of the session, which was never asked for", remedy))
        if step % self._every == 0:
            self._measure(self._terms.estimate())
        error = self._terms.surrogate.clamp(min=1.0).log() + math.log(self._ratio / self._goal(step / steps))
        if step <= (1 - _HOLD) * steps:
            low, high = (math.log(bound / self._limit) for bound in _BOUNDS)
            self._integral = (self._integral + self._rate * error.clamp(-0.5, 0.5)).clamp(low, high)
        self._terms.beta = (self._integral + self._damping * error.clamp(-1.0, 1.0)).exp()

    def _goal(self, done: float) -> float:
        """The limit at a share of the training."""
        assert self._start is not None
        start, end = self._budget.start_fraction, self._budget.end_fraction
        t = min(max((done - start) / (end - start), 0.0), 1.0)
        left = (1 - t) ** _STEEP
        return self._start**left * self._aim ** (1 - left)

    def _is_late(self, done: StepEnd) -> bool:
        return self._formats.still or done.step > (1 - _HOLD) * done.steps

    # ---- exactly
    def _hold(self, low: float, high: float, final: bool = False) -> None:
        """Move bits until the count of the traced network lies between these shares of the tolerance under the budget."""
        unit = 1.0 / (1.0 if final else self._inflation())
        least, most = (unit * (self._limit - share * self._budget.tolerance * self._limit) for share in (low, high))
        shift_into(self._learned, self._count, least, most, _MOST_SHIFT)
        if self._formats.still:
            self._formats.keep()

    def _count(self) -> float:
        self._terms.changed()
        return self._terms.count()

    def _finish(self) -> None:
        for attempt in range(_TRIES):
            self._trace()
            if self._count() <= self._limit and attempt > 0:
                break
            self._hold(1.0, attempt / _TRIES, final=True)  # ranges are traced anew after bits moved, and may ask for more
        self._trace()
        if self._terms.count() > self._limit:
            warnings.warn(PQuantWarning(_unmet(self._terms.report(), self._limit)), stacklevel=2)

    def _trace(self) -> None:
        if self._retrace is not None:
            self._retrace()
            self._terms.changed()

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "ratio": self._ratio, "integral": self._integral, "beta": self._terms.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._ratio = state["start"], state["ratio"]
        self._integral, self._terms.beta = state["integral"], state["beta"]


def _unmet(left: Ebops, limit: float) -> str:
    layer, cost = max(left.layers.items(), key=lambda item: item[1])
    what = f"the budget of {limit:g} EBOPs was not met: {left.total:g} are left, {cost:g} of them in '{layer}'"
    return f"{what}; train longer, raise the budget, or let that layer learn fewer bits"
