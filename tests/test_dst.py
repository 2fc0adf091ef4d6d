"""Dynamic Sparse Training: the published gradient, thresholds of every granularity, the reset of layers that are all but gone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.config import DSTPruning, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.prune import DSTMask, Layout, Member
from pquant_fx.prune.pruner import TRAINING
from tests.test_session import compiled, config, masks, own_loop


def made(weight: Tensor, layout: Layout | None = None, **options: Any) -> DSTMask:
    """A mask in training."""
    mask = DSTMask(weight, DSTPruning(**options), layout)
    mask.enter(TRAINING)
    return mask


def slope(z: Tensor) -> Tensor:
    """H' as the paper writes it, in three cases."""
    a = z.abs()
    return torch.where(a <= 0.4, 2 - 4 * a, torch.where(a <= 1, torch.full_like(a, 0.4), torch.zeros_like(a)))


class Step(torch.autograd.Function):
    """1[z > 0] with the paper's slope: what autograd needs to differentiate W * Step(|W| - t) by itself."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * slope(ctx.saved_tensors[0])


# ---- numbers of the paper
def test_step_and_its_slope() -> None:
    z = torch.tensor([-1.2, -1, -0.7, -0.4, -0.2, 0, 0.1, 0.4, 0.41, 1, 1.01], dtype=torch.float64)
    w = torch.ones_like(z).requires_grad_()
    mask = made(w, threshold_type="weightwise")
    with torch.no_grad():
        mask.threshold.copy_(1 - z)
        z = 1 - mask.threshold  # what is left of z after rounding 1 - z
    out = mask(w)
    assert out.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    out.sum().backward()
    expected = [0, 0.4, 0.4, 0.4, 1.2, 2, 1.6, 0.4, 0.4, 0.4, 0]
    assert mask.threshold.grad is not None
    assert (-mask.threshold.grad).tolist() == pytest.approx(expected, abs=1e-12)
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx([m + h for m, h in zip(out.tolist(), expected)], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_slope_ends_at_one_inclusively(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    for size, expected in ((1.0, 0.4), (1 + eps, 0.0)):
        w = torch.tensor([size], dtype=dtype, requires_grad=True)
        mask = made(w)
        mask(w).sum().backward()
        assert mask.threshold.grad is not None
        assert float(-mask.threshold.grad / w.detach()) == pytest.approx(expected, rel=2 * eps)


def test_the_loss_is_alpha_times_the_sum_of_exponentials() -> None:
    weights = [torch.randn(3, 4), torch.randn(2, 1, 2, 2)]
    members = [Member(made(w, alpha=0.25, threshold_init=0.5), w) for w in weights]
    with torch.no_grad():
        members[0].mask.threshold.copy_(torch.tensor([[-1.0], [0.0], [2.0]]))
    loss = DSTMask.loss(members)
    assert loss is not None
    assert loss.item() == pytest.approx(0.25 * (math.e + 1 + math.exp(-2) + 2 * math.exp(-0.5)))
    (loss * 3).backward()
    for mask, _ in members:
        assert mask.threshold.grad is not None
        assert torch.allclose(mask.threshold.grad, -0.75 * torch.exp(-mask.threshold.detach()))
    assert DSTMask.loss([Member(made(weights[0], alpha=0.0), weights[0])]) is None


# ---- granularities and gradients
CASES = [
    ((5, 7), Layout(), (5, 1)),
    ((4, 3, 3), Layout(), (4, 1, 1)),
    ((6, 2, 3, 3), Layout(groups=3), (6, 1, 1, 1)),
    ((4, 6, 3, 3), Layout(1, 0), (1, 6, 1, 1)),
    ((4, 3, 2, 2), Layout(1, 0, 2), (2, 1, 3, 1, 1)),
    ((8,), Layout(), (8,)),
]


@pytest.mark.parametrize("kind", ["layerwise", "channelwise", "weightwise"])
@pytest.mark.parametrize(("shape", "layout", "channels"), CASES)
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_gradients_are_those_of_the_formula(
    shape: tuple[int, ...], layout: Layout, channels: tuple[int, ...], kind: str, scale: float
) -> None:
    torch.manual_seed(1)
    w = (0.8 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    mask = made(w, layout, threshold_type=kind, scale_by_std=scale)
    wide = (2, 2, 3, 2, 2) if len(channels) > len(shape) else shape
    assert mask.threshold.shape == {"layerwise": (), "channelwise": channels, "weightwise": wide}[kind]
    with torch.no_grad():
        mask.threshold.copy_(0.2 + 0.4 * torch.rand_like(mask.threshold))
    t = mask.threshold.detach().clone().requires_grad_()
    ours, upstream = mask(w), torch.randn(shape, dtype=torch.float64)
    unit = scale * w.detach().std(correction=0) if scale else 1.0
    theirs = (w.reshape(wide) * Step.apply((w.reshape(wide).abs() - t) / unit)).reshape(shape)  # type: ignore[no-untyped-call]
    assert ours.shape == shape
    assert torch.equal(ours, theirs)
    assert 0 < int((ours == 0).sum()) < w.numel()
    got = torch.autograd.grad(ours, (w, mask.threshold), upstream)
    expected = torch.autograd.grad(theirs, (w, t), upstream)
    for one, other in zip(got, expected):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(mask.hard_mask(w), (ours != 0).double())


def test_one_threshold_an_output_of_a_grouped_transposed_convolution() -> None:
    w = torch.full((4, 3, 2, 2), 0.5)
    mask = made(w, Layout(1, 0, 2))
    with torch.no_grad():
        mask.threshold.view(-1)[4] = 1.0  # output 1 of group 1
    expected = torch.ones(4, 3, 2, 2)
    expected[2:, 1] = 0
    assert torch.equal(mask(w), 0.5 * expected)


def test_scale_by_std_reaches_where_weights_are_small() -> None:
    w = (0.01 * torch.randn(50, 50)).requires_grad_()
    absolute, scaled = made(w, threshold_type="layerwise"), made(w, threshold_type="layerwise", scale_by_std=1.0)
    flat, steep = (torch.autograd.grad(mask(w).sum(), w)[0] for mask in (absolute, scaled))
    far = w.detach().abs() > 1.01 * w.detach().std(correction=0)
    assert torch.equal(steep[far], torch.ones_like(steep[far]))  # no slope out there
    assert bool((flat[far] > 1).all())  # all are near the threshold in absolute terms


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_spread_of_zero_leaves_the_distance_as_it_is(value: float) -> None:
    w = torch.full((1, 1), value).requires_grad_()
    grads = [torch.autograd.grad(mask(w).sum(), (w, mask.threshold)) for mask in (made(w), made(w, scale_by_std=2.0))]
    assert grads[0] == grads[1]
    assert bool(torch.isfinite(grads[0][0]).all())


def test_under_vmap_and_torch_compile() -> None:
    w = torch.randn(3, 4, 5)
    mask = made(w[0], scale_by_std=1.0)
    assert torch.equal(torch.vmap(mask)(w), torch.stack([mask(one) for one in w]))

    def total(weight: Tensor) -> Tensor:
        return mask(weight).square().sum()

    one = torch.stack([torch.autograd.grad(total(x), x)[0] for x in (x.clone().requires_grad_() for x in w)])
    assert torch.allclose(torch.vmap(torch.func.grad(total))(w), one)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, for every autograd.Function
def test_one_graph_under_torch_compile() -> None:
    w = torch.randn(6, 5).requires_grad_()
    mask = made(w, threshold_init=0.4)
    fast = torch.compile(mask, fullgraph=True, backend="aot_eager")
    inputs = (w, mask.threshold)
    for got, expected in zip(torch.autograd.grad(fast(w).sum(), inputs), torch.autograd.grad(mask(w).sum(), inputs)):
        assert torch.allclose(got, expected)


# ---- layers that are all but gone
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.floats(0.01, 1), st.sampled_from(["layerwise", "channelwise", "weightwise"]), st.data())
def test_thresholds_go_back_to_zero_where_too_much_is_gone(size: int, most: float, kind: str, data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, size))
    w = torch.tensor([0.1] * gone + [0.9] * (size - gone)).reshape(1, -1)
    mask = made(w, threshold_type=kind, threshold_init=0.5, max_pruning_pct=most)
    other = made(w, threshold_type=kind, threshold_init=0.05, max_pruning_pct=most)
    DSTMask.step([Member(mask, w), Member(other, w)], 1, 9)
    assert bool((mask.threshold == (0.0 if gone / size >= most - 1e-12 else 0.5)).all())
    assert bool((other.threshold == 0.05).all())


@pytest.mark.parametrize("hook", ["begin", "begin_epoch"])
def test_they_go_back_before_any_forward_sees_them(hook: str) -> None:
    w = torch.randn(4, 4)
    members = [Member(DSTMask(w, DSTPruning(threshold_init=100.0)), w)]
    DSTMask.begin(members, 5) if hook == "begin" else DSTMask.begin_epoch(members, 0, 5)
    members[0].mask.enter(TRAINING)
    assert torch.equal(members[0].mask(w), w)


def test_evaluation_resets_nothing() -> None:
    w = torch.randn(4, 4)
    mask = made(w, threshold_init=100.0).eval()
    assert not mask(w).any()
    assert bool((mask.threshold == 100.0).all())


def test_all_zero_layers_and_single_weights() -> None:
    for w in (torch.zeros(3, 3), torch.tensor([[0.3]])):
        w.requires_grad_()
        mask = made(w, threshold_init=1.0)
        mask(w).sum().backward()
        assert w.grad is not None
        assert bool(torch.isfinite(w.grad).all())
        DSTMask.step([Member(mask, w)], 1, 2)
        assert bool((mask.threshold == 0).all())


# ---- fields
def dst(**options: Any) -> dict[str, Any]:
    settings = config(pretraining=0, epochs=2, fine_tuning=0)
    return settings | {"pruning_parameters": {"pruning_method": "dst", **options}}


def test_thresholds_begin_where_they_are_told() -> None:
    found = masks(compiled(dst(threshold_init=0.05, threshold_type="layerwise")))
    assert [m.threshold.item() for m in found] == pytest.approx([0.05] * 4)


@pytest.mark.parametrize(("low", "high"), [({"alpha": 1e-4}, {"alpha": 0.05}), ({"alpha": 0.05, "threshold_decay": 10.0}, {"alpha": 0.05})])
def test_alpha_presses_thresholds_up_and_decay_pulls_them_back(low: dict[str, float], high: dict[str, float]) -> None:
    from tests.models import digits_like

    found = []
    for options in (low, high):
        model = compiled(dst(**options))
        own_loop(model, 2, digits_like(320))
        found.append(torch.cat([m.threshold.detach().flatten() for m in masks(model)]).mean())
    assert found[0] < found[1]


def test_threshold_decay_is_half_of_the_squares() -> None:
    w = torch.randn(3, 2)
    mask = made(w, alpha=0.0, threshold_decay=0.2)
    with torch.no_grad():
        mask.threshold.copy_(torch.tensor([[1.0], [2.0], [-3.0]]))
    loss = DSTMask.loss([Member(mask, w)])
    assert loss is not None
    assert loss.item() == pytest.approx(0.1 * 14)
    loss.backward()
    assert mask.threshold.grad is not None
    assert mask.threshold.grad.flatten().tolist() == pytest.approx([0.2, 0.4, -0.6])


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"max_pruning_pct": 0.0}, "max_pruning_pct"),
        ({"max_pruning_pct": 1.1}, "max_pruning_pct"),
        ({"alpha": -1.0}, "alpha"),
        ({"scale_by_std": -1.0}, "scale_by_std"),
        ({"threshold_type": "rowwise"}, "threshold_type"),
        ({"threshold_init": "high"}, "threshold_init"),
        ({"sparsity": 0.5}, "sparsity"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "dst", **wrong}})
    assert any(f"pruning_parameters.{key}" in problem.what and problem.remedy for problem in caught.value.problems)


def test_a_goal_can_not_be_given_to_a_method_that_has_none() -> None:
    with pytest.raises(ConfigError, match="finds the sparsity itself") as caught:
        pq.compile(nn.Linear(3, 2), dst() | {"layers": {"linear": {"sparsity": 0.5}}}, torch.zeros(2, 3))
    assert caught.value.code == "PQ407"
