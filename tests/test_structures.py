"""Ordinary model structures: compiled without quantization they equal the original, or they are refused with a code, line and remedy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import pquant_fx as pq
from pquant_fx.graph.exactness import difference
from tests.structures import Structure, load_all

REFUSED = {"vae_reparam": "PQ104", "setitem": "PQ105"}
ALL = load_all()


def evaluated(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return model.eval()(**inputs)


def train_step(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Outputs, and gradients and buffers by name after one step in train mode; the same seed, so the same dropout."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    result = model(**inputs)
    if any(p.requires_grad for p in model.parameters()):
        sum(t.sin().sum() for t in tree_leaves(result)).backward()
    state = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return tree_map(torch.Tensor.detach, result), {**state, **dict(model.named_buffers())}


def test_there_are_57_structures_and_at_least_54_are_accepted() -> None:
    assert len(ALL) == 57
    assert len(ALL) - len(REFUSED) >= 54


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", sorted(set(ALL) - set(REFUSED)))
def test_an_accepted_structure_equals_the_original_in_both_modes(name: str, batch: int) -> None:
    case: Structure = ALL[name]
    model = case.model()
    compiled = pq.compile(model, "float", case.inputs(batch))
    assert set(model.state_dict()) <= set(compiled.state_dict())
    for n in (1, 2, 4, 7):
        expected = evaluated(copy.deepcopy(model), case.inputs(n))
        assert difference(expected, evaluated(copy.deepcopy(compiled), case.inputs(n))) <= 1e-5
    for n in (2, 7):
        expected, state = train_step(model, case.inputs(n))
        result, found = train_step(compiled, case.inputs(n))
        assert difference(expected, result) <= 1e-5
        assert set(state) <= set(found)
        for name_, value in state.items():
            assert difference(value, found[name_]) <= 1e-4, name_


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_structure_names_code_line_and_remedy(name: str) -> None:
    case: Structure = ALL[name]
    with pytest.raises(pq.PQuantError) as error:
        pq.compile(case.model(), "float", case.inputs(3))
    assert error.value.code == REFUSED[name]
    assert (error.value.place.line or "").startswith("structures_control.py:")
    assert error.value.remedy
