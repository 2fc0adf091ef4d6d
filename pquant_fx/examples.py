"""Example inputs: from what the user gave, or from the shapes in the configuration, to one tensor an argument of `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pquant_fx.errors import ConfigError, InputError, Problem

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
            remedy = "pass example_inputs=x, or name the shapes in the configuration: inputs: {x: {shape: [16]}}"
            raise ConfigError(Problem("PQ407", "the shape of the model's input is not known", remedy))
        generator = torch.Generator().manual_seed(0)
        invented = {n: torch.randn(BATCH, *shape, generator=generator) for n, shape in shapes.items()}
        return ExampleInputs(_checked(invented, names), "shape")
    bound = forward_arguments(model, given)
    return ExampleInputs(_checked(bound, names), "examples")


def forward_arguments(model: nn.Module, given: Any) -> dict[str, Any]:
    """`given` by argument name of `forward`, in its order."""
    positional = [p.name for p in _parameters(model) if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if isinstance(given, Mapping):
        return dict(given)
    values = list(given) if isinstance(given, tuple | list) else [given]
    if len(values) > len(positional):
        what = f"{len(values)} example inputs were given, forward takes {len(positional)}: {', '.join(positional) or 'none'}"
        raise InputError(Problem("PQ409", what, "give one tensor for each argument of forward, or a dict by name"))
    return dict(zip(positional, values))


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    found = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind is inspect.Parameter.VAR_POSITIONAL:
            found += [inspect.Parameter(f"{p.name}_{n}", inspect.Parameter.POSITIONAL_ONLY) for n in range(16)]
        elif p.kind is not inspect.Parameter.VAR_KEYWORD:
            found.append(p)
    return found


def _checked(tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tensor]:
    problems = []
    for name, value in tensors.items():
        if name not in names:
            problems.append(Problem("PQ409", f"forward has no argument '{name}'", f"its arguments are: {', '.join(names) or 'none'}"))
        elif not isinstance(value, Tensor):
            problems.append(Problem("PQ409", f"the example for '{name}' is a {type(value).__name__}", "give a torch.Tensor, batch first"))
        elif value.dim() == 0 or value.shape[0] == 0:
            shape = tuple(value.shape)
            problems.append(Problem("PQ409", f"the example for '{name}' has shape {shape}: no sample in it", "batch first: one sample of shape (16,) is (1, 16)"))
        elif value.is_floating_point() and not bool(torch.isfinite(value).all()):
            problems.append(Problem("PQ305", f"the example for '{name}' holds NaN or infinity", "clean the data first"))
    if problems:
        raise InputError(problems)
    order = {n: at for at, n in enumerate(names)}
    return {n: tensors[n] for n in sorted(tensors, key=lambda n: order[n])}
