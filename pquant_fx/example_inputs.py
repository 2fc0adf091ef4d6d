"""Example inputs: from what the user gave, or from the shapes in the configuration, to one tensor an argument of `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pquant_fx.errors import ConfigError, InputError, Place, Problem
from pquant_fx.graph.info import definition_line

__all__ = ["ExampleInputs", "example_inputs", "forward_arguments"]

_CHECKED = 4
BATCH = 2  # invented examples hold two samples: one could not show which axis is the batch


@dataclass(frozen=True)
class ExampleInputs:
    """One tensor (batch first) for each argument of `forward` that data is fed to, in order of `forward`.

    source: `examples` (the user's data) or `shape` (random numbers of a configured shape, good for tracing only).
    """

    tensors: dict[str, Tensor]
    source: Literal["examples", "shape"]

    def few(self) -> tuple[Tensor, ...]:
        """The first samples of every input: enough for the numeric checks of passes."""
        return tuple(x[:_CHECKED] for x in self.tensors.values())


def example_inputs(model: nn.Module, given: Any, shapes: Mapping[str, Sequence[int]]) -> ExampleInputs:
    """Bind the user's example inputs, or invent them from `shapes` (name -> shape without batch).

    given: a tensor, a tuple or list of tensors in order of `forward`, a dict by argument name, or None.
    Raises InputError (PQ409): wrong type or names, no batch axis, NaN or infinity; ConfigError (PQ407): neither given.
    """
    names = [p.name for p in _parameters(model)]
    if given is None:
        if not shapes:
            one = names[0] if names else "x"
            remedy = (
                "pass example_inputs=x (on the command line --input-shape 16, or --data for compile and verify), "
                f"or name the shapes in the configuration: inputs: {{{one}: {{shape: [16]}}}}"
            )
            where = Place(module="", line=definition_line(model.forward))
            raise ConfigError(Problem("PQ407", "the shape of the model's input is not known", remedy, where))
        generator = torch.Generator().manual_seed(0)
        invented = {n: torch.randn(BATCH, *shape, generator=generator) for n, shape in shapes.items()}
        return ExampleInputs(_checked(model, invented, names), "shape")
    bound = forward_arguments(model, given)
    return ExampleInputs(_checked(model, bound, names), "examples")


def forward_arguments(model: nn.Module, given: Any) -> dict[str, Any]:
    """`given` by argument name of `forward`, in its order."""
    positional = [p.name for p in _parameters(model) if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if isinstance(given, Mapping):
        return dict(given)
    values = list(given) if isinstance(given, tuple | list) else [given]
    if len(values) > len(positional):
        what = f"{len(values)} example inputs were given, forward takes {len(positional)}: {', '.join(positional) or 'none'}"
        remedy = "give one tensor for each argument of forward, or a dict by name"
        raise InputError(Problem("PQ409", what, remedy, Place(module="", line=definition_line(model.forward))))
    return dict(zip(positional, values))


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    found = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind is inspect.Parameter.VAR_POSITIONAL:
            found += [inspect.Parameter(f"{p.name}_{n}", inspect.Parameter.POSITIONAL_ONLY) for n in range(16)]
        elif p.kind is not inspect.Parameter.VAR_KEYWORD:
            found.append(p)
    return found


def _checked(model: nn.Module, tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    line = definition_line(model.forward)
    problems = [
        Problem(code, what, remedy, Place(name if name in names else None, "", line))
        for name, value in tensors.items()
        for code, what, remedy in _findings(name, value, names)
    ]
    if problems:
        raise InputError(problems)
    order = {n: at for at, n in enumerate(names)}
    return {n: tensors[n] for n in sorted(tensors, key=lambda n: order[n])}


def _findings(name: str, value: Any, names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Code, what is wrong with one example, and the remedy."""
    what = f"the example for '{name}'"
    if name not in names:
        yield "PQ409", f"forward has no argument '{name}'", f"its arguments are: {', '.join(names) or 'none'}"
    elif not isinstance(value, Tensor):
        yield "PQ409", f"{what} is a {type(value).__name__}", "give a torch.Tensor, batch first"
    elif value.layout is not torch.strided or value.is_meta or value.is_complex():
        kind = "complex" if value.is_complex() else "on the meta device" if value.is_meta else "sparse"
        yield "PQ409", f"{what} is {kind}", "give dense real numbers, batch first"
    elif value.dim() == 0 or value.shape[0] == 0:
        remedy = "batch first: one sample of shape (16,) is (1, 16)"
        yield "PQ409", f"{what} has shape {tuple(value.shape)}: no sample in it", remedy
    elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
        yield "PQ305", f"{what} holds NaN or infinity", "clean the data first"
