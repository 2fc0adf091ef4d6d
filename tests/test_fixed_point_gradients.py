"""Straight-through gradients against closed form and composition; stochastic rounding; torch.compile, vmap, bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pquant_fx.quantize.fixed_point import fixed_point, quantize_value, round_value

LN2 = math.log(2.0)


# ---- gradients
def grads(x: Tensor, k: int, i: Tensor, f: Tensor, rounding: str, overflow: str, weight: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, i, f)]
    q = fixed_point(leaves[0], k, leaves[1], leaves[2], rounding, overflow)
    return torch.autograd.grad((q * weight).sum(), leaves)


def composed(x: Tensor, k: int, i: Tensor, f: Tensor, overflow: str, weight: Tensor) -> tuple[Tensor, ...]:
    """clamp, scale, round straight through, scale back: what the closed form is the derivative of."""
    x, i, f = (t.detach().clone().requires_grad_() for t in (x, i, f))
    ir, fr = i + (i.round() - i).detach(), f + (f.round() - f).detach()
    b = 2**ir - 2**-fr
    a = -k * (b if overflow == "SAT_SYM" else 2**ir)
    y = torch.where(x > b, b, torch.where(x < a, a, x))
    s = y * 2**fr
    q = (s + (torch.ceil(torch.floor(2 * s) / 2) - s).detach()) * 2**-fr
    return torch.autograd.grad((q * weight).sum(), (x, i, f), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("k", [0, 1])
def test_gradients_equal_the_composition(overflow: str, k: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, dtype=torch.float64) * 3
    x[0, :, 0] = torch.tensor([3.875, -4.0, -3.875, 0.0])  # on the bounds
    weight = torch.randn_like(x)
    for shape in ((), (1, 4, 1), (4, 1), (6, 4, 5)):
        i, f = torch.full(shape, 2.2, dtype=torch.float64), torch.full(shape, 2.9, dtype=torch.float64)
        for ours, reference in zip(grads(x, k, i, f, "RND", overflow, weight), composed(x, k, i, f, overflow, weight)):
            assert ours.shape == reference.shape
            torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("x", "kif", "overflow", "expected"),
    [
        (0.3, (1, 2, 3), "SAT", (1, 0.0, LN2 * (0.3 - 0.25))),
        (5.0, (1, 2, 3), "SAT", (0, LN2 * 4, LN2 / 8)),
        (-5.0, (1, 2, 3), "SAT", (0, -LN2 * 4, 0.0)),
        (-5.0, (1, 2, 3), "SAT_SYM", (0, -LN2 * 4, -LN2 / 8)),
        (-5.0, (0, 2, 3), "SAT", (0, 0.0, 0.0)),
        (-5.0, (0, 2, 3), "SAT_SYM", (0, 0.0, 0.0)),
        (3.875, (1, 2, 3), "SAT", (1, 0.0, 0.0)),
        (-4.0, (1, 2, 3), "SAT", (1, 0.0, 0.0)),
        (0.3, (1, 2, 3), "SAT_ZERO", (1, 0.0, LN2 * (0.3 - 0.25))),
        (5.0, (1, 2, 3), "SAT_ZERO", (0, 0.0, 0.0)),
        (5.3, (1, 2, 3), "WRAP", (1, 0.0, LN2 * (5.3 - 5.25))),
        (-5.3, (1, 2, 3), "WRAP_SM", (1, 0.0, LN2 * (-5.3 + 5.25))),
        (5.0, (1, -2, 1), "SAT", (0, 0.0, 0.0)),
        (0.0, (0, 0, 0), "SAT", (0, 0.0, 0.0)),
        (0.3, (1, -2, 1), "WRAP", (0, 0.0, 0.0)),
    ],
)
def test_gradients_in_closed_form(x: float, kif: tuple[int, int, int], overflow: str, expected: tuple[float, float, float]) -> None:
    leaves = [torch.tensor(v, dtype=torch.float64) for v in (x, float(kif[1]), float(kif[2]))]
    got = grads(leaves[0], kif[0], leaves[1], leaves[2], "RND", overflow, torch.ones(()))
    assert [float(g) for g in got] == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_straight_gradient_ignores_the_range() -> None:
    x = torch.tensor([9.0, 0.1, -9.0], requires_grad=True)
    quantize_value(x, 1, 0, 3, "RND", "SAT", straight=True).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_round_value_never_saturates() -> None:
    x = torch.tensor([1000.3, -0.3], requires_grad=True)
    q = round_value(x, 2.0, "RND")
    q.sum().backward()
    assert q.tolist() == [1000.25, -0.25]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]


# ---- stochastic rounding
def test_stochastic_rounding_is_unbiased_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.full((20000,), 0.3)
    q = quantize_value(x, 1, 2, 1, "S_RND", "SAT", training=True)
    assert set(q.tolist()) == {0.0, 0.5}
    assert abs(float(q.mean()) - 0.3) < 0.01
    assert quantize_value(x, 1, 2, 1, "S_RND", "SAT").unique().tolist() == [0.5]
    ties = torch.tensor([0.25, 0.75])
    assert quantize_value(ties, 1, 2, 1, "S_RND", "SAT").tolist() == [0.5, 1.0]
    assert quantize_value(ties, 1, 2, 1, "S_RND_CONV", "SAT").tolist() == [0.0, 1.0]


def test_stochastic_gradient_uses_the_same_draw() -> None:
    noise = torch.tensor([0.1, 0.9], dtype=torch.float64)
    f = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    q = fixed_point(torch.tensor([1.5, 1.5], dtype=torch.float64), 1, 3, f, "S_RND", noise=noise)
    assert q.tolist() == [2.0, 1.0]
    (g,) = torch.autograd.grad((q * torch.tensor([1.0, 10.0], dtype=torch.float64)).sum(), f)
    assert float(g) == pytest.approx(LN2 * (-0.5 + 10 * 0.5))


# ---- torch.compile, vmap, autocast
def both(x: Tensor, i: Tensor, f: Tensor, rounding: str, overflow: str) -> Tensor:
    return fixed_point(x, 1, i, f, rounding, overflow)


def with_grads(function: Callable[..., Tensor], *args: Any) -> list[Tensor]:
    leaves = [a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args]
    q = function(*leaves)
    return [q.detach(), *torch.autograd.grad(q.square().sum(), [a for a in leaves if isinstance(a, Tensor)])]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, for every autograd.Function
@pytest.mark.parametrize(
    ("rounding", "overflow"), [("RND", "SAT"), ("RND_CONV", "SAT_SYM"), ("RND_INF", "SAT_ZERO"), ("TRN", "WRAP"), ("RND_ZERO", "WRAP_SM")]
)
def test_compiles_to_one_graph(rounding: str, overflow: str) -> None:
    torch.manual_seed(0)
    x, i, f = torch.randn(5, 7) * 4, torch.randn(7), torch.full((7,), 3.0)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_grads(compiled, x, i, f, rounding, overflow), with_grads(both, x, i, f, rounding, overflow)):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("rounding", "overflow"), [("RND", "SAT"), ("RND_INF", "SAT_ZERO"), ("RND_CONV", "WRAP"), ("TRN", "WRAP_SM")])
def test_vmap_over_values_and_over_formats(rounding: str, overflow: str) -> None:
    torch.manual_seed(0)
    x, i, f = torch.randn(3, 5) * 4, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 2.0, 1.0])
    expected = torch.stack([both(x[n], i[n], f[n], rounding, overflow) for n in range(3)])
    assert torch.equal(torch.vmap(both, (0, 0, 0, None, None))(x, i, f, rounding, overflow), expected)
    shared = torch.stack([both(x, i_n, f[0], rounding, overflow) for i_n in i])
    assert torch.equal(torch.vmap(both, (None, 0, None, None, None))(x, i, f[0], rounding, overflow), shared)

    def loss(x: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return both(x, i, f, rounding, overflow).square().sum()

    batched = torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(x, i, f)
    for n in range(3):
        for a, b in zip(batched, with_grads(both, x[n], i[n], f[n], rounding, overflow)[1:]):
            torch.testing.assert_close(a[n], b, rtol=1e-6, atol=1e-6)


def test_bfloat16_is_computed_in_float32() -> None:
    x = torch.randn(100).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = fixed_point(x, 1, 2, 12)
    assert q.dtype == torch.float32
    assert torch.equal(q, fixed_point(x.detach().float(), 1, 2, 12))
    q.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
