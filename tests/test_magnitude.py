"""Magnitude masks: the cubic schedule, exact counts, deterministic ties, gradients, commutation with quantization."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.config import MagnitudePruning
from pquant_fx.errors import ConfigError, TrainingError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.prune import Layout, MagnitudeMask, Member, cubic_sparsity
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.quantize.fixed_point import fixed_point


# ---- schedule
def test_schedule_of_the_paper() -> None:
    got = [round(cubic_sparsity(t, 0, 10, 0.0, 0.9), 4) for t in range(11)]
    assert got == [0.0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]


def test_schedule_ends() -> None:
    assert cubic_sparsity(-5, 0, 10, 0.1, 0.9) == 0.1
    assert cubic_sparsity(0, 0, 10, 0.1, 0.9) == 0.1
    assert cubic_sparsity(10, 0, 10, 0.1, 0.9) == 0.9
    assert cubic_sparsity(99, 0, 10, 0.1, 0.9) == 0.9
    assert cubic_sparsity(3, 3, 3, 0.1, 0.9) == 0.9
    assert cubic_sparsity(2, 3, 3, 0.1, 0.9) == 0.1


@pytest.mark.parametrize("wrong", [{"final": 1.1}, {"initial": -0.1}, {"final": float("nan")}, {"end": -1}])
def test_schedule_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        cubic_sparsity(**{"t": 0, "start": 0, "end": 10, **wrong})
    assert caught.value.code == "PQ407"


# ---- masks
def made(weight: Tensor, sparsity: float | None = None, layout: Layout | None = None, **options: Any) -> MagnitudeMask:
    """A mask in training."""
    mask = MagnitudeMask(weight, MagnitudePruning(**{"regrow": True, **options}), layout, sparsity)
    mask.enter(TRAINING)
    return mask


def pruned(weight: Tensor, sparsity: float) -> list[float]:
    mask = made(weight)
    mask.update(weight, sparsity)
    return mask.mask.flatten().tolist()


def test_new_mask_keeps_everything() -> None:
    w = torch.randn(3, 4)
    mask = made(w)
    assert torch.equal(mask(w), w)
    assert mask.sparsity(w).item() == 0.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=40), st.floats(0, 1))
def test_the_smallest_go_and_ties_go_by_index(numbers: list[float], sparsity: float) -> None:
    count = round(sparsity * len(numbers))
    gone = sorted(range(len(numbers)), key=lambda n: (abs(numbers[n]), n))[:count]
    assert pruned(torch.tensor(numbers), sparsity) == [0.0 if n in gone else 1.0 for n in range(len(numbers))]


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, [1.0]), (1.0, [0.0]), (0.4, [1.0]), (0.6, [0.0])])
def test_a_single_weight(sparsity: float, kept: list[float]) -> None:
    assert pruned(torch.tensor([[0.3]]), sparsity) == kept


def test_pruned_weights_come_back() -> None:
    w = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mask = made(w)
    mask.update(w, 0.5)
    assert mask(w).tolist() == pytest.approx([0, 0, 0.3, 0.4])
    w[0] = 5.0
    mask.update(w, 0.5)
    assert mask.mask.tolist() == [1, 0, 0, 1]
    assert mask.sparsity(w).item() == 0.5


def test_update_in_place_keeps_the_buffer() -> None:
    w = torch.randn(4, 4)
    mask = made(w)
    before = mask.mask.data_ptr()
    mask.update(w, 0.5)
    assert mask.mask.data_ptr() == before


def test_global_scope() -> None:
    a, b = torch.tensor([[0.1, 0.5]]), torch.tensor([0.2, 0.5, 0.9, 1.0])
    settings = MagnitudePruning(scope="global", sparsity=0.5)
    members = [Member(MagnitudeMask(w, settings), w) for w in (a, b)]
    MagnitudeMask.begin(members, 10)
    MagnitudeMask.end(members)
    assert members[0].mask.mask.tolist() == [[0, 0]]  # the tie at 0.5 goes to the first weight
    assert members[1].mask.mask.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("sparsity", [-0.1, 1.5, float("nan")])
def test_impossible_sparsity(sparsity: float) -> None:
    w = torch.randn(3)
    for attempt in (lambda: made(w, sparsity), lambda: made(w).update(w, sparsity)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.code == "PQ407"


# ---- gradients
@pytest.mark.parametrize(
    ("regrow", "freeze", "expected"), [(True, False, [2.0, 3.0]), (False, False, [0.0, 3.0]), (True, True, [0.0, 3.0])]
)
def test_gradient(regrow: bool, freeze: bool, expected: list[float]) -> None:
    w = torch.tensor([0.1, 0.5], requires_grad=True)
    mask = made(w, regrow=regrow)
    mask.update(w, 0.5)
    if freeze:
        mask.fix_(w)
    (mask(w) * torch.tensor([2.0, 3.0])).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == expected
    assert not mask.mask.requires_grad


def test_frozen_masks_do_not_change() -> None:
    w = torch.randn(8)
    mask = made(w)
    mask.fix_(w)
    with pytest.raises(TrainingError) as caught:
        mask.update(w, 0.5)
    assert caught.value.code == "PQ412"
    assert mask.sparsity(w).item() == 0.0


def test_reapply_clears_what_momentum_and_decay_move() -> None:
    w = torch.nn.Parameter(torch.tensor([0.1, 0.5]))
    mask = made(w)
    mask.update(w, 0.5)
    mask.fix_(w)
    optimizer = torch.optim.Adam([w], lr=0.1, weight_decay=0.1)
    w.sum().backward()
    optimizer.step()
    mask.reapply_(w, optimizer)
    assert w[0].item() == 0.0
    assert optimizer.state[w]["exp_avg"][0].item() == 0.0
    assert optimizer.state[w]["exp_avg"][1].item() != 0.0
    assert float(optimizer.state[w]["step"]) == 1.0


# ---- state
def test_copies_and_states() -> None:
    w = torch.randn(4, 4)
    mask = made(w, 0.7, regrow=False)
    mask.update(w, 0.5)
    mask.fix_(w)
    other = made(torch.zeros(4, 4), 0.7, regrow=False)
    other.load_state_dict(mask.state_dict(), strict=True)
    assert other.is_fixed
    for same in (other, copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert torch.equal(same(w), mask(w))
    assert mask.double()(w.double()).dtype == torch.float64
    assert "magnitude, fixed" in repr(mask)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, for every autograd.Function
def test_one_graph_under_torch_compile_also_after_an_update() -> None:
    w = torch.randn(6, 6)
    mask = made(w)
    fast = torch.compile(mask, fullgraph=True, backend="aot_eager")
    for sparsity in (0.2, 0.6):
        mask.update(w, sparsity)
        leaf = w.clone().requires_grad_()
        out = fast(leaf)
        out.sum().backward()
        assert torch.equal(out, w * mask.mask)
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.ones_like(w))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8),
    st.floats(0, 1),
    st.sampled_from([m for m in ROUNDING_MODES if not m.startswith("S_")]),
    st.sampled_from(OVERFLOW_MODES),
)
def test_masks_commute_with_quantization(numbers: list[float], sparsity: float, rounding: str, overflow: str) -> None:
    w = torch.tensor(numbers)
    mask = made(w)
    mask.update(w, sparsity)
    assert torch.equal(fixed_point(mask(w), 1, 2, 3, rounding, overflow), mask(fixed_point(w, 1, 2, 3, rounding, overflow)))
