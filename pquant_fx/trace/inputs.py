"""From what a user passes as example inputs to the arguments of `forward`, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pquant_fx.errors import Place, Problem, TraceError
from pquant_fx.graph.info import definition_line

__all__ = ["Arguments", "bind_examples", "match_arguments"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Arguments:
    """How `forward` is called: names of the positional inputs, keyword -> name, and the arguments left at their defaults."""

    positional: tuple[str, ...]
    keywords: dict[str, str]
    defaults: dict[str, Any]


def bind_examples(model: nn.Module, example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Example inputs by the names of `forward`'s arguments: of one tensor, a sequence in order, or a mapping as it is.

    Surplus values of a sequence go to `*args` as `args_1`, `args_2`, ... Raises TraceError (PQ409).
    """
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    values = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in _POSITIONAL]
    rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if rest is not None:
        names += [f"{rest}_{n + 1}" for n in range(len(values) - len(names))]
    if len(values) > len(names):
        what = f"{len(values)} example inputs for a forward that takes {len(names)}: {', '.join(names)}"
        raise TraceError(Problem("PQ409", what, "pass one tensor per argument, or a dict by name", Place(module="")))
    return dict(zip(names, values))


def match_arguments(model: nn.Module, examples: Mapping[str, Tensor]) -> Arguments:
    """Find for every argument of `forward` its example or its default. Raises TraceError (PQ409) with all that fits nowhere."""
    problems, left = _wrong_values(examples), dict(examples)
    positional: list[str] = []
    keywords: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    parameters = list(inspect.signature(model.forward).parameters.values())
    for p in parameters:
        if p.kind is inspect.Parameter.VAR_POSITIONAL:
            names = [n for n in left if n.startswith(f"{p.name}_") or not any(q.name == n for q in parameters)]
            if not keywords and not defaults and not any(q.kind is inspect.Parameter.VAR_KEYWORD for q in parameters):
                positional += [n for n in names if left.pop(n) is not None]
        elif p.kind is inspect.Parameter.VAR_KEYWORD:
            keywords.update({n: n for n in list(left) if not any(q.name == n for q in parameters) and left.pop(n) is not None})
        elif p.name not in left:
            if p.default is inspect.Parameter.empty:
                what = f"argument '{p.name}' of forward has no example input"
                problems.append(_problem(what, f"pass an example for it: {{'{p.name}': tensor}}"))
            else:
                defaults[p.name] = p.default
        elif p.kind in _POSITIONAL and not defaults:
            left.pop(p.name)
            positional.append(p.name)
        else:
            left.pop(p.name)
            keywords[p.name] = p.name
    known = ", ".join(p.name for p in parameters)
    problems += [_problem(f"forward has no argument '{n}'", f"its arguments are: {known}") for n in left]
    if problems:
        where = Place(module="", line=definition_line(model.forward))
        raise TraceError([replace(p, place=where) for p in problems])
    return Arguments(tuple(positional), keywords, defaults)


def _wrong_values(examples: Mapping[str, Tensor]) -> list[Problem]:
    found = []
    if not examples:
        found.append(_problem("there are no example inputs", "pass one tensor per input, batch first"))
    for name, x in examples.items():
        if not isinstance(x, Tensor):
            found.append(_problem(f"the example of '{name}' is a {type(x).__name__}", "pass a tensor, batch first"))
        elif x.layout is not torch.strided:
            found.append(_problem(f"the example of '{name}' is sparse", "pass a dense tensor"))
        elif x.dim() and x.shape[0] == 0:
            found.append(_problem(f"the example of '{name}' is an empty batch", "pass at least one sample"))
    sizes = {n: x.shape[0] for n, x in examples.items() if isinstance(x, Tensor) and x.dim()}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{n}: {s}" for n, s in sizes.items())
        found.append(_problem(f"the examples have different batch sizes ({text})", "axis 0 of every input is the batch"))
    return found


def _problem(what: str, remedy: str) -> Problem:
    return Problem("PQ409", what, remedy, Place(module=""))
