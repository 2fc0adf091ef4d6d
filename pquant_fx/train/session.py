"""The own-loop door: two extra lines drive every schedule of the compression (see `session`)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pquant_fx.config import Config
from pquant_fx.errors import PQuantWarning, Problem, TrainingError
from pquant_fx.train.data import device_of
from pquant_fx.train.events import STAGES, EpochEnd, EpochStart, Event, Listener, StageEnd, StageStart, StepEnd
from pquant_fx.train.plan import Plan
from pquant_fx.train.pruning import pruning_listeners, sparsity

__all__ = ["Compiled", "Session", "compiled_model", "session"]


@runtime_checkable
class Compiled(Protocol):
    """What training needs of a compiled model."""

    @property
    def graph_module(self) -> GraphModule: ...

    @property
    def config(self) -> Config: ...


class Session:
    """Counts steps and epochs and tells the listeners. `plan` says how long each stage lasts; `epoch` counts finished epochs.

    Use it as a context manager; it owns neither the optimizer nor the loop. A step is an *optimizer* step, so that a loop
    that accumulates gradients calls `step` once per update.
    """

    def __init__(self, model: Compiled, plan: Plan, listeners: Sequence[Listener] | None = None) -> None:
        self.plan = plan
        self.epoch = 0
        self._gm = model.graph_module
        self._listeners = tuple(pruning_listeners(self._gm, model.config) if listeners is None else listeners)
        self._steps = 0  # in the running epoch
        self._begun = 0  # stages begun
        self._ended = 0  # stages ended
        self._started = time.perf_counter()
        self._closed = False

    def __enter__(self) -> Session:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        if kind is None and self.epoch < self.plan.epochs:
            what = f"the session was closed after {self.epoch} of {self.plan.epochs} epochs: the schedules did not reach their ends"
            warnings.warn(PQuantWarning(what), stacklevel=2)

    def loss(self) -> Tensor:
        """Extra loss of the compression methods, a 0-d tensor on the model's device; 0 when no method asks for one."""
        self._check_open("loss")
        return torch.zeros((), device=device_of(self._gm))

    def step(self) -> None:
        """Tell that the optimizer made a step. Raises TrainingError (PQ412) after the announced number of steps."""
        self._check_open("step")
        if self._steps == self.plan.steps_per_epoch:
            what = f"epoch {self.epoch + 1} already has its {self._steps} steps"
            remedy = "call epoch_end() after each epoch, and count optimizer steps, not batches, in steps_per_epoch"
            raise TrainingError(Problem("PQ412", what, remedy))
        if self._steps == 0:
            self._begin_epoch()
        self._steps += 1
        stage, epoch = self.plan.stage_at(self.epoch)
        done = epoch * self.plan.steps_per_epoch + self._steps
        self._tell(StepEnd(stage, self.plan.round_at(stage, epoch), done, self.plan.steps_of(stage)))

    def epoch_end(self, loss: float | None = None, metrics: dict[str, float] | None = None) -> dict[str, float]:
        """Tell that an epoch is over; returns what is worth logging: `sparsity` (fraction of weights removed) and `metrics`."""
        row = self.finish_epoch(loss, metrics)
        return {**row.metrics, "sparsity": row.sparsity}

    def finish_epoch(self, loss: float | None = None, metrics: dict[str, float] | None = None) -> EpochEnd:
        """`epoch_end` with the whole row as its result."""
        self._check_open("epoch_end")
        if self._steps == 0:
            raise TrainingError(Problem("PQ412", f"epoch {self.epoch + 1} ended without a step", "call step() after each optimizer step"))
        stage, epoch = self.plan.stage_at(self.epoch)
        self.epoch, self._steps = self.epoch + 1, 0
        if epoch + 1 == self.plan.epochs_of(stage):
            self._end_stages(STAGES.index(stage) + 1)
        if self.epoch == self.plan.epochs:
            self._end_stages(len(STAGES))
        now = time.perf_counter()
        row = EpochEnd(
            self.epoch,
            stage,
            self.plan.round_at(stage, epoch),
            loss,
            dict(metrics or {}),
            sparsity(self._gm),
            now - self._started,
        )
        self._started = now
        self._tell(row)
        return row

    # ---- the order of events
    def _open(self) -> None:
        if self._begun == 0:
            self._begin_stages(STAGES.index(self.plan.stage_at(0)[0]) + 1)

    def _begin_epoch(self) -> None:
        stage, epoch = self.plan.stage_at(self.epoch)
        self._begin_stages(STAGES.index(stage) + 1)
        self._tell(EpochStart(stage, self.plan.round_at(stage, epoch), epoch))

    def _begin_stages(self, count: int) -> None:
        """Begin the first `count` stages, ending those before them, also stages of 0 epochs."""
        for stage in STAGES[self._begun : count]:
            self._end_stages(STAGES.index(stage))
            self._begun += 1
            self._tell(StageStart(stage, self.plan.epochs_of(stage), self.plan.steps_of(stage)))

    def _end_stages(self, count: int) -> None:
        while self._ended < count:
            if self._begun == self._ended:
                self._begin_stages(self._ended + 1)
            self._ended += 1
            self._tell(StageEnd(STAGES[self._ended - 1]))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _check_open(self, call: str) -> None:
        if self._closed:
            raise TrainingError(Problem("PQ412", f"{call}() was called on a closed session", "keep the loop inside the `with` block"))
        if self.epoch == self.plan.epochs:
            what = f"{call}() was called after the last of {self.plan.epochs} epochs"
            raise TrainingError(Problem("PQ412", what, "announce more epochs when the session is made"))
        self._open()


def session(model: nn.Module, epochs: int, steps_per_epoch: int) -> Session:
    """A session for a training loop of one's own, which gets two extra lines.

        with pq.session(model, epochs=20, steps_per_epoch=len(loader)) as s:
            for epoch in range(20):
                for x, y in loader:
                    loss = criterion(model(x), y) + s.loss()  # what the compression adds
                    optimizer.zero_grad(); loss.backward(); optimizer.step()
                    s.step()  # schedules move on
                print(s.epoch_end())

    model: a compiled model, also inside DistributedDataParallel or torch.compile. epochs: of the whole training, of which
    `pretraining_epochs` and `fine_tuning_epochs` come from the model's configuration. steps_per_epoch: optimizer steps.
    Raises TrainingError (PQ412) when the model is not a compiled one or the numbers leave no training.
    """
    compiled = compiled_model(model)
    settings = compiled.config.training_parameters
    return Session(
        compiled,
        Plan.of_length(
            epochs,
            steps_per_epoch,
            pretraining=settings.pretraining_epochs,
            fine_tuning=settings.fine_tuning_epochs,
            rounds=settings.rounds,
        ),
    )


def compiled_model(model: Any) -> Compiled:
    """The compiled model behind the wrappers of DistributedDataParallel and torch.compile. Raises TrainingError (PQ412)."""
    found = model
    while not isinstance(found, Compiled):
        inner = getattr(found, "module", None) or getattr(found, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            what = f"a {type(model).__name__} is no compiled model"
            raise TrainingError(Problem("PQ412", what, "pass what pq.compile(...) returned"))
        found = inner
    return found
