"""AutoSparse: soft thresholds, annealed gradients, the schedule of alpha, and weights that keep their shrinkage when masks are fixed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pquant_fx as pq
from pquant_fx.config import AutoSparsePruning, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.prune import AutoSparseMask, Layout, Member, annealed
from pquant_fx.prune.pruner import TRAINING
from tests.models import digits_like
from tests.test_dst import CASES
from tests.test_session import STEPS, compiled, config, masks, own_loop


def made(weight: Tensor, layout: Layout | None = None, **options: Any) -> AutoSparseMask:
    """A mask in training."""
    mask = AutoSparseMask(weight, AutoSparsePruning(**options), layout)
    mask.enter(TRAINING)
    return mask


def logit(tau: float) -> float:
    return math.log(tau / (1 - tau))


# ---- schedule
def test_schedule_of_the_paper() -> None:
    expected = {0: 1, 10: 0.9918, 25: 0.9526, 40: 0.7685, 50: 0.5, 60: 0.3455, 75: 0.1464, 90: 0.0245, 100: 0.0025}
    assert {e: round(annealed(e, 100), 4) for e in expected} == expected


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 5), (6, 5), (0, 0)])
def test_epochs_that_are_not_there(epoch: int, epochs: int) -> None:
    with pytest.raises(ConfigError) as caught:
        annealed(epoch, epochs)
    assert caught.value.code == "PQ407"


def test_alpha_is_that_of_the_running_epoch_and_ends_at_the_reset() -> None:
    w = torch.randn(3, 4)
    members = [Member(made(w, alpha=0.4, alpha_reset_epoch=7), w)]
    seen = []
    for epoch in range(10):
        AutoSparseMask.begin_epoch(members, epoch, 10)
        seen.append(float(members[0].mask.alpha))
    assert seen == pytest.approx([0.4 * annealed(e, 10) for e in range(7)] + [0.0] * 3)


def test_the_training_sets_alpha_before_the_first_forward_of_an_epoch() -> None:
    model = compiled(autosparse(epochs=3))
    x, y = digits_like(64)
    optimizer = torch.optim.SGD(pq.param_groups(model, 1e-2))
    seen = []
    with pq.session(model, epochs=3, steps_per_epoch=2) as s:
        for _ in range(3):
            for _ in range(2):
                seen.append(float(masks(model)[0].alpha))  # as the forward finds it
                (torch.nn.functional.cross_entropy(model(x), y) + s.loss()).backward()
                optimizer.step()
                s.step()
            s.epoch_end()
    assert seen == pytest.approx([0.5 * annealed(e, 3) for e in (0, 0, 1, 1, 2, 2)])


# ---- values and gradients
def test_a_soft_threshold_by_hand() -> None:
    w = torch.tensor([-1.0, -0.5, -0.25, 0.0, 0.25, 0.75], dtype=torch.float64, requires_grad=True)
    mask = made(w, threshold_type="layerwise", threshold_init=logit(0.5), alpha=0.25)
    out = mask(w)
    assert out.tolist() == [-0.5, 0, 0, 0, 0, 0.25]
    upstream = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    by_w, by_t = torch.autograd.grad(out, (w, mask.threshold), upstream)
    assert by_w.tolist() == [1, 0.5, 0.75, 1, 1.25, 6]  # |W| = tau counts as pruned
    assert by_t.item() == pytest.approx(-(-1 - 0.5 - 0.75 + 0 + 1.25 + 6) * 0.25)


@pytest.mark.parametrize("kind", ["layerwise", "channelwise", "weightwise"])
@pytest.mark.parametrize(("shape", "layout", "channels"), CASES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_the_formula(
    shape: tuple[int, ...], layout: Layout, channels: tuple[int, ...], kind: str, alpha: float
) -> None:
    torch.manual_seed(2)
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mask = made(w, layout, threshold_type=kind, alpha=alpha)
    wide = (2, 2, 3, 2, 2) if len(channels) > len(shape) else shape
    with torch.no_grad():
        mask.threshold.copy_(0.5 * torch.randn_like(mask.threshold))
    out, upstream = mask(w), torch.randn(shape, dtype=torch.float64)
    tau = torch.sigmoid(mask.threshold.detach()).expand(wide).reshape(shape)
    h = torch.where(w.abs() > tau, torch.ones_like(w), alpha).detach()
    assert torch.allclose(out, torch.sign(w) * torch.relu(w.abs() - tau), rtol=0, atol=1e-15)
    by_w, by_t = torch.autograd.grad(out, (w, mask.threshold), upstream)
    assert torch.equal(by_w, h * upstream)
    every = (-torch.sign(w) * h * upstream * tau * (1 - tau)).detach().reshape(wide)
    assert torch.allclose(by_t, every.sum_to_size(mask.threshold.shape), rtol=1e-12, atol=1e-14)


def test_where_alpha_is_one_or_all_survive_the_gradient_is_autograds() -> None:
    w = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    mask = made(w, threshold_init=-30.0)
    theirs = torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(mask.threshold))
    inputs = (w, mask.threshold)
    for one, other in zip(torch.autograd.grad(mask(w).square().sum(), inputs), torch.autograd.grad(theirs.square().sum(), inputs)):
        assert torch.allclose(one, other)


@pytest.mark.parametrize(("asked", "zeros"), [(False, 0), (True, 5), (0.5, 5), (0.3, 3), (0.0, 0)])
def test_backward_sparsity_is_the_share_of_gradients_that_are_zero(asked: bool | float, zeros: int) -> None:
    w = torch.linspace(-1, 0.8, 10, dtype=torch.float64, requires_grad=True)
    mask = made(w, threshold_type="layerwise", threshold_init=logit(0.35), alpha=0.5, backward_sparsity=asked)
    by_w, by_t = torch.autograd.grad(mask(w).sum(), (w, mask.threshold))
    smallest = sorted(range(10), key=lambda n: (abs(float(w[n].detach())) - 0.35, n))[:zeros]
    h = [0.0 if n in smallest else 1.0 if abs(v) > 0.35 else 0.5 for n, v in enumerate(w.tolist())]
    assert by_w.tolist() == h
    assert by_t.item() == pytest.approx(-sum(one * ((v > 0) - (v < 0)) for one, v in zip(h, w.tolist())) * 0.35 * 0.65)


def test_under_vmap() -> None:
    w = torch.randn(3, 4, 5)
    mask = made(w[0])
    assert torch.equal(torch.vmap(mask)(w), torch.stack([mask(one) for one in w]))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, for every autograd.Function
def test_one_graph_under_torch_compile_also_after_alpha_fell() -> None:
    w = torch.randn(6, 5).requires_grad_()
    mask = made(w, threshold_init=-0.5)
    fast = torch.compile(mask, fullgraph=True, backend="aot_eager")
    inputs = (w, mask.threshold)
    for epoch in (0, 7):
        AutoSparseMask.begin_epoch([Member(mask, w)], epoch, 10)
        for got, expected in zip(torch.autograd.grad(fast(w).sum(), inputs), torch.autograd.grad(mask(w).sum(), inputs)):
            assert torch.allclose(got, expected)


# ---- hardening
@pytest.mark.parametrize(("shape", "layout", "channels"), CASES)
def test_survivors_keep_their_shrinkage(shape: tuple[int, ...], layout: Layout, channels: tuple[int, ...]) -> None:
    w = torch.randn(shape)
    mask = made(w, layout, threshold_init=0.0)
    before = mask(w).detach().clone()
    mask.fix_(w)
    assert torch.equal(mask(w), before)
    assert torch.equal(w, before)
    assert torch.equal(mask.mask, (before != 0).float())


# ---- auto-tuning
def autosparse(epochs: int = 2, pretraining: int = 0, **options: Any) -> dict[str, Any]:
    return config(pretraining=pretraining, epochs=epochs, fine_tuning=0) | {
        "pruning_parameters": {"pruning_method": "autosparse", **options}
    }


@pytest.mark.parametrize(("epochs", "factor", "tuned"), [(10, 1.0, 1.0), (10, 0.5, 0.25), (3, 0.5, 0.5), (0, 0.5, 1.0)])
def test_alpha_is_lowered_when_the_loss_rises_in_the_first_epochs(epochs: int, factor: float, tuned: float) -> None:
    w = torch.randn(3, 4)
    mask = made(w, alpha=0.8, autotune_epochs=epochs, autotune_factor=factor)
    for loss in (2.0, 1.0, 1.5, 0.9, 0.95, 0.8):  # above the least in epochs 2 and 4
        AutoSparseMask.measured([Member(mask, w)], loss)
    AutoSparseMask.begin_epoch([Member(mask, w)], 6, 12)
    assert float(mask.alpha) == pytest.approx(0.8 * tuned * 0.5)


def test_losses_of_pre_training_are_what_sparse_ones_are_compared_with() -> None:
    w = torch.randn(3, 4)
    mask = AutoSparseMask(w, AutoSparsePruning(autotune_epochs=1, autotune_factor=0.5))
    for loss in (3.0, 1.0, 2.0):  # dense: nothing is tuned
        AutoSparseMask.measured([Member(mask, w)], loss)
    assert float(mask.tuned) == 1
    mask.enter(TRAINING)
    for loss in (1.1, 1.2):
        AutoSparseMask.measured([Member(mask, w)], loss)
    assert float(mask.tuned) == 0.5


def test_losses_reach_the_method_from_fit_and_from_an_own_loop() -> None:
    fitted = compiled(autosparse(pretraining=1, autotune_factor=0.5))
    history = fitted.fit(digits_like(320))
    losses = [row.loss for row in history]
    assert float(masks(fitted)[0].least) == min(losses[:2])  # the last round fixes masks, and a fixed one is told nothing
    looped = compiled(autosparse(pretraining=1, autotune_factor=0.5))
    with pq.session(looped, epochs=3, steps_per_epoch=1) as s:
        for loss in (0.5, 0.75, 0.25):
            s.step()
            s.epoch_end(loss)
    assert [float(m.tuned) for m in masks(looped)] == [0.5] * 4


# ---- fields
def test_thresholds_begin_where_they_are_told_and_decay_pulls_them_to_zero() -> None:
    found = []
    for decay in (0.0, 1.0):
        model = compiled(autosparse(threshold_init=-3.0, threshold_decay=decay, threshold_type="layerwise"))
        assert [m.threshold.item() for m in masks(model)] == [-3.0] * 4
        own_loop(model, 2, digits_like(320))
        found.append(sum(m.threshold.item() for m in masks(model)))
    assert found[0] < found[1] < 0
    assert STEPS == 10


def test_alpha_says_how_fast_pruned_weights_move() -> None:
    w = torch.full((2, 2), 0.1, requires_grad=True)
    grads = [torch.autograd.grad(made(w, threshold_init=0.0, alpha=a)(w).sum(), w)[0] for a in (0.1, 0.9)]
    assert [g.flatten().tolist() for g in grads] == [pytest.approx([a] * 4) for a in (0.1, 0.9)]


def test_all_zero_layers_and_single_weights() -> None:
    for w in (torch.zeros(3, 3), torch.tensor([[0.3]]), torch.tensor([[0.9]])):
        w.requires_grad_()
        mask = made(w, threshold_init=0.0, backward_sparsity=True)
        mask(w).sum().backward()
        assert w.grad is not None
        assert bool(torch.isfinite(w.grad).all())
        assert mask.sparsity(w).item() == float(not bool((w > 0.5).any()))


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"alpha_reset_epoch": -1}, "alpha_reset_epoch"),
        ({"autotune_epochs": 1.5}, "autotune_epochs"),
        ({"autotune_factor": 2.0}, "autotune_factor"),
        ({"backward_sparsity": 1.0}, "backward_sparsity"),
        ({"backward_sparsity": "half"}, "backward_sparsity"),
        ({"threshold_type": "rowwise"}, "threshold_type"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "autosparse", **wrong}})
    assert any(f"pruning_parameters.{key}" in problem.what and problem.remedy for problem in caught.value.problems)


@pytest.mark.parametrize(("given", "zeros"), [(True, 0.5), (False, 0.0), (0.25, 0.25), (0, 0.0)])
def test_backward_sparsity_is_a_switch_or_a_share(given: bool | float, zeros: float) -> None:
    loaded = load_config({"pruning_parameters": {"pruning_method": "autosparse", "backward_sparsity": given}})
    assert isinstance(loaded.pruning_parameters, AutoSparsePruning)
    assert loaded.pruning_parameters.backward_zeros == zeros
    assert load_config(loaded.to_yaml()) == loaded
