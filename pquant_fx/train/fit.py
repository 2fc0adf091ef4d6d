"""Training in one call, for people who have no loop of their own: the same Session as theirs, and nothing hidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils._pytree import tree_map

from pquant_fx.errors import Problem, TrainingError
from pquant_fx.train.checkpoint import FilePath
from pquant_fx.train.compiled import Compiled, compiled_model
from pquant_fx.train.data import Batch, Batches, batches_of, check_batch
from pquant_fx.train.events import EpochEnd
from pquant_fx.train.groups import param_groups
from pquant_fx.train.history import History, describe
from pquant_fx.train.loop import loop_around
from pquant_fx.train.loss import Loss, Metric, default_loss, default_metrics
from pquant_fx.train.plan import Plan
from pquant_fx.train.progress import progress
from pquant_fx.train.run_file import RunFile
from pquant_fx.train.session import Session

__all__ = ["Callback", "History", "MakeOptimizer", "Trainable", "fit"]

Callback = Callable[[EpochEnd], None]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
_SYNC_EVERY = 32  # steps between two looks at the losses: each look waits for the device


class Trainable(Compiled, Protocol):
    """A compiled model as `fit` needs it: an nn.Module that can take its formats from data."""

    @property
    def calibration_source(self) -> str: ...

    def calibrate(self, batches: Any) -> Any: ...


def fit(
    model: nn.Module,
    train: Any,
    validation: Any = None,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | MakeOptimizer | None = None,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: FilePath | None = None,
    resume: bool = False,
) -> History:
    """Train the compiled `model` for the epochs that its configuration names; returns one row per epoch.

    train, validation: a DataLoader, an iterable of (x, y), or a pair of tensors; several inputs: x is a tuple, or a dict by
    name. A pair stays on the model's device; the training pair is read in a new order each epoch, which follows
    torch.manual_seed, `batch_size` samples a batch. loss: fn(output, target) -> 0-d tensor; default: cross entropy for
    integer targets, else mean squared error. optimizer: one over this model's parameters, or a function that makes one of
    them; default: Adam over `param_groups` with `learning_rate`, decaying to 0 along a half cosine over all steps (of each
    round). metrics: name -> fn(outputs, targets) -> number, measured on the whole validation set in eval mode; default:
    accuracy for class numbers.
    callbacks: called with each epoch's `EpochEnd`.

    checkpoint: a file, written whole after each epoch and its callbacks. With resume=True the same script goes on from it where
    it exists, bit for bit on the CPU: data order, rates, random numbers, and callbacks that have `state_dict` and
    `load_state_dict`. Workers of a DataLoader that persist between epochs, and ranks other than the first, keep random
    numbers that no file holds.

    Formats come from the first `calibration.batches` batches unless the model was calibrated with data before. Ranges that
    wrap are traced over all training data after the last step.
    Raises TrainingError: PQ409 shapes, PQ410 unusable data, PQ411 a loss that is not finite (names the last good checkpoint),
    PQ412 wrong use, a checkpoint that exists without `resume` among it; what `save` and `resume` raise.
    """
    if validation is None and metrics:
        remedy = "pass validation=(x, y) or a DataLoader, or measure in a callback"
        raise TrainingError(Problem("PQ412", "metrics are measured on validation data, and there is none", remedy))
    file = RunFile(checkpoint, resume)
    run = _Run(model, train, validation, loss, optimizer, metrics)
    if not file.found:
        run.calibrate()
    mode = model.training
    try:
        return run.train(callbacks, file)
    finally:
        model.train(mode)


class _Run:
    """One call of fit."""

    def __init__(self, model: nn.Module, train: Any, validation: Any, loss: Loss | None, optimizer: Any, metrics: Any) -> None:
        self.compiled = cast(Trainable, compiled_model(model))
        self.model = model
        gm, settings = self.compiled.graph_module, self.compiled.config.training_parameters
        self.data = batches_of(train, gm, size=settings.batch_size, seed=torch.initial_seed() % 2**62, shuffle=True)
        self.validation: Batches | None = None
        check_batch(next(self.data.read(0)), gm)
        if validation is not None:
            self.validation = batches_of(validation, gm, size=settings.batch_size, seed=0, shuffle=False, what="validation")
            check_batch(next(self.validation.read(0)), gm, "validation")
        self.plan = Plan(
            settings.pretraining_epochs, settings.epochs * settings.rounds, settings.fine_tuning_epochs, len(self.data), settings.rounds
        )
        self.loss = loss if loss is not None else default_loss
        self.metrics: Mapping[str, Metric] | None = metrics
        self.optimizer = _optimizer(model, optimizer, settings.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups] if optimizer is None else None  # None: the caller's schedule

    def calibrate(self) -> None:
        if self.compiled.calibration_source != "data":
            count = self.compiled.config.calibration.batches
            self.compiled.calibrate([batch.inputs for batch in islice(self.data.read(0), count)])

    def retrace(self) -> None:
        from pquant_fx.quantize.calibration import trace_ranges

        trace_ranges(self.compiled.graph_module, (batch.inputs for batch in self.data.read(0)))

    def train(self, callbacks: Sequence[Callback], file: RunFile) -> History:
        rows: list[EpochEnd] = []
        if self.plan.steps == 0:
            return History()
        session = Session(self.compiled, self.plan, loop=loop_around(self.model, self.retrace, self.optimizer))
        with progress("training", self.plan.steps) as advance:  # rich takes a random number when it is imported: before the file's
            if file.found:
                rows, self.data = file.restore(self.model, session, self.optimizer, self.data, self.validation, callbacks)
            advance(session.epoch * self.plan.steps_per_epoch, "")
            with session:
                while session.epoch < self.plan.epochs:
                    self.model.train()
                    mean = self._epoch(session, advance, file)
                    row = session.finish_epoch(mean, self._validate())
                    rows.append(row)
                    advance(0, describe(row))
                    for callback in callbacks:
                        callback(row)
                    file.write(self.model, session, self.optimizer, self.data, self.validation, callbacks, rows)
        return History(tuple(rows))

    def _epoch(self, session: Session, advance: Callable[[int, str], None], file: RunFile) -> float:
        """All steps of one epoch; returns the mean loss per sample."""
        meter = _LossMeter(session.epoch + 1, file.last_good())
        for step, batch in enumerate(self.data.read(session.epoch)):
            if step == self.plan.steps_per_epoch:
                remedy = "let every epoch have the same number of batches"
                what = f"epoch {session.epoch + 1} has more than the {step} batches that were counted at the start"
                raise TrainingError(Problem("PQ410", what, remedy))
            if self.rates is not None:
                self._set_rates(self.rates, session.epoch, step)
            self._step(batch, session, meter)
            advance(1, "")
        if not meter.samples:
            what = f"epoch {session.epoch + 1} got no batch"
            raise TrainingError(Problem("PQ410", what, "let the data start anew whenever it is iterated: a list or a DataLoader does"))
        return meter.mean()

    def _step(self, batch: Batch, session: Session, meter: _LossMeter) -> None:
        loss = self.loss(self.model(*batch.inputs), batch.target)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
            raise TrainingError(
                Problem("PQ412", f"the loss function returned a value of {found}", "return a 0-d tensor, for example a mean")
            )
        self.optimizer.zero_grad(set_to_none=True)
        extra = session.extra_loss()
        (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        session.step()
        meter.add(loss, batch.size)

    def _set_rates(self, rates: Sequence[float], epoch: int, step: int) -> None:
        first, after = self.plan.cycle_at(epoch)
        done = ((epoch - first) * self.plan.steps_per_epoch + step) / ((after - first) * self.plan.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * done))

    def _validate(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        self.model.eval()
        outputs, targets = [], []
        with torch.no_grad():
            for batch in self.validation.read(0):
                outputs.append(self.model(*batch.inputs))
                targets.append(batch.target)
            output, target = _joined(outputs), _joined(targets)
            metrics = default_metrics(output, target) if self.metrics is None else self.metrics
            found = {"validation_loss": self.loss(output, target), **{name: metric(output, target) for name, metric in metrics.items()}}
        return {name: float(value) for name, value in found.items()}


class _LossMeter:
    """Collects the losses of an epoch on the device and looks at them every few steps."""

    def __init__(self, epoch: int, last_good: str = "") -> None:
        self.epoch, self._last_good = epoch, last_good
        self._waiting: list[Tensor] = []
        self._sizes: list[int] = []
        self._seen = 0
        self._sum = 0.0
        self.samples = 0

    def add(self, loss: Tensor, size: int) -> None:
        self.samples += size
        self._waiting.append(loss.detach())
        self._sizes.append(size)
        if len(self._waiting) == _SYNC_EVERY:
            self._look()

    def mean(self) -> float:
        self._look()
        return self._sum / self.samples

    def _look(self) -> None:
        values = torch.stack(self._waiting).tolist() if self._waiting else []
        for value, size in zip(values, self._sizes):
            self._seen += 1
            if not math.isfinite(value):
                what = f"the loss is {value} in epoch {self.epoch}, step {self._seen}"
                remedy = "lower learning_rate, or look for NaN, infinite or unscaled values in the data and in a loss of your own"
                raise TrainingError(Problem("PQ411", what, remedy + self._last_good))
            self._sum += value * size
        self._waiting.clear()
        self._sizes.clear()


def _optimizer(model: nn.Module, given: Any, rate: float) -> Optimizer:
    """The user's optimizer, after a look at whose parameters it holds, or Adam."""
    ours = [p for p in model.parameters() if p.requires_grad]
    if not ours:
        raise TrainingError(Problem("PQ412", "the model has no parameter that requires a gradient", "set requires_grad, or do not train"))
    if given is None:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in ours)
        return Adam(param_groups(model, rate), lr=rate, fused=fused)
    made = given if isinstance(given, Optimizer) else given(ours)
    if not isinstance(made, Optimizer):
        raise TrainingError(Problem("PQ412", f"`optimizer` gave a {type(made).__name__}", "pass an Optimizer or a function that makes one"))
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if not held & {id(p) for p in ours}:
        remedy = "make it from the compiled model: torch.optim.SGD(model.parameters(), ...)"
        raise TrainingError(Problem("PQ412", "the optimizer holds no parameter of the compiled model", remedy))
    return made


def _joined(parts: list[Any]) -> Any:
    """Batches of nested results as one, along axis 0."""
    return tree_map(lambda *tensors: torch.cat([t if t.dim() else t[None] for t in tensors]), *parts)
