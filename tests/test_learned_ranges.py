"""Trained ranges of fixed width, TQT, LSQ-PoT and PACT: their gradients as the papers write them, first formats, frozen (A.13)."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pquant_fx.errors import ConfigError
from pquant_fx.quantize import LSQData, LSQWeight, PACTData, TQTData, TQTWeight, fixed_point
from tests.learned_quantizers import W, X, calibrated
from tests.synchronisation import NoSynchronisation

LN2 = math.log(2.0)


def every() -> list[tuple[Any, Tensor]]:
    """One of each kind with its first format, per tensor and per channel, and a value."""
    found: list[tuple[Any, Tensor]] = []
    for shape in ((), (1, 5)):
        found += [(calibrated(kind(shape, 6), X), X) for kind in (TQTData, LSQData)]
        found += [(calibrated(kind(shape, 6, non_negative=True), X.relu()), X.relu()) for kind in (TQTData, LSQData, PACTData)]
    for shape in ((), (6, 1)):
        for kind in (TQTWeight, LSQWeight):
            for overflow in ("SAT", "SAT_SYM"):
                q = kind(shape, 6, overflow=overflow)
                q.start(W)
                found.append((q, W))
    return found


CASES = every()
each = pytest.mark.parametrize(("q", "x"), CASES, ids=[f"{type(q).__name__}{n}" for n, (q, _) in enumerate(CASES)])


def codes(q: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """s = x / lsb, its rounding, the smallest and the largest code, lsb: independent of the kernel."""
    k, _, f = (t.detach() for t in q.kif())
    s = x * 2.0**f
    high = 2.0 ** (q.width - k) - 1
    low = -k * (high if q.overflow == "SAT_SYM" else high + 1)
    return s, torch.floor(s + 0.5), low, high, 2.0**-f


def groups(q: Any, elements: Tensor) -> Tensor:
    return elements.sum_to_size(q.shape)


# ---- gradients
@each
def test_gradients_are_those_of_the_paper(q: Any, x: Tensor) -> None:
    """TQT: dq/dt = ln2 lsb {n - s inside, n_lo or n_hi outside}; LSQ: dq/dD {round(v) - v, ...} D ln2 / sqrt(N n_hi); dq/dx gates."""
    if isinstance(q, PACTData):
        return
    x = (x * 5).double()
    q = copy.deepcopy(q).double()
    s, n, low, high, lsb = codes(q, x)
    inside = (s >= low) & (s <= high)
    factor = torch.where(inside, n - s, torch.where(s > high, high, low))
    weight = torch.randn_like(x)
    expected = groups(q, weight * factor * lsb * LN2)
    if isinstance(q, (LSQData, LSQWeight)):
        values = x.numel() // torch.Size(q.shape).numel() // (len(x) if isinstance(q, LSQData) else 1)
        k = q.kif()[0]
        expected = expected / (values * (2.0 ** (q.width - k) - 1)).sqrt()
    leaf = x.clone().requires_grad_()
    by_x, by_t = torch.autograd.grad((q(leaf) * weight).sum(), (leaf, q.t))
    torch.testing.assert_close(by_t, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(by_x, weight * inside)
    assert bool((~inside).any())


def test_pact_clips_where_it_learned_to() -> None:
    """Training: q(clip(x, 0, a)) and dq/da = 1[x >= a]; eval and the frozen format round a up to 2^i."""
    q = calibrated(PACTData((1, 2), 4, non_negative=True), torch.tensor([[3.0, 0.7]]))
    assert q.a.flatten().tolist() == pytest.approx([3.0, 0.7])
    assert [t.flatten().tolist() for t in q.kif()] == [[0.0, 0.0], [2.0, 0.0], [2.0, 4.0]]
    with torch.no_grad():
        q.a.copy_(torch.tensor([[2.6, 0.51]]))
    x = torch.tensor([[3.2, 0.2], [2.6, 0.9], [0.6, 0.51], [-1.0, -1.0]], requires_grad=True)
    y = q(x)
    assert y.tolist() == [[2.5, 0.1875], [2.5, 0.5], [0.5, 0.5], [0.0, 0.0]]
    by_x, by_a = torch.autograd.grad(y.sum(), (x, q.a))
    assert by_a.tolist() == [[2.0, 2.0]]
    assert by_x.tolist() == [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert q.eval()(x).tolist() == [[3.25, 0.1875], [2.5, 0.875], [0.5, 0.5], [0.0, 0.0]]
    penalty = q.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(1e-4 * (2.6**2 + 0.51**2))
    (by_penalty,) = torch.autograd.grad(penalty, q.a)
    assert torch.allclose(by_penalty, 2e-4 * q.a)


# ---- the first format
def test_a_threshold_starts_at_the_largest_magnitude() -> None:
    w = torch.tensor([[0.3, -0.1], [1.0, 0.2], [-5.0, 2.0], [0.0, 0.0]])
    q = TQTWeight((4, 1), 8)
    q.start(w)
    assert q.t.flatten().tolist() == pytest.approx([math.log2(0.3), 0.0, math.log2(5.0), 3.0])
    assert q.kif()[1].flatten().tolist() == [-1.0, 0.0, 3.0, 3.0]
    assert q.kif()[2].flatten().tolist() == [8.0, 7.0, 4.0, 4.0]
    whole = TQTWeight((), 8)
    whole.start(w)
    assert [t.item() for t in whole.kif()] == [1.0, 3.0, 4.0]


def test_a_step_starts_as_esser_does() -> None:
    w = torch.randn(7, 40)
    for shape, mean in (((), w.abs().mean()), ((7, 1), w.abs().mean(1, keepdim=True))):
        q = LSQWeight(shape, 4)
        q.start(w)
        assert torch.allclose(q.t, (2 * mean / math.sqrt(7)).log2())
        assert torch.equal(q.kif()[2], -q.t.detach().round())


def test_data_begin_with_the_calibrated_format() -> None:
    for kind in (TQTData, LSQData):
        q = calibrated(kind((1, 5), 7), X)
        k, i, f = q.kif()
        peaks = X.abs().amax(0, keepdim=True)
        assert bool(((peaks <= i.exp2()) & (peaks > (i - 1).exp2())).all())
        assert torch.equal(k + i + f, torch.full((1, 5), 7.0))
        moved = calibrated(q, X * 4)
        assert torch.equal(moved.kif()[1], i + 2)
        q.begin_learning()
        assert torch.equal(calibrated(q, X).kif()[1], i + 2)


# ---- as quantizers
@each
def test_kif_is_what_forward_does_and_frozen_stays(q: Any, x: Tensor) -> None:
    q = copy.deepcopy(q)
    with torch.no_grad():
        for p in q.parameters():
            p.mul_(0.9)
    k, i, f = q.kif()
    assert all(torch.equal(t, t.round()) for t in (k, i, f))
    assert torch.equal((k + i + f).detach(), torch.full(q.shape, 6.0))
    expected = fixed_point(x, k, i.detach(), f.detach(), overflow=q.overflow)
    assert torch.equal(q.eval()(x), expected)
    assert torch.equal(q.frozen()(x), expected)
    if not isinstance(q, PACTData):
        assert torch.equal(q.train()(x), expected)
    restored = type(q)(q.shape, 6, overflow=q.overflow, **({"non_negative": True} if isinstance(q, PACTData) else {}))
    restored.load_state_dict(q.state_dict())
    assert torch.equal(restored.eval()(x), expected)
    assert q.regularization().item() == 0


@each
def test_training_waits_for_no_device(q: Any, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    with NoSynchronisation():
        (q.train()(leaf).sum() + q.magnitude_bits().sum()).backward()
        q.clamp_()


@pytest.mark.parametrize(("kind", "width"), [(TQTWeight, 3), (TQTWeight, 5), (LSQWeight, 3), (LSQWeight, 4)])
def test_training_the_range_alone_finds_a_good_one(kind: Any, width: int) -> None:
    """Descent on the squared error, from a range 8 times too wide, comes within a bit of the best of all ranges."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 0.3
    q = kind((), width)
    q.start(x * 8)
    q.begin_learning()
    optimizer = torch.optim.Adam(q.parameters(), 0.1)
    best = min(float((fixed_point(x, 1, i, width - 1 - i) - x).square().mean()) for i in range(-6, 6))
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (q(x) - x).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        q.clamp_()
    assert losses[0] > 10 * best
    assert min(losses) <= 4.2 * best


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: TQTData((), 8, overflow="WRAP"), "PQ306"),
        (lambda: LSQWeight((), 8, overflow="SAT_ZERO"), "PQ306"),
        (lambda: TQTWeight((), 0), "PQ306"),
        (lambda: PACTData((), 8), "PQ407"),
        (lambda: PACTData((), 8, signed=True, non_negative=True), "PQ407"),
        (lambda: PACTData((), 8, non_negative=True, overflow="SAT_SYM"), "PQ306"),
    ],
)
def test_refusals(make: Any, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == code
