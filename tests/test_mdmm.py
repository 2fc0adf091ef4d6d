"""MDMM: the multiplier's traces, which weights feel the constraint, what each setting changes, and the mask at the end."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import pquant_fx as pq
from pquant_fx.config import MDMMPruning
from pquant_fx.prune import MDMMMask, Member
from pquant_fx.prune.multipliers import ascended, lagrangian, violations
from pquant_fx.quantize.fixed_point import fixed_point
from tests.mdmm_masks import AT_ONCE, begun, penalty
from tests.models import MLP, digits_like
from tests.synchronisation import NoSynchronisation


# ---- the method on min (w - 1)^2
def trace(kind: str, target: float, steps: int) -> list[tuple[float, float]]:
    """w and lambda after each step of 0.1, w with the lambda from before."""
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    multiplier = torch.zeros(1, dtype=torch.float64)
    found = []
    for _ in range(steps):
        g = violations(w, kind, target)
        inequality = kind != "Equality"
        loss = (w - 1) ** 2 + lagrangian(g, multiplier, 1.0, 1.0, inequality)
        (grad,) = torch.autograd.grad(loss, w)
        multiplier = ascended(multiplier, g.detach(), 0.1, inequality)
        w = (w.detach() - 0.1 * grad).requires_grad_()
        found.append((w.item(), multiplier.item()))
    return found


@pytest.mark.parametrize("kind", ["Equality", "LessThanOrEqual"])
def test_the_multiplier_finds_its_value(kind: str) -> None:
    found = trace(kind, 0.5, 400)
    expected = {1: (0.95, 0.05), 2: (0.91, 0.095), 3: (0.8775, 0.136), 4: (0.85065, 0.17375), 20: (0.66635, 0.56519)}
    expected |= {100: (0.50736, 0.98072), 400: (0.5, 1.0)}
    for step, pair in expected.items():
        assert found[step - 1] == pytest.approx(pair, abs=1e-5), step


def test_an_inequality_that_holds_adds_nothing_and_the_other_way_round() -> None:
    assert set(trace("LessThanOrEqual", 2.0, 50)) == {(1.0, 0.0)}
    assert trace("GreaterThanOrEqual", 1.5, 400)[-1] == pytest.approx((1.5, 1.0), abs=1e-5)


@pytest.mark.parametrize("damping", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("multiplier", [0.0, 0.3])
def test_the_term_of_an_inequality(damping: float, multiplier: float) -> None:
    """a c / 2 (max(0, lambda / c + g)^2 - (lambda / c)^2), whose limit for c = 0 is a lambda g."""
    for g in (-2.0, -0.1, 0.0, 0.4):
        c = max(damping, 1e-12)
        expected = 3 * c / 2 * (max(0.0, multiplier / c + g) ** 2 - (multiplier / c) ** 2) if damping else 3 * multiplier * g
        got = lagrangian(torch.tensor([g]), torch.tensor([multiplier]), 3.0, damping, True)
        assert float(got) == pytest.approx(expected, abs=1e-6)


def test_bounds_have_two_multipliers() -> None:
    assert violations(torch.tensor(0.1), "Bounds", 0.2, 0.6).tolist() == pytest.approx([0.1, -0.5])
    w = torch.tensor([1.0, 1.0, 1.0, 5.0])
    mask = begun(w, 0.5, constraint_type="Bounds", target_value=0.3, upper_value=0.6, **AT_ONCE)
    assert mask.violation.tolist() == pytest.approx([0.3 - 2 / 8, 2 / 8 - 0.6])
    MDMMMask.step([Member(mask, w)], 1, 10)
    assert mask.multiplier.tolist() == pytest.approx([1e-2 * (0.3 - 2 / 8), 0.0])


# ---- state moves between steps only, by the g that the loss had
def test_the_multiplier_moves_once_a_step_by_the_g_of_the_loss() -> None:
    w = torch.randn(8, 8, requires_grad=True)
    mask = begun(w, **AT_ONCE)
    multiplier = 0.0
    optimizer = torch.optim.SGD([w], lr=0.05)
    for step in range(1, 6):
        before = copy.deepcopy(mask.state_dict())
        g = float(w.detach().abs()[mask.mask == 0].sum() / w.detach().abs().sum())
        loss = penalty(mask, w)
        assert loss.item() == pytest.approx(10 * (multiplier * g + g * g / 2), rel=1e-4)
        mask(w), mask.penalty(w), mask.sparsity(w), mask.keep(w)
        assert all(torch.equal(before[k], v) for k, v in mask.state_dict().items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        MDMMMask.step([Member(mask, w)], step, 10)
        multiplier += 1e-3 * 10 * g
        assert float(mask.multiplier) == pytest.approx(multiplier, rel=1e-4)


def test_nothing_moves_before_training_and_once_fixed() -> None:
    torch.manual_seed(0)
    x, y = digits_like(64)
    training = {"pretraining_epochs": 2, "epochs": 0, "fine_tuning_epochs": 0, "batch_size": 32}
    model = pq.compile(MLP(), {"preset": "mdmm", "training_parameters": training}, x)
    model.fit((x, y))
    masks = [m for m in model.modules() if isinstance(m, MDMMMask)]
    assert [float(m.multiplier) for m in masks] == [0.0] * 4
    assert all(m.is_fixed for m in masks)


def test_a_forward_and_its_loss_wait_for_nothing() -> None:
    for options in ({}, {"l0_mode": "smooth"}, {"measure": "count"}, {"metric_type": "StructuredSparsity"}, {"use_grad": True}):
        w = torch.randn(8, 8, requires_grad=True)
        mask = begun(w, **options)
        with NoSynchronisation():
            (mask(w).sum() + penalty(mask, w)).backward()
        assert w.grad is not None


def test_copies_and_states_go_on_alike() -> None:
    w = torch.randn(6, 6)
    mask = begun(w, l0_mode="smooth", constraint_type="LessThanOrEqual", slack=True)
    MDMMMask.step([Member(mask, w)], 1, 10)
    other = MDMMMask(torch.zeros(6, 6), mask.settings)
    other.load_state_dict(mask.state_dict(), strict=True)
    for same in (other, copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert same.is_training
        assert torch.equal(penalty(same, w), penalty(mask, w))
        MDMMMask.step([Member(same, w)], 2, 10)
    MDMMMask.step([Member(mask, w)], 2, 10)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in mask.state_dict().items())


# ---- the mask at the end
def test_weights_are_dense_in_training_and_projected_at_the_end() -> None:
    w = torch.tensor([[0.1, -2.0, 0.3], [0.2, 1.0, -0.4]])
    mask = begun(w.clone(), 0.5, **AT_ONCE)
    assert torch.equal(mask(w), w)
    w[0, 0] = 5.0
    MDMMMask.end_round([Member(mask, w)], last=True)
    w[0, 1] = 0.0  # rewound after the mask was found
    MDMMMask.end([Member(mask, w)])
    mask.fix_(w)
    assert mask.mask.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert torch.equal(mask(w), w)
    assert w.tolist() == [[5, 0, 0], [0, 1, 0]]
    assert torch.equal(fixed_point(mask(w), 1, 2, 3, "RND", "SAT"), mask(fixed_point(w, 1, 2, 3, "RND", "SAT")))


@pytest.mark.parametrize("shape", [(1, 1), (5,), (4, 3)])
@pytest.mark.parametrize("kind", ["UnstructuredSparsity", "StructuredSparsity", "NMSparsity", "FPGAAwareSparsity"])
def test_small_layers_and_layers_of_zeros(shape: tuple[int, ...], kind: str) -> None:
    for w in (torch.zeros(shape, requires_grad=True), torch.ones(shape, requires_grad=True)):
        mask = begun(w, metric_type=kind, **AT_ONCE)
        penalty(mask, w).backward()
        assert w.grad is not None
        assert bool(w.grad.isfinite().all())
        assert float(mask.mask.sum()) >= 1
        assert mask.sparsity(w) < 1


def test_a_sparsity_of_zero_asks_for_nothing() -> None:
    w = torch.randn(5, 5)
    mask = begun(w, 0.0, **AT_ONCE)
    assert penalty(mask, w).item() == 0.0
    assert float(mask.mask.mean()) == 1.0


def test_layers_share_one_target_or_each_has_its_own() -> None:
    a, b = torch.tensor([[0.1, 0.2, 0.3, 9.0]]), torch.tensor([[0.05, 4.0, 5.0, 6.0]])
    for scope, expected in (("layer", [2, 2]), ("global", [1, 3])):
        settings = MDMMPruning(target_sparsity=0.5, scope=scope, ramp_fraction=0.0)  # type: ignore[arg-type]
        members = [Member(MDMMMask(w, settings), w) for w in (a, b)]
        MDMMMask.begin(members, 10)
        assert [int(m.mask.mask.sum()) for m in members] == expected
    small = [Member(MDMMMask(w, settings), w) for w in (0.001 * a, b)]
    MDMMMask.begin(small, 10)
    assert [int(m.mask.mask.sum()) for m in small] == [1, 3]  # no layer is emptied


def test_the_share_rises_and_changes_at_its_interval() -> None:
    w = torch.randn(10, 10)
    mask = begun(w, steps=100, interval=25, ramp_fraction=0.5)
    seen = [round(float(mask.sparsity(w)), 2)]
    for step in range(1, 101):
        MDMMMask.step([Member(mask, w)], step, 100)
        if step in (24, 25, 49, 50, 100):
            seen.append(round(float(mask.sparsity(w)), 2))
    assert seen == [0, 0, 0.79, 0.79, 0.9, 0.9]


def test_it_starts_idle() -> None:
    w = torch.randn(3, 4)
    mask = MDMMMask(w, MDMMPruning())
    assert torch.equal(mask(w), w)
    assert mask.keep(w) is None
