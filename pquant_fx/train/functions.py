"""Training by two functions of the user's: one that trains an epoch, one that validates. PQuantML's scripts are written so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from pquant_fx.config import ConfigLike, load_config
from pquant_fx.errors import InputError, Problem, TrainingError
from pquant_fx.graph.inputs import input_specs
from pquant_fx.train.compiled import Compiled, compiled_model
from pquant_fx.train.foreign import session_inside, the_optimizer
from pquant_fx.train.session import Session

__all__ = ["get_model_losses", "train_model"]

_LOADERS = ("trainloader", "train_loader", "training_data", "train_dataloader")
_RUNNING: ContextVar[tuple[tuple[GraphModule, Session], ...]] = ContextVar("running", default=())


def train_model(
    model: nn.Module,
    config: ConfigLike | None,
    train_func: Callable[..., Any],
    valid_func: Callable[..., Any],
    input_shape: Any = None,
    *,
    steps_per_epoch: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Go through all stages of `config` with the user's functions; returns `model`. PQuantML's function of that name.

        def train_epoch(model, epoch, trainloader, optimizer, loss_function, **kwargs):
            for x, y in trainloader:
                optimizer.zero_grad()
                loss = pq.get_model_losses(model, loss_function(model(x), y))
                loss.backward()
                optimizer.step()

        pq.train_model(model, config, train_epoch, validate, trainloader=loader, optimizer=optimizer, loss_function=criterion)

    Each epoch calls train_func(model, epoch=..., **kwargs) in train mode, then valid_func the same way in eval mode; epoch is a
    0-d integer tensor that counts over all stages. Schedules follow the steps of the optimizer that holds the model's parameters.
    model: a compiled model. config: the one that it was compiled with, or None. input_shape: batch first; only checked, since
    the model knows it. steps_per_epoch: optimizer steps of one call of train_func; by default the length of the loader
    among `kwargs` (trainloader, train_loader, training_data, train_dataloader). Formats stay as compile or calibrate set them.
    Raises TrainingError (PQ412) for another configuration, or steps that are not those announced; InputError (PQ409) for the shape.
    """
    compiled = compiled_model(model)
    settings = compiled.config.training_parameters
    if config is not None and load_config(config) != compiled.config:
        remedy = "pass the configuration that went into pq.compile, or None; Config objects do not change after they are made"
        raise TrainingError(Problem("PQ412", "train_model got another configuration than the model was compiled with", remedy))
    _check_shape(compiled, input_shape)
    steps = _steps(kwargs) if steps_per_epoch is None else steps_per_epoch
    epochs = settings.pretraining_epochs + settings.rounds * settings.epochs + settings.fine_tuning_epochs
    held = {id(p) for p in model.parameters()}
    optimizers = [o for o in kwargs.values() if isinstance(o, Optimizer) and _holds(o, held)]
    session = session_inside(model, compiled, epochs, steps, the_optimizer(optimizers))
    with session, _followed(held, session), _running(compiled.graph_module, session):
        for epoch in range(epochs):
            model.train()
            train_func(model, epoch=torch.tensor(epoch), **kwargs)
            _check_steps(session, steps)
            model.eval()
            valid_func(model, epoch=torch.tensor(epoch), **kwargs)
            session.epoch_end()
    return model


def get_model_losses(model: nn.Module, losses: Any) -> Tensor:
    """`losses` plus what the compression adds to the loss of the running step, 0-d. To be called inside train_model's functions.

    Raises TrainingError (PQ412) anywhere else: a loop of one's own adds `session.loss()`.
    """
    gm = compiled_model(model).graph_module
    for known, session in reversed(_RUNNING.get()):
        if known is gm:
            return losses + session.loss()
    remedy = "in a loop of your own: with pq.session(model, ...) as s: loss = criterion(model(x), y) + s.loss()"
    raise TrainingError(Problem("PQ412", "get_model_losses was called outside train_model", remedy))


@contextmanager
def _running(gm: GraphModule, session: Session) -> Iterator[None]:
    token = _RUNNING.set((*_RUNNING.get(), (gm, session)))
    try:
        yield
    finally:
        _RUNNING.reset(token)


@contextmanager
def _followed(parameters: Set[int], session: Session) -> Iterator[None]:
    """Tell the session of each step of the one optimizer that holds any of the parameters, which are given by their ids."""
    found: list[Optimizer] = []

    def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _holds(optimizer, parameters):
            return
        if not found:
            found.append(optimizer)
        if optimizer is not found[0]:
            remedy = "give one optimizer all of pq.param_groups(model, lr), or write the loop with pq.session"
            raise TrainingError(Problem("PQ412", "two optimizers step on the model: which of them makes a step is not known", remedy))
        session.step()

    handle = register_optimizer_step_post_hook(stepped)
    try:
        yield
    finally:
        handle.remove()


def _holds(optimizer: Optimizer, parameters: Set[int]) -> bool:
    return any(id(p) in parameters for group in optimizer.param_groups for p in group["params"])


def _steps(kwargs: dict[str, Any]) -> int:
    for name in _LOADERS:
        loader = kwargs.get(name)
        if isinstance(loader, Sized) and not _holds_samples(loader):
            return len(loader)
    remedy = "pass steps_per_epoch=, the optimizer steps that one call of train_func makes"
    what = f"the number of steps in an epoch is not known: there is no loader called {', '.join(_LOADERS[:-1])} or {_LOADERS[-1]}"
    raise TrainingError(Problem("PQ412", what, remedy))


def _holds_samples(data: Any) -> bool:
    """Whether these are the samples themselves, of which train_func makes batches, rather than a series of batches."""
    parts = data if isinstance(data, list) else (data,)
    return isinstance(data, tuple | Mapping | str) or any(isinstance(part, Tensor | np.ndarray) for part in parts)


def _check_steps(session: Session, announced: int) -> None:
    if session.steps == announced:
        return
    what = f"train_func made {session.steps} optimizer steps in epoch {session.epoch + 1}, {announced} were announced"
    remedy = "pass steps_per_epoch= with what it makes (accumulated gradients are one step)"
    if not session.steps:
        remedy = "make the optimizer from the compiled model: its parameters are not those of the float model"
    raise TrainingError(Problem("PQ412", what, remedy))


def _check_shape(compiled: Compiled, given: Any) -> None:
    specs = input_specs(compiled.graph_module)
    if given is None or (len(specs) == 1 and tuple(given)[1:] == next(iter(specs.values())).shape):
        return
    shapes = ", ".join(f"{name} {spec.shape}" for name, spec in specs.items())
    remedy = "leave input_shape out: the model knows its shapes"
    raise InputError(Problem("PQ409", f"input_shape is {tuple(given)}, the model was compiled for samples of {shapes}", remedy))
