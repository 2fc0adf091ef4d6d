"""Metrics of a constraint: values, gradients against explicit formulas and finite differences, and what they lead a training to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pquant_fx as pq
from pquant_fx.prune import Layout, MDMMMask, Member
from pquant_fx.prune.mdmm_metrics import bell_width, count, tail, zeros
from pquant_fx.prune.weight_groups import WeightGroups
from tests.mdmm_masks import AT_ONCE, begun
from tests.models import MLP, digits_like


# ---- tail
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-6, 0.5, 2.0, 7.0]), min_size=1, max_size=12), st.integers(0, 2**12 - 1))
def test_the_tail_is_the_share_of_what_goes(numbers: list[float], bits: int) -> None:
    keep = [float(bits >> n & 1) for n in range(len(numbers))]
    total = sum(numbers)
    expected = sum(a for a, k in zip(numbers, keep) if not k) / total if total else 0.0
    got = tail(torch.tensor(numbers, dtype=torch.float64), torch.tensor(keep, dtype=torch.float64))
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_of_the_tail_shrinks_what_goes_and_leaves_what_stays() -> None:
    """sign(w) / sum |w| on the tail. The share could also fall by kept weights that grow, without limit and without use."""
    w = torch.tensor([[3.0, -0.5], [0.25, -2.0]], requires_grad=True)
    mask = begun(w, 0.5, **AT_ONCE)
    mask.metric(w).backward()
    assert w.grad is not None
    assert w.grad.flatten().tolist() == pytest.approx([0, -1 / 5.75, 1 / 5.75, 0])


def test_groups_are_shrunk_along_themselves() -> None:
    w = torch.tensor([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0]], requires_grad=True)
    mask = begun(w, 0.6, metric_type="StructuredSparsity", **AT_ONCE)
    assert mask.mask.tolist() == [[1, 1], [0, 0], [0, 0]]
    mask.metric(w).backward()
    assert w.grad is not None
    expected = torch.tensor([[0, 0], [0.6 / 5.5, 0.8 / 5.5], [0, 0]])
    assert torch.allclose(w.grad, expected)


# ---- counts
@pytest.mark.parametrize("mode", ["coarse", "smooth"])
@pytest.mark.parametrize("kind", ["UnstructuredSparsity", "StructuredSparsity"])
def test_the_gradient_of_the_count_is_that_of_finite_differences(mode: str, kind: str) -> None:
    torch.manual_seed(0)
    w = torch.randn(3, 4, dtype=torch.float64)
    w[0] *= 1e-4
    mask = begun(w, 0.7, metric_type=kind, l0_mode=mode, measure="count", **{**AT_ONCE, "epsilon": 1e-2})
    if mask.width is not None:
        mask.width.fill_(0.4)
    leaf = w.clone().requires_grad_()
    mask.metric(leaf).backward()
    assert leaf.grad is not None
    assert bool((leaf.grad != 0).all())
    for n in range(w.numel()):
        step = torch.zeros_like(w)
        step.view(-1)[n] = 1e-7
        slope = (mask.metric(w + step) - mask.metric(w - step)).item() / 2e-7
        assert leaf.grad.view(-1)[n].item() == pytest.approx(slope, abs=1e-5)


def test_counts() -> None:
    amounts = torch.tensor([0.0, 0.5e-3, 1e-3, 1.0])
    assert zeros(amounts, 1e-3).item() == 0.75
    assert zeros(amounts, 1e-4).item() == 0.25  # epsilon says what is zero
    assert count(amounts, 0.75, 1e-3).item() == 0.0
    assert count(amounts, 0.9, 1e-3).item() == pytest.approx((0.81 - 0.5625) * 1.0015 / 4)
    assert count(amounts, 0.5, 1e-3).item() < 0
    width = torch.tensor(0.1)
    bells = np.exp(-(np.array([0, 0.5e-3, 1e-3, 1.0]) ** 2) / 0.02).mean()
    assert zeros(amounts, 1e-3, width).item() == pytest.approx(bells, rel=1e-5)


def test_the_smooth_count_narrows_from_half_the_rms_to_epsilon() -> None:
    start = torch.tensor(0.2, dtype=torch.float64)
    assert [bell_width(start, 1e-3, p).item() for p in (0, 0.5, 1)] == pytest.approx([0.2, (0.2 * 1e-3) ** 0.5, 1e-3])
    assert bell_width(torch.tensor(0.0), 1e-3, 0.0).item() == pytest.approx(1e-3)
    w = torch.tensor([[3.0, 4.0]])
    mask = begun(w, l0_mode="smooth")
    assert mask.width is not None
    assert mask.width.item() == pytest.approx(0.5 * 12.5**0.5)
    MDMMMask.step([Member(mask, w)], 10, 10)
    assert mask.width.item() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, (0.81 - 0.25) * 1.5),
        ({"target_sparsity": 0.5}, 0.0),
        ({"epsilon": 2.5}, (0.81 - 0.5625) * 1.5),
        ({"scale_mode": "sum"}, 4 * (0.81 - 0.25) * 1.5),
        ({"target_value": 0.2}, (0.81 - 0.25) * 1.5 - 0.2),
        ({"l0_mode": "smooth"}, None),
        ({"metric_type": "StructuredSparsity"}, (0.81 - 0.25) * 20**0.5 / 2),
    ],
)
def test_each_setting_changes_the_count(changed: dict[str, Any], expected: float | None) -> None:
    w = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    mask = begun(w, **{**AT_ONCE, "measure": "count", "epsilon": 1e-3, "damping": 2.0, "scale": 1.0, **changed})
    found = mask.penalty(w)
    assert found is not None
    if expected is None:
        assert found.item() != pytest.approx(((0.81 - 0.25) * 1.5) ** 2, rel=1e-3)
    else:
        assert found.item() == pytest.approx(expected**2, rel=1e-5, abs=1e-9)


# ---- groups
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.booleans())
def test_groups_partition_the_weights_in_hardware_order(outputs: int, inputs: int, side: int, size: int, per_output: bool) -> None:
    w = torch.randn(outputs, inputs, side, 1)
    groups = WeightGroups(Layout(), size, per_output)
    ordered = w.permute(0, 2, 3, 1).reshape(outputs if per_output else 1, -1) if size > 1 else w.reshape(1, -1)
    expected = [line[n : n + size] for line in ordered for n in range(0, len(line), size)]
    norms = groups.amounts(w)
    assert norms.tolist() == pytest.approx([float(part.norm()) for part in expected], rel=1e-5)
    chosen = (torch.rand(len(norms)) > 0.5).float()
    mask = groups.spread(chosen, w)
    assert mask.shape == w.shape
    assert torch.equal(groups.kept(mask), chosen)
    assert groups.amounts(w * mask).tolist() == pytest.approx((norms * chosen).tolist(), rel=1e-5)


def test_whole_outputs_and_blocks() -> None:
    w = torch.tensor([[1.0, 1.0, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3]])
    whole = begun(w, 0.5, metric_type="StructuredSparsity", **AT_ONCE)
    assert whole.mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert whole.units(w) is not None
    blocks = begun(w, 0.5, metric_type="StructuredSparsity", rf=2, **AT_ONCE)
    assert blocks.mask.sum(1).tolist() == [2, 2]
    assert blocks.mask[0].tolist() == [1, 1, 0, 0]
    assert blocks.units(w) is None


# ---- in a training
@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 0.9),
        ({"measure": "count"}, 0.9),
        ({"l0_mode": "smooth", "target_sparsity": 0.8}, 0.8),
        ({"constraint_type": "LessThanOrEqual", "target_value": 1e-3}, 0.9),
        ({"metric_type": "StructuredSparsity", "target_sparsity": 0.5, "disable_pruning_for_layers": ["6"]}, 0.5),
        ({"metric_type": "NMSparsity"}, 0.5),
        ({"metric_type": "FPGAAwareSparsity", "rf": 2, "target_sparsity": 0.5}, 0.5),
        ({"use_grad": True}, 0.9),
    ],
)
def test_the_target_is_reached_and_the_mask_stands(options: dict[str, Any], share: float) -> None:
    torch.manual_seed(0)
    x, y = digits_like(160)
    training = {"epochs": 6, "fine_tuning_epochs": 2, "batch_size": 32, "learning_rate": 5e-3}
    model = pq.compile(MLP(), {"preset": "mdmm", "training_parameters": training, "pruning_parameters": options}, x[:32])
    masks = [m for m in model.modules() if isinstance(m, MDMMMask)]
    model.fit((x, y))
    kept = sum(float(m.mask.sum()) for m in masks) / sum(m.mask.numel() for m in masks)
    assert 1 - kept == pytest.approx(share, abs=0.01)
    weights = dict(model.named_parameters())
    for n, mask in zip((0, 2, 4, 6), masks):
        assert bool((weights[f"{n}.weight"][mask.mask == 0] == 0).all())
    model.eval()
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(model.freeze()(x).float(), expected)


def test_a_structured_constraint_takes_biases_along_when_it_is_fixed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
    pruning = {"metric_type": "StructuredSparsity", "target_sparsity": 0.5, "disable_pruning_for_layers": ["2"]}
    training = {"pretraining_epochs": 0, "epochs": 2, "fine_tuning_epochs": 0, "batch_size": 32}
    settings = {"preset": "float", "training_parameters": training, "pruning_parameters": {"pruning_method": "mdmm", **pruning}}
    model = pq.compile(net, settings, x)
    model.fit((x, y))
    (mask,) = (m for m in model.modules() if isinstance(m, MDMMMask))
    gone = mask.mask[:, 0] == 0
    assert int(gone.sum()) == 3
    model.eval()
    state = model.state_dict()
    hidden = torch.relu(x @ state["0.weight"].T + state["0.bias"] * (~gone))
    assert torch.allclose(model(x), hidden @ state["2.weight"].T + state["2.bias"], atol=1e-5)
