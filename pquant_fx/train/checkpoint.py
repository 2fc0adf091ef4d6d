"""Checkpoints: all that a training needs to go on, bit for bit, in a process that knows nothing of the first one.

A file holds the version of its format, the configuration, the structure of the graph, a few example inputs, the state of
the model, decisions that passes took, where the session stands, optimizer, scheduler, and random numbers. Nothing is pickled
but plain data: loading is compiling again and a strict load.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, distributed, nn

from pquant_fx.errors import Problem, TransferError
from pquant_fx.files import write_atomically
from pquant_fx.graph.decisions import decisions_of
from pquant_fx.graph.text import diff, text
from pquant_fx.train.compiled import Compiled, compiled_model
from pquant_fx.train.plain import plain
from pquant_fx.train.random_state import random_state, set_random_state
from pquant_fx.train.session import Session

__all__ = ["FilePath", "Restorable", "adopt", "read_checkpoint", "resume", "save"]

FilePath = str | os.PathLike[str]
_KIND, _VERSION = "pquant_fx checkpoint", 1
_FEW, _BYTES = 4, 2**20  # example inputs in a file: at least so many samples, more while they take less than this


class Restorable(Protocol):
    """An optimizer, a scheduler: what has a state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class _Saved(Compiled, Protocol):
    """A compiled model as a checkpoint needs it."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def example_inputs(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def save(
    model: nn.Module,
    path: FilePath,
    *,
    session: Session | None = None,
    optimizer: Restorable | None = None,
    scheduler: Restorable | None = None,
    extra: Any = None,
) -> None:
    """Write a checkpoint, whole or not at all: the old file stands until the new one does. At any step, also inside an epoch.

        pq.save(model, "run.pt", session=s, optimizer=optimizer)   # in a loop; `pq.resume` goes on from it
        pq.save(model, "net.pt")                                   # the model alone; `pq.load("net.pt", net)` makes it again

    model: a compiled model, also inside DistributedDataParallel or torch.compile, whose prefixes do not get into the file;
    of several ranks the first one writes, the others return at once. extra: plain data of your own (a generator's state,
    best accuracy, a GradScaler's state_dict), which `pq.resume` gives back. The file is safe: torch.load(weights_only=True).
    Raises OutputError (PQ505) when the place can not be written, TrainingError (PQ412) when `model` is no compiled model, or
    for something that is no plain data.
    """
    compiled = cast(_Saved, compiled_model(model))
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0:
        return
    parts = {"session": session, "optimizer": optimizer, "scheduler": scheduler}
    content = {
        "kind": _KIND,
        "version": _VERSION,
        "config": compiled.config.to_dict(),
        "fingerprint": compiled.fingerprint,
        "graph": text(compiled.graph_module, lines=False),
        "examples": _examples(compiled.example_inputs),
        "decisions": decisions_of(compiled.graph_module),
        "model": compiled.state_dict(),
        "random": random_state(),
        "extra": extra,
    } | {name: part.state_dict() for name, part in parts.items() if part is not None}
    buffer = io.BytesIO()
    torch.save({name: plain(value, name) for name, value in content.items()}, buffer)
    write_atomically(path, buffer.getvalue())


def resume(
    model: nn.Module,
    path: FilePath,
    *,
    session: Session | None = None,
    optimizer: Restorable | None = None,
    scheduler: Restorable | None = None,
) -> Any:
    """Go on where `save` wrote `path`: state of the model, session, optimizer, scheduler and random numbers; returns `extra`.

        with pq.session(model, epochs=20, steps_per_epoch=len(batches)) as s:
            if os.path.exists("run.pt"):
                pq.resume(model, "run.pt", session=s, optimizer=optimizer)
            for epoch in range(s.epoch, 20):
                ...

    The arguments are new objects, made as before; all that was saved is asked for. s.epoch epochs are finished, and s.steps
    steps of the running one. Random numbers of a rank other than the first go on from its own seed.
    Raises TransferError: PQ510 for a file that is no checkpoint, PQ401 for that of another network, configuration or optimizer;
    TrainingError (PQ412) for that of a session of another length.
    """
    compiled = cast(_Saved, compiled_model(model))
    content = read_checkpoint(path)
    parts = {"session": session, "optimizer": optimizer, "scheduler": scheduler}
    _refuse_other_parts(content, parts, path)
    _refuse_other_config(content["config"], compiled.config.to_dict(), path)
    adopt(content, compiled, path)
    for name, part in parts.items():
        if part is None:
            continue
        try:
            part.load_state_dict(content[name])
        except (ValueError, KeyError) as error:  # torch's own: other parameters
            remedy = f"make the {name} as the script did that wrote the file"
            raise TransferError(Problem("PQ401", f"the {name} in '{path}' does not fit: {error}", remedy)) from error
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0:
        set_random_state(content["random"])
    return content["extra"]


def read_checkpoint(path: FilePath) -> dict[str, Any]:
    """What is in the file, on the CPU. Raises TransferError (PQ510) when it is missing, damaged, of another kind or a newer version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TransferError(Problem("PQ510", f"there is no file '{path}'", "look at the path; pq.save writes checkpoints")) from error
    except Exception as error:  # torch.load raises what its parts raise: RuntimeError, EOFError, UnpicklingError, OSError, ...
        what = f"'{path}' can not be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise TransferError(Problem("PQ510", what, "the file is damaged or no checkpoint: take another one")) from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        remedy = "pq.load reads what pq.save wrote; weights of a float model go in with model.load_state_dict(...)"
        raise TransferError(Problem("PQ510", f"'{path}' was not written by pq.save", remedy))
    if content["version"] > _VERSION:
        what = f"'{path}' has version {content['version']} of the format, this pquant_fx reads up to {_VERSION}"
        raise TransferError(Problem("PQ510", what, "update pquant_fx: pip install --upgrade pquant_fx"))
    return content


def adopt(content: Mapping[str, Any], compiled: Any, path: FilePath) -> None:
    """Load the state of the model into `compiled`, a compiled model. Raises TransferError (PQ401) when it is another network."""
    if content["fingerprint"] != compiled.fingerprint:
        lines = diff(content["graph"], text(compiled.graph_module, lines=False)).splitlines()[2:]
        changed = [" ".join(line.split()) for line in lines if line[0] in "+-"]
        what = f"'{path}' holds another network; it differs from this one first at: {' | '.join(changed[:2])}"
        remedy = "give the network that was compiled, and the same pipeline= and leaves= if there were any"
        raise TransferError(Problem("PQ401", what, remedy))
    compiled.load_state_dict(content["model"])


def _examples(examples: Any) -> dict[str, Any]:
    """The first samples of the example inputs: what compiling again takes."""
    tensors: dict[str, Tensor] = examples.tensors
    sample = sum(x[0].numel() * x.element_size() for x in tensors.values())
    count = max(_FEW, _BYTES // max(sample, 1))
    return {"tensors": {name: x[:count].cpu() for name, x in tensors.items()}, "source": examples.source}


def _refuse_other_parts(content: Mapping[str, Any], parts: Mapping[str, Any], path: FilePath) -> None:
    problems = []
    for name, part in parts.items():
        if part is not None and name not in content:
            remedy = f"save it with pq.save(model, path, {name}=...), or do not ask for it"
            problems.append(Problem("PQ401", f"'{path}' holds no {name}", remedy))
        elif part is None and name in content:
            remedy = f"pass {name}=..., or take the model alone with pq.load(path, net)"
            problems.append(Problem("PQ401", f"'{path}' also holds the state of the {name}, without which nothing goes on exactly", remedy))
    if problems:
        raise TransferError(problems)


def _refuse_other_config(there: Mapping[str, Any], here: Mapping[str, Any], path: FilePath) -> None:
    different = sorted(_differences(there, here))
    if different:
        what = f"'{path}' was written under another configuration: {', '.join(different)}"
        raise TransferError(Problem("PQ401", what, "compile with the configuration of the file, as pq.load(path, net) does, or begin anew"))


def _differences(there: Any, here: Any, where: str = "") -> list[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted({*there, *here})
        found = [d for k in keys for d in _differences(there.get(k), here.get(k), f"{where}.{k}" if where else k)]
        reordered = not found and list(there) != list(here)  # of rules, the last match wins
        return [f"{where} has another order"] if reordered else found
    return [] if there == here else [f"{where} is {there!r} there, {here!r} here"]
