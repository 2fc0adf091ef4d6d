"""What a checkpoint may hold: numbers, text, tensors and containers of them, which torch.load(weights_only=True) reads."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from pquant_fx.errors import Problem, TrainingError

__all__ = ["plain"]

_LEAVES = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple)


def plain(value: Any, where: str) -> Any:
    """`value` with its tensors detached, each with no more storage than its elements need. `where` names it in errors.

    Raises TrainingError (PQ412) with the place of everything that is no plain data.
    """
    problems: list[Problem] = []
    made = _plain(value, where, problems)
    if problems:
        raise TrainingError(problems)
    return made


def _plain(value: Any, where: str, problems: list[Problem]) -> Any:
    kind = type(value)
    if kind in (Tensor, nn.Parameter, nn.Buffer):
        found: Tensor = value.detach()
        return found.clone() if found.untyped_storage().nbytes() > found.numel() * found.element_size() else found
    if kind in _LEAVES:
        return value
    if kind in _MAPPINGS:
        return kind({key: _plain(item, f"{where}[{key!r}]", problems) for key, item in value.items()})
    if kind in _SEQUENCES:
        return kind(_plain(item, f"{where}[{n}]", problems) for n, item in enumerate(value))
    remedy = "give numbers, text, tensors, and dicts, lists and tuples of them: state_dict() of most objects is that"
    problems.append(Problem("PQ412", f"{where} is a {kind.__name__}, which a checkpoint does not hold", remedy))
    return None
