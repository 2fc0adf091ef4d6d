"""Formats of fixed width that follow a value: per weight, the range of least squared error, groups of zeros, moving ranges of data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.errors import ConfigError
from pquant_fx.quantize import DynamicQuantizer, TrackedQuantizer, fixed_point
from tests.learned_quantizers import calibrated
from tests.synchronisation import NoSynchronisation

GAUSSIAN = torch.randn(64, 576, generator=torch.Generator().manual_seed(0)) * 0.05


def relative_error(q: DynamicQuantizer, w: Tensor) -> float:
    return float((q(w) - w).norm() / w.norm())


# ---- granularity and range of weights
def test_four_bits_are_enough_for_a_gaussian() -> None:
    """4-bit weights of N(0, 0.05): relative error below 0.12 per channel and 0.07 per weight with the range of least error."""
    errors = {}
    for axis in (None, 0, "each"):
        for kind in ("minmax", "mse"):
            q = DynamicQuantizer(4, axis, range=kind, shape=(64, 576))  # type: ignore[arg-type]
            q.start(GAUSSIAN)
            errors[axis, kind] = relative_error(q, GAUSSIAN)
    assert errors[0, "mse"] < 0.12
    assert errors["each", "mse"] < 0.07
    assert errors[0, "mse"] < 0.8 * errors[0, "minmax"]
    assert errors[None, "mse"] < 0.8 * errors[None, "minmax"]
    assert errors["each", "mse"] == errors["each", "minmax"]


@pytest.mark.parametrize("axis", [None, 0, 1, "each"])
@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
def test_no_other_range_has_a_smaller_error(axis: Any, overflow: str) -> None:
    """Brute force over every i of every group that covers it or saturates (and is no more than 16 below the largest)."""
    w = GAUSSIAN[:6, :40] * torch.logspace(-3, 1, 6).reshape(6, 1)
    q = DynamicQuantizer(4, axis, overflow=overflow, range="mse", shape=tuple(w.shape))
    q.start(w)
    _, i, f = q.kif(w)
    assert torch.equal(i + f, torch.full_like(i, 3.0))
    ours = (q(w) - w).double().square().sum_to_size(i.shape)
    covering = i + q.less if axis != "each" else i
    for other in range(int(i.max()) - 16, 5):
        error = (fixed_point(w, 1, other, 3 - other, overflow=overflow) - w).double().square().sum_to_size(i.shape)
        assert bool(((ours <= error) | (other > covering) | (other < covering - 4)).all())


def test_the_choice_is_kept_until_asked_again() -> None:
    w = GAUSSIAN[:4].clone()
    q = DynamicQuantizer(4, 0, range="mse", shape=tuple(w.shape))
    assert q.less.unique().tolist() == [0.0]  # before `start`, everything is covered
    q.start(w)
    chosen = q.less.clone()
    assert chosen.unique().tolist() == [1.0]
    flat = torch.full_like(w, 0.11)
    assert torch.equal(q(w * 4), 4 * q(w))  # the range itself follows the value at once
    q(flat)
    assert torch.equal(q.less, chosen)
    assert torch.equal(q.train()(w), q.eval()(w))
    assert torch.equal(q.frozen(w)(w), q(w))
    other = DynamicQuantizer(4, 0, range="mse", shape=tuple(w.shape))
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(w), q(w))
    assert torch.equal(copy.deepcopy(q)(w), q(w))
    q.start(flat)
    assert q.less.unique().tolist() == [0.0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6), st.integers(1, 24), st.sampled_from(("SAT", "SAT_SYM", "WRAP")))
def test_a_format_for_each_weight(numbers: list[float], width: int, overflow: str) -> None:
    """W bits of each weight's own binade: an error of at most half an lsb, and nothing saturates."""
    w = torch.tensor(numbers).reshape(3, 2)
    q = DynamicQuantizer(width, "each", overflow=overflow)
    k, i, f = q.kif(w)
    assert k.shape == w.shape
    assert torch.equal(q.frozen(w)(w), q(w))
    if width > 2:
        assert bool(((q(w) - w).abs().double() <= (-f - 1).exp2().double()).all())
        top = w.abs().amax()
        tight = (w != 0) & (w.abs() > top * 2.0**-15)
        assert bool((w.abs()[tight] > (i[tight] - 1 - 2.0 ** (2 - width)).exp2() * 0.99).all())


@pytest.mark.parametrize("axis", [0, "each", None])
@pytest.mark.parametrize("kind", ["minmax", "mse"])
def test_groups_of_zeros_are_constants_that_can_regrow(axis: Any, kind: Any) -> None:
    w = torch.randn(4, 3)
    w[1] = 0.0
    if axis is None:
        w = torch.zeros(4, 3)
    q = DynamicQuantizer(6, axis, range=kind, shape=(4, 3))
    q.start(w)
    k, i, f = q.kif(w)
    zero = (w == 0).expand_as(w) if axis == "each" else (w == 0).all(1, keepdim=True) if axis == 0 else torch.tensor(True)
    assert torch.equal(k, 1 - zero.float())
    assert torch.equal(i + f, 5 * k)
    assert torch.equal(q.magnitude_bits(w), 5 * k)
    assert q.magnitude_bits().item() == 5
    leaf = w.clone().requires_grad_()
    q(leaf).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.ones_like(w))
    assert torch.equal(q.frozen(w)(torch.ones_like(w))[w == 0], torch.zeros(int((w == 0).sum())))
    grown = w + 0.3
    assert q(grown)[1].abs().min() > 0.1


def test_choosing_a_range_waits_for_no_device() -> None:
    w = GAUSSIAN[:8].clone().requires_grad_()
    for axis in (None, 0, "each"):
        q = DynamicQuantizer(4, axis, range="mse", shape=(8, 576))  # type: ignore[arg-type]
        with NoSynchronisation():
            q.start(w)
            q(w).sum().backward()


@pytest.mark.parametrize("overflow", ["WRAP", "WRAP_SM", "SAT_ZERO"])
def test_least_error_needs_saturation_and_a_shape(overflow: str) -> None:
    for make in (lambda: DynamicQuantizer(4, 0, overflow=overflow, range="mse", shape=(2, 2)), lambda: DynamicQuantizer(4, 0, range="mse")):
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.code == "PQ407"


# ---- moving ranges of data
def test_a_range_that_moves_with_the_batches() -> None:
    """m <- 0.75 m + 0.25 batch for both ends in training; eval reads what is stored."""
    first = torch.tensor([[1.0, -3.0], [0.5, 2.0]])
    q = calibrated(TrackedQuantizer(8, (1, 2), momentum=0.25), first)
    assert q.kif()[1].tolist() == [[0.0, 2.0]]
    low, high = torch.tensor([[0.5, -3.0]]), torch.tensor([[1.0, 2.0]])
    for scale in (1.0, 6.0, 9.0, 0.1, 0.1, 0.1, 0.1):
        x = first * scale
        y = q.train()(x)
        low, high = low.lerp(x.amin(0, keepdim=True), 0.25), high.lerp(x.amax(0, keepdim=True), 0.25)
        assert torch.allclose(q.low, low)
        assert torch.allclose(q.high, high)
        k, i, f = q.kif()
        peak = torch.maximum(high, -low)
        assert bool(((peak <= i.exp2()) & (peak > (i - 1).exp2())).all())
        assert torch.equal(k + i + f, torch.full((1, 2), 8.0))
        assert torch.equal(y, fixed_point(x, k, i, f))
        q.eval()
        q(x * 100)
        assert torch.equal(q.kif()[1], i)


def test_a_frozen_range_stays_also_in_training_and_in_checkpoints() -> None:
    x = torch.randn(32, 3)
    q = calibrated(TrackedQuantizer(8, (), momentum=0.5), x)
    q.train()(x * 4)
    q.freeze_range()
    kept = [t.clone() for t in q.kif()]
    q(x * 64)
    assert all(torch.equal(a, b) for a, b in zip(kept, q.kif()))
    other = TrackedQuantizer(8, (), momentum=0.5)
    other.load_state_dict(q.state_dict())
    other.train()(x * 64)
    assert all(torch.equal(a, b) for a, b in zip(kept, other.kif()))
    assert torch.equal(q.frozen()(x), q.eval()(x))
    q.freeze_range(False)
    q.train()(x * 64)
    assert not torch.equal(kept[1], q.kif()[1])


def test_moving_ranges_of_relu_outputs_broken_batches_and_uncalibrated_ones() -> None:
    x = torch.randn(32, 3).relu()
    fresh = TrackedQuantizer(8)
    assert fresh.train()(x) is x
    assert fresh.high.item() == 0
    q = calibrated(TrackedQuantizer(8, non_negative=True, safety_bits=1), x)
    assert q.kif()[0].item() == 0
    before = q.high.clone()
    with NoSynchronisation():
        q.train()(torch.full((2, 3), torch.nan))
        q(x[:0])
    assert torch.equal(q.high, before)
    q(x)
    assert q.kif()[1].item() == 1 + torch.frexp(q.high)[1].item()
