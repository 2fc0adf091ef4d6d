"""What a network takes: the one place where given data is compared with the inputs of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pquant_fx.errors import InputError, Problem
from pquant_fx.graph.info import info, place

__all__ = ["InputSpec", "bind_inputs", "float_type", "input_problems", "input_specs", "not_finite"]


@dataclass(frozen=True)
class InputSpec:
    """What the graph was made for: the shape of one sample (None: unknown) and the element type of the example ("float32")."""

    shape: tuple[int, ...] | None
    dtype: str | None


def input_specs(gm: GraphModule) -> dict[str, InputSpec]:
    """The inputs of a graph by name, in order. A model keeps them, because pickling drops what nodes know."""
    found = {}
    for node in _inputs(gm):
        record = info(node)
        found[str(node.target)] = InputSpec(tuple(record.shape[1:]) if record.shape is not None else None, record.dtype)
    return found


def bind_inputs(gm: GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional and named values by input name, in the order of `forward`.

    Raises InputError (PQ409) for values that are missing, too many, given twice or of an unknown name.
    """
    nodes = {str(n.target): n for n in _inputs(gm)}
    takes = f"the model takes {', '.join(nodes) or 'no input'}"
    one_each = f"{takes}: give one tensor for each"
    if len(args) > len(nodes):
        raise InputError(Problem("PQ409", f"{len(args)} inputs were given", one_each))
    given = dict(zip(nodes, args))
    problems = [Problem("PQ409", f"the input '{n}' was given twice", "give it once", place(nodes[n])) for n in kwargs if n in given]
    problems += [Problem("PQ409", f"the model has no input '{n}'", f"{takes}: use these names") for n in kwargs if n not in nodes]
    given.update(kwargs)
    problems += [Problem("PQ409", f"the input '{n}' is missing", one_each, place(nodes[n])) for n in nodes if n not in given]
    if problems:
        raise InputError(problems)
    return {n: given[n] for n in nodes}


def input_problems(
    gm: GraphModule, specs: Mapping[str, InputSpec], values: Mapping[str, Any], what: str = "", *, convertible: bool = False
) -> list[Problem]:
    """Every value that is no tensor of the shape and kind of number that the graph was made for, and batches of unequal size.

    what: a word for messages, such as "training". convertible: real numbers of any type will do.
    A floating type fits when it is that of the example, that of the parameters, or when autocast is on.
    """
    problems: list[Problem] = []
    nodes = {str(n.target): n for n in _inputs(gm)}
    samples: dict[str, int] = {}
    for name, value in values.items():
        found = _misshapen(specs[name], value) or (None if convertible else _mistyped(gm, specs[name], value))
        if found is not None:
            problems.append(Problem("PQ409", f"{what} input '{name}' {found[0]}".lstrip(), found[1], place(nodes[name])))
        else:
            samples[name] = len(value)
    if len(set(samples.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in samples.items())
        problems.append(Problem("PQ409", f"the inputs hold different numbers of samples ({counts})", "give every input one entry a sample"))
    return problems


def not_finite(gm: GraphModule, values: Iterable[Tensor]) -> list[Problem]:
    """PQ305 for every input that holds NaN or infinity, with the first such sample."""
    problems = []
    for node, value in zip(_inputs(gm), values):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            first = int(value.isfinite().logical_not().nonzero()[0, 0])
            what = f"the input '{node.target}' holds NaN or infinity (first in sample {first})"
            problems.append(Problem("PQ305", what, "clean the data: fixed point has no such value", place(node)))
    return problems


def float_type(model: nn.Module) -> torch.dtype:
    """The type of the model's first real parameter, or buffer where there is no parameter; float32 when it has neither."""
    return next((v.dtype for v in chain(model.parameters(), model.buffers()) if v.is_floating_point()), torch.float32)


def _inputs(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if n.op == "placeholder"]


def _misshapen(spec: InputSpec, value: Any) -> tuple[str, str] | None:
    """What is wrong with a value whatever its numbers are, and the remedy."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}", "give a torch.Tensor, batch first"
    if value.layout is not torch.strided:
        return "is sparse", "give a dense tensor: x.to_dense()"
    if value.is_complex():
        return f"is {value.dtype}", "give real numbers, for example the real and the imaginary part as two channels"
    if value.dim() == 0 or (spec.shape is not None and tuple(value.shape[1:]) != spec.shape):
        wanted = "N, ..." if spec.shape is None else ", ".join(("N", *map(str, spec.shape)))
        remedy = "reshape the data, or compile again with an example of this shape"
        return f"has shape {tuple(value.shape)}, the model was compiled for ({wanted})", remedy
    return None


def _mistyped(gm: GraphModule, spec: InputSpec, value: Tensor) -> tuple[str, str] | None:
    """A kind of number that the user's model would not have taken."""
    if str(value.dtype) == f"torch.{spec.dtype}":
        return None
    example: torch.dtype = getattr(torch, spec.dtype or "float32")
    if not example.is_floating_point:
        return (f"is {value.dtype}, the example was {example}", f"convert it: x.to({example})") if value.is_floating_point() else None
    own = float_type(gm)
    if value.dtype == own or (value.is_floating_point() and torch.is_autocast_enabled(value.device.type)):
        return None
    return f"is {value.dtype}, the model's parameters are {own}", f"convert it once: x.to({own})"
