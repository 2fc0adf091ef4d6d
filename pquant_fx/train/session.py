"""The own-loop door: two extra lines drive every schedule of the compression (see `session`)."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pquant_fx.errors import PQuantWarning, Problem, TrainingError
from pquant_fx.graph.synchronisation import follow_synchronised
from pquant_fx.train.compiled import Compiled, compiled_model
from pquant_fx.train.data import device_of
from pquant_fx.train.events import (
    STAGES,
    AddsLoss,
    EpochEnd,
    EpochStart,
    Event,
    Listener,
    Measures,
    RoundEnd,
    StageEnd,
    StageStart,
    Stateful,
    StepEnd,
)
from pquant_fx.train.listeners import listeners_of
from pquant_fx.train.loop import Loop, loop_around
from pquant_fx.train.plan import Plan
from pquant_fx.train.pruning import sparsity

__all__ = ["Session", "session"]


class Session:
    """Counts steps and epochs and tells the listeners. `plan` says how long each stage lasts; `epoch` counts finished epochs.

    Use it as a context manager; it owns neither the optimizer nor the loop. A step is an *optimizer* step, so that a loop
    that accumulates gradients calls `step` once per update. `loop`: what the loop can do for the methods.
    """

    def __init__(
        self,
        model: Compiled,
        plan: Plan,
        listeners: Sequence[Listener] | None = None,
        loop: Loop | None = None,
    ) -> None:
        self.plan = plan
        self.epoch = 0
        self._gm = model.graph_module
        self._listeners = tuple(listeners_of(model, plan, loop or Loop()) if listeners is None else listeners)
        follow_synchronised(self._gm)
        told: tuple[object, ...] = self._listeners
        self._adding = [x for x in told if isinstance(x, AddsLoss)]
        self._measuring = [x for x in told if isinstance(x, Measures)]
        self._stateful = _named([x for x in told if isinstance(x, Stateful)])
        self._steps = 0  # in the running epoch
        self._in_epoch = False
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

    @property
    def steps(self) -> int:
        """Optimizer steps made in the running epoch."""
        return self._steps

    def loss(self) -> Tensor:
        """Extra loss of the compression methods, a 0-d tensor on the model's device; 0 when no method asks for one."""
        extra = self.extra_loss()
        return torch.zeros((), device=device_of(self._gm)) if extra is None else extra

    def extra_loss(self) -> Tensor | None:
        """`loss`, or None when no method asks for one."""
        self._check_open("loss")
        self._begin_epoch()
        terms = [term for listener in self._adding if (term := listener.loss()) is not None]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0] if terms else None

    def step(self) -> None:
        """Tell that the optimizer made a step. Raises TrainingError (PQ412) after the announced number of steps."""
        self._check_open("step")
        if self._steps == self.plan.steps_per_epoch:
            what = f"epoch {self.epoch + 1} already has its {self._steps} steps"
            remedy = "call epoch_end() after each epoch, and count optimizer steps, not batches, in steps_per_epoch"
            raise TrainingError(Problem("PQ412", what, remedy))
        self._begin_epoch()
        self._steps += 1
        stage, epoch = self.plan.stage_at(self.epoch)
        done = epoch * self.plan.steps_per_epoch + self._steps
        last = self._steps == self.plan.steps_per_epoch
        this, inside = self.plan.round_at(stage, epoch), self.plan.in_round(stage, epoch)
        self._tell(StepEnd(stage, this, done, self.plan.steps_of(stage), last, *inside))

    def epoch_end(self, loss: float | None = None, metrics: dict[str, float] | None = None) -> dict[str, float]:
        """Tell that an epoch is over; returns what is worth logging: `metrics`, `sparsity` (fraction of weights removed), and where
        bits are learned `ebops` (exact, of one sample) and `beta`.
        """
        row = self.finish_epoch(loss, metrics)
        learned = {name: value for name, value in (("ebops", row.ebops), ("beta", row.beta)) if value is not None}
        return {**row.metrics, "sparsity": row.sparsity, **learned}

    def finish_epoch(self, loss: float | None = None, metrics: dict[str, float] | None = None) -> EpochEnd:
        """`epoch_end` with the whole row as its result."""
        self._check_open("epoch_end")
        if self._steps == 0:
            raise TrainingError(Problem("PQ412", f"epoch {self.epoch + 1} ended without a step", "call step() after each optimizer step"))
        stage, epoch = self.plan.stage_at(self.epoch)
        self.epoch, self._steps, self._in_epoch = self.epoch + 1, 0, False
        this, (inside, epochs) = self.plan.round_at(stage, epoch), self.plan.in_round(stage, epoch)
        if stage == "training" and inside + 1 == epochs:
            self._tell(RoundEnd(this, this + 1 == self.plan.rounds))
        if epoch + 1 == self.plan.epochs_of(stage):
            self._end_stages(STAGES.index(stage) + 1)
        if self.epoch == self.plan.epochs:
            self._end_stages(len(STAGES))
        measured: dict[str, float] = {}
        for listener in self._measuring:
            measured |= listener.measure()
        now = time.perf_counter()
        row = EpochEnd(
            self.epoch,
            stage,
            this,
            loss,
            dict(metrics or {}),
            sparsity(self._gm),
            now - self._started,
            **measured,
        )
        self._started = now
        self._tell(row)
        if self.epoch < self.plan.epochs:  # before the first forward of the next epoch, which may use what changes
            self._begin_epoch()
        return row

    # ---- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Where the training stands, for a checkpoint beside those of the model and the optimizer: numbers, tensors and dicts."""
        listeners = {name: listener.state_dict() for name, listener in self._stateful.items()}
        position = {"epoch": self.epoch, "steps": self._steps, "begun": self._begun, "ended": self._ended, "in_epoch": self._in_epoch}
        return {"plan": asdict(self.plan), "position": position, "listeners": listeners}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another session of the same length and configuration was; load the model and the optimizer too.

        Raises TrainingError (PQ412) for the state of another plan or of other methods.
        """
        if state["plan"] != asdict(self.plan) or state["listeners"].keys() != self._stateful.keys():
            what = "this state belongs to a session of another length, or of a model with another configuration"
            raise TrainingError(Problem("PQ412", what, "announce the same epochs and steps, and compile with the same configuration"))
        at = state["position"]
        self.epoch, self._steps, self._begun, self._ended = (int(at[key]) for key in ("epoch", "steps", "begun", "ended"))
        self._in_epoch = bool(at["in_epoch"])
        for name, listener in self._stateful.items():
            listener.load_state_dict(state["listeners"][name])

    # ---- the order of events
    def _open(self) -> None:
        if self._begun == 0:
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        if self._in_epoch:
            return
        self._in_epoch = True
        stage, epoch = self.plan.stage_at(self.epoch)
        self._begin_stages(STAGES.index(stage) + 1)
        self._tell(EpochStart(stage, self.plan.round_at(stage, epoch), *self.plan.in_round(stage, epoch)))

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


def _named(listeners: Sequence[Stateful]) -> dict[str, Stateful]:
    """Each listener by its class; of several of one class the second is `Name 2`, in the order in which they are told."""
    found: dict[str, Stateful] = {}
    seen: Counter[str] = Counter()
    for listener in listeners:
        name = type(listener).__name__
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name} {seen[name]}"] = listener
    return found


def session(model: nn.Module, epochs: int, steps_per_epoch: int, optimizer: Optimizer | None = None) -> Session:
    """A session for a training loop of one's own, which gets two extra lines.

        with pq.session(model, epochs=20, steps_per_epoch=len(loader)) as s:
            for epoch in range(20):
                for x, y in loader:
                    loss = criterion(model(x), y) + s.loss()  # what the compression adds
                    optimizer.zero_grad(); loss.backward(); optimizer.step()
                    s.step()  # schedules move on
                print(s.epoch_end())

    model: a compiled model, also inside DistributedDataParallel or torch.compile. epochs: of the whole training, of which
    `pretraining_epochs` and `fine_tuning_epochs` come from the model's configuration. steps_per_epoch: optimizer steps. optimizer:
    lets the state of pruned weights go with them, and clears it where weights are rewound.
    Raises TrainingError (PQ412) when the model is not a compiled one or the numbers leave no training.
    """
    compiled = compiled_model(model)
    settings = compiled.config.training_parameters
    plan = Plan.of_length(
        epochs,
        steps_per_epoch,
        pretraining=settings.pretraining_epochs,
        fine_tuning=settings.fine_tuning_epochs,
        rounds=settings.rounds,
    )
    return Session(compiled, plan, loop=loop_around(model, optimizer=optimizer))
