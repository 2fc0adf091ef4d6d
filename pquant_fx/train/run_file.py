"""The checkpoint of a `fit`: written after each epoch, with all that a loop of fit's own holds, and read to go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pquant_fx.errors import Problem, TrainingError, TransferError
from pquant_fx.train.checkpoint import FilePath, resume, save
from pquant_fx.train.compiled import compiled_model
from pquant_fx.train.data import Batches, ResidentBatches, StreamedBatches
from pquant_fx.train.events import EpochEnd, Stateful
from pquant_fx.train.session import Session

__all__ = ["RunFile"]


class RunFile:
    """`path` None: nothing is written. Raises TrainingError (PQ412) when a file is there and `resume` does not say what to do with it."""

    def __init__(self, path: FilePath | None, resume: bool) -> None:
        self._path = path
        self._saved = 0  # the epoch after which the file was written last
        self.found = path is not None and os.path.exists(path)
        if resume and path is None:
            raise TrainingError(Problem("PQ412", "resume=True without a file to go on from", 'pass checkpoint="run.pt", too'))
        if self.found and not resume:
            remedy = "pass resume=True to go on from it (or to begin, where there is none yet), or remove it to begin anew"
            raise TrainingError(Problem("PQ412", f"the checkpoint '{path}' exists", remedy))

    def restore(
        self,
        model: nn.Module,
        session: Session,
        optimizer: Optimizer,
        train: Batches,
        validation: Batches | None,
        callbacks: Sequence[Any],
    ) -> tuple[list[EpochEnd], Batches]:
        """The rows of the finished epochs and the training data in the first process's order; all else goes on from the file."""
        assert self._path is not None
        extra = resume(model, self._path, session=session, optimizer=optimizer)
        state = extra.get("fit") if isinstance(extra, dict) else None
        if state is None or len(state["callbacks"]) != len(callbacks):
            what = "was not written by fit" if state is None else f"was written with {len(state['callbacks'])} callbacks"
            raise TransferError(Problem("PQ401", f"'{self._path}' {what}", "call fit as the script did that wrote the file"))
        for callback, known in zip(callbacks, state["callbacks"]):
            if known is not None:
                callback.load_state_dict(known)
        self._saved = session.epoch
        for source, generators in zip((train, validation), state["generators"]):
            for generator, known in zip(_generators(source), generators):
                generator.set_state(known)
        ordered = replace(train, seed=state["seed"]) if isinstance(train, ResidentBatches) else train
        return [EpochEnd(**row) for row in state["rows"]], ordered

    def write(
        self,
        model: nn.Module,
        session: Session,
        optimizer: Optimizer,
        train: Batches,
        validation: Batches | None,
        callbacks: Sequence[Any],
        rows: Sequence[EpochEnd],
    ) -> None:
        """After an epoch. Raises TrainingError (PQ411) when a parameter is not finite any more: the file stays a good one."""
        if self._path is None:
            return
        self._refuse_not_finite(model, session.epoch)
        state = {
            "rows": [asdict(row) | {"metrics": dict(row.metrics)} for row in rows],
            "seed": train.seed if isinstance(train, ResidentBatches) else None,
            "generators": [[g.get_state() for g in _generators(source)] for source in (train, validation)],
            "callbacks": [c.state_dict() if isinstance(c, Stateful) else None for c in callbacks],
        }
        save(model, self._path, session=session, optimizer=optimizer, extra={"fit": state})
        self._saved = session.epoch

    def last_good(self) -> str:
        """What to do after a failure, as the end of a remedy; empty where there is no file."""
        if self._path is None:
            return ""
        if not self._saved:
            return f"; '{self._path}' was not written yet"
        return f"; the last good checkpoint is '{self._path}', after epoch {self._saved}"

    def _refuse_not_finite(self, model: nn.Module, epoch: int) -> None:
        parameters = dict(compiled_model(model).graph_module.named_parameters())
        if not parameters or bool(torch.stack([p.isfinite().all() for p in parameters.values()]).all()):
            return
        name = next(name for name, p in parameters.items() if not bool(p.isfinite().all()))
        what = f"parameter '{name}' is not finite after epoch {epoch}"
        raise TrainingError(Problem("PQ411", what, f"lower learning_rate, or clip gradients{self.last_good()}"))


def _generators(source: Batches | None) -> list[torch.Generator]:
    """The random number generators of a DataLoader and its samplers, each once."""
    loader = source.source if isinstance(source, StreamedBatches) else None
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    return list({id(g): g for g in found}.values())
