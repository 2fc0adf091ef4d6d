"""PDP: the published mask and gradient, exact budgets, the ramp over epochs, outputs with their biases, N:M, hard decisions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.config import PDPPruning
from pquant_fx.errors import TrainingError
from pquant_fx.prune import Layout, Member, PDPMask
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.quantize.fixed_point import fixed_point
from tests.synchronisation import NoSynchronisation

W = [0.9, -0.5, 0.3, -0.12, 0.1, 0.02]


def made(weight: Tensor, budget: float = 0.5, progress: float = 1.0, layout: Layout | None = None, **options: Any) -> PDPMask:
    """A mask in training that asks for this share of its weights."""
    mask = PDPMask(weight, PDPPruning(**options), layout)
    mask.enter(TRAINING)
    mask.plan(budget, progress)
    mask.follow(weight)
    mask.decide(weight)
    return mask


# ---- the published mask
def test_mask_and_gradient_of_the_paper() -> None:
    w = torch.tensor(W, requires_grad=True)
    mask = made(w, temperature=0.01)
    out = mask(w)
    out.sum().backward()
    assert mask.level.sqrt().item() == pytest.approx(0.21)
    torch.testing.assert_close((out / w).detach(), torch.tensor([1, 1, 0.98995, 0.04880, 0.03198, 0.01249]), rtol=0, atol=1e-5)
    torch.testing.assert_close(w.grad, torch.tensor([1, 1, 1.16905, 0.18248, 0.09391, 0.01348]), rtol=0, atol=1e-5)
    assert mask.mask.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("options", [{}, {"structured_pruning": True}, {"nm": "1:3"}, {"relative_temperature": True}])
def test_gradient_is_that_of_the_formula_with_a_constant_threshold(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    w = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    mask = made(w, temperature=0.3, **options)
    weights = torch.randn_like(w)
    (mask(w) * weights).sum().backward()
    u = w.detach().clone().requires_grad_()
    scores = u.square().sum(1, keepdim=True) if mask.settings.structured_pruning else u.square()
    (torch.sigmoid((scores - mask.level) / mask.temperature) * u * weights).sum().backward()
    torch.testing.assert_close(w.grad, u.grad)
    assert torch.autograd.gradcheck(mask, (w,))


def test_a_second_derivative_is_refused_instead_of_wrong() -> None:
    w = torch.tensor(W, requires_grad=True)
    (grad,) = torch.autograd.grad(made(w)(w).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=30), st.floats(0, 0.999))
def test_threshold_and_decision_against_sorting(numbers: list[float], share: float) -> None:
    n = len(numbers)
    keep = max(1, round((1 - share) * n))
    falling = sorted((abs(x) for x in numbers), reverse=True)
    mask = made(torch.tensor(numbers), share)
    if keep == n:
        assert mask.level.item() == -torch.inf
    else:
        assert mask.level.item() == pytest.approx(((falling[keep - 1] + falling[min(keep, n - 1)]) / 2) ** 2)
    order = sorted(range(n), key=lambda i: (abs(numbers[i]), i))  # of equal ones those of lower index go
    assert mask.mask.tolist() == [0.0 if i in order[: n - keep] else 1.0 for i in range(n)]


def test_nothing_to_prune_changes_nothing() -> None:
    for w, budget in ((torch.tensor([[0.3]]), 0.9), (torch.tensor(W), 0.0)):
        mask = made(w, budget)
        assert torch.equal(mask(w), w)
        assert mask.sparsity(w).item() == 0.0


@pytest.mark.parametrize("options", [{}, {"structured_pruning": True}, {"nm": "2:4"}, {"relative_temperature": True}])
def test_an_all_zero_layer(options: dict[str, Any]) -> None:
    w = torch.zeros(4, 8, requires_grad=True)
    mask = made(w, **options)
    out = mask(w)
    out.sum().backward()
    assert not out.any()
    assert w.grad is not None
    assert bool(w.grad.isfinite().all())
    assert mask.sparsity(w).item() == 0.5


def test_relative_temperature_follows_the_scale() -> None:
    w = torch.tensor(W)
    small, large = (made(w * s, temperature=0.2, relative_temperature=True)(w * s) / s for s in (1e-3, 1e3))
    torch.testing.assert_close(small, large)


# ---- outputs and N:M
@pytest.mark.parametrize(("layout", "shape"), [(Layout(), (6, 3, 2, 2)), (Layout(outputs=1, inputs=0, groups=2), (4, 3, 2, 2))])
def test_outputs_go_by_their_norm_with_their_biases(layout: Layout, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape)
    mask = made(w, layout=layout, structured_pruning=True, temperature=0.5).train()
    norms = layout.rows(w).flatten(1).norm(dim=1)
    falling = norms.sort(descending=True).values
    assert mask.level.sqrt().item() == pytest.approx(float(falling[2] + falling[3]) / 2)
    soft = mask.units(w)
    torch.testing.assert_close(soft, torch.sigmoid((norms.square() - mask.level) / 0.5))
    torch.testing.assert_close(layout.rows(mask(w)), layout.rows(w) * soft[:, None, None])
    mask.eval()
    assert torch.equal(mask.units(w), (norms >= falling[2]).float())
    assert torch.equal(layout.rows(mask(w)), layout.rows(w) * mask.units(w)[:, None, None])


def test_bias_gets_the_gradient_of_the_soft_mask() -> None:
    w = torch.randn(4, 3, requires_grad=True)
    mask = made(w, structured_pruning=True, temperature=0.5).train()
    (grad,) = torch.autograd.grad(mask.units(w).sum(), w)
    assert bool(grad.any())


def test_groups_have_thresholds_of_their_own() -> None:
    w = torch.tensor([[4.0, -3.0, 1.0, 2.0, 0.4, 0.1, 0.3, 0.2, 9.0]])
    mask = made(w, nm="2:4")
    assert mask.mask.tolist() == [[1, 1, 0, 0, 1, 0, 1, 0, 1]]  # the last group of one keeps ceil(2 * 1 / 4)
    expected = [2.5**2] * 4 + [0.25**2] * 4 + [-torch.inf]
    torch.testing.assert_close(mask.level, torch.tensor([expected]))
    half = made(w, progress=0.5, nm="2:4")
    torch.testing.assert_close(half.level[0, :8], mask.level[0, :8] / 4)
    assert half.mask.tolist() == [[1, 1, 0, 1, 1, 0, 1, 1, 1]]


# ---- budgets and epochs
def stage(masks: list[Member], epochs: int, steps: int = 2, done: int | None = None) -> list[list[float]]:
    """The training stage without an optimizer; shares of zeros after each epoch."""
    PDPMask.begin(masks, epochs * steps)
    found = []
    for epoch in range(epochs):
        PDPMask.begin_epoch(masks, epoch, epochs)
        for step in range(steps):
            PDPMask.step(masks, epoch * steps + step + 1, epochs * steps)
        PDPMask.end_epoch(masks, epoch, epochs)
        found.append([mask.sparsity(weight).item() for mask, weight in masks])
    PDPMask.end(masks)
    return found


def members(*weights: Tensor, own: dict[int, float] | None = None, **options: Any) -> list[Member]:
    section = PDPPruning(**options)
    return [Member(PDPMask(w, section, None, (own or {}).get(n)), w) for n, w in enumerate(weights)]


def test_budgets_share_one_magnitude_and_leave_out_layers_with_a_goal() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(10, 10), 3 * torch.randn(10, 10), torch.randn(5, 8)
    masks = members(a, b, c, own={2: 0.25}, sparsity=0.6)
    PDPMask.begin(masks, 10)
    both = torch.cat([a.flatten(), b.flatten()]).abs()
    threshold = both.sort().values[119]
    expected = [float((x.abs() <= threshold).double().mean()) for x in (a, b)] + [0.25]
    assert [float(mask.budget) for mask, _ in masks] == pytest.approx(expected)
    assert sum(expected[:2]) / 2 == pytest.approx(0.6)
    layer = members(a, b, sparsity=0.6, scope="layer")
    PDPMask.begin(layer, 10)
    assert [float(mask.budget) for mask, _ in layer] == [0.6, 0.6]


def test_the_ramp_adds_epsilon_an_epoch() -> None:
    w = torch.randn(100, 10)
    found = stage(members(w, sparsity=0.5, epsilon=0.1), 20)
    assert [row[0] for row in found] == pytest.approx([0.5 * min(1, 0.1 * (e + 1)) for e in range(20)], abs=1e-3)


def test_a_short_training_reaches_the_target_after_two_thirds() -> None:
    w = torch.randn(100, 10)
    found = [row[0] for row in stage(members(w, sparsity=0.6), 6)]
    assert found == pytest.approx([0.15, 0.3, 0.45, 0.6, 0.6, 0.6])
    assert stage(members(w, sparsity=0.6), 1) == [[pytest.approx(0.6)]]


def test_a_new_round_does_not_start_again() -> None:
    w = torch.randn(100, 10)
    masks = members(w, sparsity=0.6)
    stage(masks, 6)
    PDPMask.begin_epoch(masks, 0, 6)
    assert masks[0].mask.sparsity(w).item() == pytest.approx(0.6)


def test_without_an_epoch_it_prunes_at_once() -> None:
    w = torch.randn(10, 10)
    masks = members(w, sparsity=0.3)
    assert stage(masks, 0) == []
    assert masks[0].mask.sparsity(w).item() == pytest.approx(0.3)


def test_the_decision_is_that_of_the_trained_weights_where_they_are_rewound() -> None:
    w = torch.randn(10, 10)
    masks = members(w, sparsity=0.5)
    PDPMask.begin(masks, 2)
    PDPMask.begin_epoch(masks, 0, 1)
    PDPMask.end_epoch(masks, 0, 1)
    kept = masks[0].mask.mask.clone()
    w.copy_(w.flip(0))
    PDPMask.end(masks)
    masks[0].mask.fix_(w)
    assert torch.equal(masks[0].mask.mask, kept)


# ---- state
@pytest.mark.parametrize("options", [{}, {"structured_pruning": True}, {"nm": "2:4"}])
def test_reading_changes_nothing_and_copies_go_on_alike(options: dict[str, Any]) -> None:
    w = torch.randn(6, 8)
    masks = members(w, sparsity=0.5, **options)
    PDPMask.begin(masks, 10)
    PDPMask.begin_epoch(masks, 1, 10)
    mask = masks[0].mask
    before = copy.deepcopy(mask.state_dict())
    with NoSynchronisation():
        first, second = mask(w), mask(w)
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in mask.state_dict().items())
    fresh = PDPMask(torch.zeros(6, 8), mask.settings)
    fresh.load_state_dict(mask.state_dict())
    later = w + 0.1 * torch.randn(6, 8)
    PDPMask.begin_epoch(masks, 4, 10)
    for same in (fresh, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        PDPMask.begin_epoch([Member(same, w)], 4, 10)
        for m in (mask, same):
            m.follow(later)
        assert torch.equal(same(later), mask(later))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, for every autograd.Function
def test_one_graph_under_torch_compile_through_all_epochs() -> None:
    w = torch.randn(6, 6)
    mask = made(w, progress=0.0)
    fast = torch.compile(mask, fullgraph=True, backend="aot_eager")
    for epoch in range(12):  # more than torch.compile would compile anew
        mask.plan(0.5, epoch / 12)
        mask.follow(w)
        leaf, other = w.clone().requires_grad_(), w.clone().requires_grad_()
        fast(leaf).sum().backward()
        mask(other).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8), st.floats(0, 0.99))
def test_fixed_masks_commute_with_quantization(numbers: list[float], share: float) -> None:
    w = torch.tensor(numbers)
    mask = made(w, share)
    last = mask.eval()(w)
    mask.fix_(w)
    assert torch.equal(mask(w), last)  # what evaluation saw is what stays
    assert torch.equal(fixed_point(mask(w), 1, 2, 3, "RND", "SAT"), mask(fixed_point(w, 1, 2, 3, "RND", "SAT")))
    with pytest.raises(TrainingError) as caught:
        mask.plan(0.5, 1.0)
    assert caught.value.code == "PQ412"
