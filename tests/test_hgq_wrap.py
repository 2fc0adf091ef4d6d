"""HGQ under WRAP: integer bits that follow the values, rounding without wrapping in training, the trace before freezing (B.3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pquant_fx.errors import CalibrationError
from pquant_fx.quantize import HGQData, HGQWeight, fixed_point
from tests.learned_quantizers import KINDS, OVERFLOWS, X, calibrated, data


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6),
    st.lists(st.floats(-3, 9), min_size=6, max_size=6),
    st.sampled_from(KINDS),
    st.sampled_from(((), (3, 1), (3, 2))),
    st.sampled_from(("RND", "TRN", "RND_CONV", "RND_INF")),
)
def test_weights_never_wrap(numbers: list[float], bits: list[float], parametrization: Any, shape: tuple[int, ...], rounding: str) -> None:
    w = torch.tensor(numbers).reshape(3, 2)
    q = HGQWeight(shape, 8, overflow="WRAP", parametrization=parametrization, rounding=rounding)
    q.start(w)
    with torch.no_grad():
        learned = q.get_parameter(q.bit_parameters[0])
        learned.copy_(torch.tensor(bits)[: learned.numel()].reshape(learned.shape))
    value = q(w)
    k, _, f = q.kif(w)
    f = f.expand_as(w)
    some = (k > 0).expand_as(w)
    unbounded = fixed_point(w.double(), 1, 40 - f.detach().double(), f.detach().double(), rounding).float()
    assert torch.equal(value, torch.where(some, unbounded, torch.zeros_like(w)))
    assert torch.equal(q.frozen(w)(w), value)
    if parametrization == "kif":
        zero = value.abs().amax([d for d, s in enumerate(shape) if s == 1], keepdim=True) if shape else value.abs().amax()
        assert torch.equal(q.magnitude_bits(w) == 0, (zero if shape == (3, 1) or not shape else value.abs()) == 0)


def test_the_integer_bits_of_a_wrapping_weight_are_those_of_its_code() -> None:
    """f alone is trained (HGQ v1): a code has as many magnitude bits as it is long, zero none; kif needs the value."""
    q = HGQWeight((5,), 8, overflow="WRAP")
    q.start(torch.ones(5))
    with torch.no_grad():
        q.f.fill_(2.0)
    w = torch.tensor([0.1, 0.25, -0.25, 1.5, -31.0])
    assert q(w).tolist() == [0.0, 0.25, -0.25, 1.5, -31.0]
    assert q.magnitude_bits().tolist() == [0.0, 1.0, 1.0, 3.0, 7.0]
    assert q.kif(w)[0].tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    with pytest.raises(CalibrationError) as caught:
        q.kif()
    assert caught.value.code == "PQ307"
    before = q.i.clone()
    q.magnitude_bits(w * 9)
    q.kif(w * 9)
    q.eval()(w * 9)
    assert torch.equal(q.i, before)  # reading changes nothing


def test_tracked_range_follows_up_at_once_and_down_slowly() -> None:
    q = calibrated(HGQData((1, 2), 8, overflow="WRAP", safety_bits=0), torch.tensor([[1.5, 0.75]]))
    assert q.i.tolist() == [[1.0, 0.0]]
    f = q.f.detach().clone()
    q.train()
    q(torch.tensor([[7.0, 0.2], [-0.5, 0.1]]))
    assert q.i[0, 0].item() == 3.0
    assert q.i[0, 1].item() == pytest.approx(-0.01)
    for _ in range(60):
        y = q(torch.tensor([[0.3, 0.2], [100.0, 0.1]]))
    assert y[1, 0] == 100.0  # nothing wraps in training
    assert q.i[0].tolist() == pytest.approx([7.0, -0.61], abs=1e-4)
    assert q.kif()[1].tolist() == [[7.0, -1.0]]
    assert torch.equal(q.f, f)
    q.eval()
    x = torch.tensor([[100.0, 0.6]])
    assert torch.equal(q(x), fixed_point(x, 1, torch.tensor([[7.0, -1.0]]), f, overflow="WRAP"))
    assert q(x)[0, 1].item() == pytest.approx(-0.4, abs=0.01)
    stored = q.i.clone()
    q(x * 50)
    assert torch.equal(q.i, stored)


@pytest.mark.parametrize("safety_bits", [None, 0, 2])
def test_trace_before_freezing(safety_bits: int | None) -> None:
    """A calibration after learning: i anew from the quantized values of all batches, plus the safety bits if given; f stays."""
    q = data(overflow="WRAP", safety_bits=safety_bits)
    q.begin_learning()
    with torch.no_grad():
        q.f.fill_(3.3)
        q.i.fill_(9.0)
    batches = [torch.tensor([[0.99, 0.3, 3.0, -0.2, 0.01]]), torch.tensor([[0.2, -0.3, 5.0, -8.0, 0.02]])]
    q.eval()
    calibrated(q, *batches)
    assert q.f.unique().numel() == 1
    # codes of lsb 1/8: 8 (rounded up), -2..2, 40, -64, 0; -64 needs 6 bits
    spare = safety_bits or 0
    assert (q.i + q.f.round()).tolist() == [[4 + spare, 2 + spare, 6 + spare, 6 + spare, 0 + spare]]
    assert q.k.unique().tolist() == [1.0]  # no data prove that a value can not be negative
    x = torch.cat(batches)
    assert torch.equal(q(x), fixed_point(x, 1, 9, 3))


def test_an_observed_learning_quantizer_shows_the_quantized_value() -> None:
    for overflow in OVERFLOWS:
        q = data(overflow=overflow)
        q.begin_learning()
        with torch.no_grad():
            q.get_parameter("f").fill_(0.0)
        observer = q.new_observer()
        q.eval().observe(observer)
        y = q(X)
        assert torch.equal(y, y.round())
        assert not torch.equal(y, X)
        assert torch.equal(observer.extremes[1], y.amax(0, keepdim=True))
        q.observe(None)


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
def test_a_saturating_format_may_be_tracked_too(overflow: str) -> None:
    """Training as under WRAP, rounding alone and i from the batches; eval saturates."""
    q = data(overflow=overflow, tracked=True)
    wrapping = data(overflow="WRAP", safety_bits=0)
    assert q.bit_parameters == ("f",)
    assert torch.equal(q.kif()[1], wrapping.kif()[1])
    q.begin_learning()
    wrapping.begin_learning()
    for x in (X, X * 3, X * 0.1):
        assert torch.equal(q.train()(x), wrapping.train()(x))
        assert torch.equal(q.i, wrapping.i)
    q.eval()
    k, i, f = (t.detach() for t in q.kif())
    assert torch.equal(q(X * 100), fixed_point(X * 100, k, i, f, overflow=overflow))
    assert torch.equal(q.frozen()(X * 100), q(X * 100))
    calibrated(q, X)
    assert bool((q.kif()[1] <= X.abs().amax(0).log2().ceil() + 1).all())
    assert torch.equal(q(X), wrapping.train()(X))


def test_without_decay_limit_the_range_is_that_of_the_last_batch() -> None:
    q = data(overflow="WRAP", i_decay=float("inf"))
    q.train()(X * 8)
    wide = q.i.clone()
    q(X * 0.5)
    assert torch.equal(q.i, wide - 4)
