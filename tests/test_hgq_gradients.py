"""HGQ's arithmetic: values and gradients against an autograd composition, formats of no bits, bits that regrow (A.9, B.2, B.4, B.11)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.quantize import HGQData, HGQQuantizer, HGQWeight, fixed_point

LN2 = math.log(2.0)
F64 = torch.float64


def data(k: int, i: Tensor | float, f: Tensor | float, overflow: str = "SAT", **options: Any) -> HGQData:
    """An HGQ data quantizer that has exactly these (fractional) parameters, in float64."""
    i, f = torch.as_tensor(i, dtype=F64), torch.as_tensor(f, dtype=F64)
    shape = tuple(torch.broadcast_shapes(i.shape, f.shape))
    return given_bits(HGQData(shape, 8, overflow=overflow, **options), k, i, f)


def given_bits(q: Any, k: int, i: Tensor, f: Tensor) -> Any:
    q = q.to(F64)
    with torch.no_grad():
        q.k.fill_(k)
        q.i.copy_(i)
        (q.b if q.parametrization == "kbi" else q.f).copy_(i + f if q.parametrization == "kbi" else f)
    q._mark(True)
    return q


def grads(q: HGQQuantizer, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    leaf = x.clone().requires_grad_()
    names = ("i", "b" if q.parametrization == "kbi" else "f")
    return torch.autograd.grad((q(leaf) * weight).sum(), (leaf, *(getattr(q, n) for n in names)))


def rnd(v: Tensor) -> Tensor:
    return v + (v.detach().round() - v.detach())


def composed(x: Tensor, k: int, i: Tensor, f: Tensor, overflow: str) -> Tensor:
    """clamp, scale, round straight through, scale back; i no less than -f, with identity gradient."""
    i, f = rnd(i), rnd(f)
    i = i + (torch.maximum(i, -f) - i).detach()
    b = 2**i - 2**-f
    a = -k * (b if overflow == "SAT_SYM" else 2**i)
    y = torch.where(x > b, b, torch.where(x < a, a, x))
    s = y * 2**f
    return (s + (torch.ceil(torch.floor(2 * s) / 2) - s).detach()) * 2**-f


SHAPES = [(), (1, 4, 1), (1, 4, 5), (1, 1, 5)]


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("parametrization", ["kif", "kbi"])
def test_value_and_gradients_equal_the_composition(overflow: str, k: int, parametrization: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, dtype=F64) * 3
    weight = torch.randn_like(x)
    for shape in SHAPES:
        i = torch.randn(shape, dtype=F64) * 2
        magnitude = torch.randint(0 if overflow == "SAT_SYM" or not k else 1, 7, shape).to(F64) + torch.rand(shape, dtype=F64) * 0.4
        f = (magnitude - i) if parametrization == "kbi" else magnitude.round() - i.round() + 0.3
        q = data(k, i, f, overflow, parametrization=parametrization)
        leaves = [t.clone().requires_grad_() for t in (x, i, magnitude if parametrization == "kbi" else f)]
        fraction = rnd(leaves[2]) - rnd(leaves[1]) if parametrization == "kbi" else leaves[2]
        reference = composed(leaves[0], k, leaves[1], fraction, overflow)
        assert torch.equal(q(x), reference)
        for ours, theirs in zip(grads(q, x, weight), torch.autograd.grad((reference * weight).sum(), leaves)):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "overflow", "expected"),
    [
        (0.3, "SAT", (1.0, 0.0, 0.034657)),
        (5.0, "SAT", (0.0, 2.772589, 0.086643)),
        (-5.0, "SAT", (0.0, -2.772589, 0.0)),
        (-5.0, "SAT_SYM", (0.0, -2.772589, -0.086643)),
        (5.0, "SAT_SYM", (0.0, 2.772589, 0.086643)),
        (3.875, "SAT", (1.0, 0.0, 0.0)),
        (-4.0, "SAT", (1.0, 0.0, 0.0)),
        (-3.875, "SAT_SYM", (1.0, 0.0, 0.0)),
    ],
)
def test_numbers_of_the_table(x: float, overflow: str, expected: tuple[float, ...]) -> None:
    value = torch.tensor([x], dtype=F64)
    one = torch.ones(())
    by_x, by_i, by_f = (float(g) for g in grads(data(1, 2.0, 3.0, overflow), value, one))
    assert (by_x, by_i, by_f) == pytest.approx(expected, abs=1e-6)
    _, by_i_at_b, by_b = (float(g) for g in grads(data(1, 2.0, 3.0, overflow, parametrization="kbi"), value, one))
    assert (by_b, by_i_at_b) == pytest.approx((by_f, by_i - by_f), abs=1e-12)


@pytest.mark.parametrize("parametrization", ["kif", "kbi"])
@pytest.mark.parametrize("x", [0.3, 77.7, -5.3])
def test_wrap_trains_by_rounding_alone(parametrization: Any, x: float) -> None:
    """q is x rounded, dq/dx = 1, dq/df = ln2 (x - q), and i is a buffer that no gradient reaches."""
    q = data(1, 2.0, 3.0, "WRAP", parametrization=parametrization)
    if parametrization == "kbi" and abs(x) > 4:
        return  # i follows the batch, and the fraction with it
    q.i_decay = 0.0
    leaf = torch.tensor([x], dtype=F64, requires_grad=True)
    value = q(leaf)
    value.sum().backward()
    assert value.item() == math.floor(x * 8 + 0.5) / 8
    assert leaf.grad is not None
    assert leaf.grad.item() == 1
    (own,) = (getattr(q, name) for name in q.bit_parameters)
    assert own.grad.item() == pytest.approx(LN2 * (x - value.item()), rel=1e-9)
    assert not isinstance(q.i, torch.nn.Parameter)


# ---- formats of no bits
@pytest.mark.parametrize("f", [-2.0, 0.0, 5.0])
@pytest.mark.parametrize("missing", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
def test_no_bits_are_zero_and_their_gradients_live(f: float, missing: float, k: int, overflow: str) -> None:
    """i + f = -missing: the value is 0 in training too, dq/df = +-ln2 2^-f, and dq/di = +-ln2 2^-f (i counts as -f)."""
    lsb = 2.0**-f
    x = torch.tensor([3.0, -3.0, 0.0], dtype=F64)
    q = data(k, -f - missing, f, overflow)
    if overflow == "SAT" and k and missing == 0:
        return  # the one-bit type {-lsb, 0}
    assert q(x).tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(q.eval()(x), q.train()(x))
    for at, sign in ((0, 1), (1, -k), (2, 0)):
        by_x, by_i, by_f = (float(g) for g in grads(q, x[at : at + 1], torch.ones(())))
        assert by_x == (1.0 if sign == 0 and x[at] == 0 else 0.0)
        assert (by_i, by_f) == pytest.approx((sign * LN2 * lsb, sign * LN2 * lsb))


def test_no_bits_under_wrap() -> None:
    for x in (0.1, -0.1):
        q = data(1, 2.0, 2.0, "WRAP")
        assert grads_of_f(q, x) == pytest.approx(LN2 * x)
    weight = given_bits(HGQWeight((), 8, overflow="WRAP", parametrization="kbi"), 1, torch.tensor(2.0), torch.tensor(-2.0))
    leaf = torch.tensor(3.0, dtype=F64)
    value = weight(leaf)
    value.backward()
    assert value.item() == 0.0
    assert weight.b.grad.item() == pytest.approx(LN2 * 3.0)


def grads_of_f(q: Any, x: float) -> float:
    value = q(torch.tensor([x], dtype=F64))
    assert value.item() == 0
    return float(torch.autograd.grad(value.sum(), q.f)[0])


def test_a_signed_bit_of_sat_is_a_type_for_data_only() -> None:
    """i + f = 0: {-lsb, 0} for data, which pay for the sign; a weight of no magnitude bits is 0."""
    x = torch.tensor([3.0, -3.0], dtype=F64)
    assert data(1, 0.0, 0.0, "SAT")(x).tolist() == [0.0, -1.0]
    assert data(1, -1.0, 0.0, "SAT")(x).tolist() == [0.0, 0.0]
    for parametrization in ("kif", "kbi"):
        made = HGQWeight((2,), 8, overflow="SAT", parametrization=parametrization)  # type: ignore[arg-type]
        weight = given_bits(made, 1, torch.zeros(2), torch.zeros(2))
        assert weight(x).tolist() == [0.0, 0.0]
        assert weight.kif(x)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM", "WRAP"])
@pytest.mark.parametrize("parametrization", ["kif", "kbi"])
def test_bits_regrow_where_the_loss_wants_it(overflow: str, parametrization: Any) -> None:
    """From nothing, gradient descent on |q(w) - w| finds a format that holds w."""
    w = torch.tensor([0.7, -2.6, 0.04])
    q = HGQWeight((3,), 8, overflow=overflow, parametrization=parametrization)
    q.start(w)
    q.begin_learning()
    with torch.no_grad():
        q.get_parameter("b" if parametrization == "kbi" else "f").copy_(torch.zeros(3) if parametrization == "kbi" else -q.i - 2)
    assert q(w).abs().sum() == 0
    assert q.magnitude_bits(w).sum() == 0
    optimizer = torch.optim.Adam([getattr(q, name) for name in q.bit_parameters], 0.05, betas=(0.9, 0.9))
    for _ in range(400):
        optimizer.zero_grad()
        (q(w) - w).abs().sum().backward()
        optimizer.step()
        q.clamp_()
    assert bool(((q(w) - w).abs() < 0.05 * w.abs()).all())
    assert bool((q.magnitude_bits(w) > 2).all())


# ---- against the function
bits = st.floats(-6, 9)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6),
    st.integers(0, 1),
    st.lists(bits, min_size=3, max_size=3),
    st.lists(bits, min_size=3, max_size=3),
    st.sampled_from(("RND", "TRN", "RND_CONV", "RND_ZERO")),
    st.sampled_from(("SAT", "SAT_SYM")),
)
def test_forward_is_fixed_point_with_rounded_bits(
    numbers: list[float], k: int, i: list[float], f: list[float], rounding: str, overflow: str
) -> None:
    x = torch.tensor(numbers, dtype=F64).reshape(2, 3)
    q = data(k, torch.tensor([i]), torch.tensor([f]), overflow, rounding=rounding)
    expected = fixed_point(x, k, torch.tensor([i], dtype=F64), torch.tensor([f], dtype=F64), rounding, overflow)
    assert torch.equal(q(x), expected)
    assert torch.equal(q.frozen()(x), expected)
    assert torch.equal(q(q(x)), q(x))
    assert torch.equal(q.eval()(x), expected)
