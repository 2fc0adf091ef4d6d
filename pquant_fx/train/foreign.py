"""A session inside somebody else's training loop, which calls hooks: what Lightning and Hugging Face have in common."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pquant_fx.errors import ExtraMissingError, Problem, TrainingError
from pquant_fx.train.compiled import Compiled, compiled_model
from pquant_fx.train.loop import loop_around
from pquant_fx.train.plan import Plan
from pquant_fx.train.session import Session

__all__ = ["compiled_inside", "package", "session_inside", "the_optimizer"]


def session_inside(outer: nn.Module, model: Compiled, epochs: int, steps_per_epoch: int, optimizer: Optimizer | None) -> Session:
    """A session for `model` in a loop that trains `outer`, which holds it. Raises TrainingError (PQ412) as `session` does."""
    settings = model.config.training_parameters
    stages = {"pretraining": settings.pretraining_epochs, "fine_tuning": settings.fine_tuning_epochs}
    plan = Plan.of_length(epochs, steps_per_epoch, **stages, rounds=settings.rounds)
    return Session(model, plan, loop=loop_around(outer, optimizer=optimizer))


def compiled_inside(outer: nn.Module, given: nn.Module | None) -> Compiled:
    """`given`, or the one compiled model among the submodules of `outer`. Raises TrainingError (PQ412) when there is not one."""
    if given is not None:
        return compiled_model(given)
    found = [m for m in outer.modules() if isinstance(m, Compiled)]
    if len(found) != 1:
        what = f"the {type(outer).__name__} holds {len(found)} compiled models"
        remedy = "let it hold what pq.compile(...) returned, or give the callback the one that is trained"
        raise TrainingError(Problem("PQ412", what, remedy))
    return found[0]


def the_optimizer(optimizers: Any) -> Optimizer | None:
    """The one optimizer, out of the wrapper of accelerate; None where there are several."""
    if not isinstance(optimizers, list | tuple):
        optimizers = [optimizers]
    found = [getattr(o, "optimizer", o) for o in optimizers]
    return found[0] if len(found) == 1 and isinstance(found[0], torch.optim.Optimizer) else None


def package(module: str, extra: str) -> Any:
    """The module of an optional package. Raises ExtraMissingError (PQ503)."""
    try:
        return import_module(module)
    except ImportError as error:
        what = f"the package {module.split('.')[0]} is not installed"
        raise ExtraMissingError(Problem("PQ503", what, f"pip install 'pquant_fx[{extra}]'")) from error
