"""HGQ quantizers through their life: first format, learning, tracking under WRAP, frozen; what EBOPs and the loss read of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pquant_fx.errors import CalibrationError, ConfigError
from pquant_fx.quantize import HGQData, HGQWeight, make_learned
from pquant_fx.quantize.learned import LearnedQuantizer
from tests.learned_quantizers import KINDS, OVERFLOWS, W, X, both, calibrated, data, weight
from tests.synchronisation import NoSynchronisation

each = pytest.mark.parametrize(("overflow", "parametrization"), list(itertools.product(OVERFLOWS, KINDS)))


# ---- the first format
@each
def test_parameters_are_there_from_the_beginning(overflow: str, parametrization: Any) -> None:
    own = "b" if parametrization == "kbi" else "f"
    for q in (HGQWeight((6, 5), 8, overflow=overflow, parametrization=parametrization), HGQData((1, 5), 8, overflow=overflow)):
        own = "b" if q.parametrization == "kbi" else "f"
        names = {own} if overflow == "WRAP" else {"i", own}
        assert {name for name, _ in q.named_parameters()} == set(q.bit_parameters) == names
        before = dict(q.named_parameters())
        assert not q.calibrated
        assert q(W) is W
        with pytest.raises(CalibrationError) as caught:
            q.begin_learning()
        assert caught.value.code == "PQ307"
        q.start(W) if isinstance(q, HGQWeight) else calibrated(q, X)
        assert q.calibrated
        assert all(q.get_parameter(name) is p for name, p in before.items())


def test_defaults_by_role() -> None:
    made = [make_learned("hgq", role, (), 8) for role in ("weight", "bias", "data", "table")]  # type: ignore[arg-type]
    assert [q.overflow for q in made] == ["SAT_SYM", "WRAP", "SAT", "SAT_SYM"]
    assert [getattr(q, "parametrization", None) for q in made] == ["kbi", "kif", "kif", "kbi"]
    assert [type(q) for q in made] == [HGQWeight, HGQWeight, HGQData, HGQData]


def test_a_weight_starts_from_its_magnitude() -> None:
    """Width 8: b = 7 bits; KBI: the i of each group, at most four below the largest; KIF per weight: one, two above the largest."""
    w = torch.tensor([[3.0, 0.3], [1.5, -1e-6], [0.0, -4.0]])
    q = HGQWeight((3, 2), 8)
    q.start(w)
    k, i, f = q.kif()
    assert i.tolist() == [[2.0, -1.0], [1.0, -2.0], [2.0, 2.0]]
    assert (i + f).unique().tolist() == [7.0]
    assert k.unique().tolist() == [1.0]
    alike = HGQWeight((3, 2), 8, parametrization="kif")
    alike.start(w)
    assert alike.kif()[1].unique().tolist() == [4.0]
    channels = HGQWeight((3, 1), 6)
    channels.start(w)
    assert channels.kif()[1].flatten().tolist() == [2.0, 1.0, 2.0]
    assert channels.magnitude_bits().flatten().tolist() == [5.0] * 3
    follows = HGQWeight((3, 2), 8, overflow="WRAP")
    follows.start(w)
    assert follows.f.unique().tolist() == [5.0]  # i is what each value needs


def test_zero_groups_start_with_the_bits_of_the_others() -> None:
    w = W.clone()
    w[2] = 0.0
    q = HGQWeight((6, 5), 8)
    q.start(w)
    assert q(w)[2].abs().sum() == 0
    assert q.kif()[1][2].unique().tolist() == [q.kif()[1].max().item()]
    nothing = HGQWeight((6, 5), 8)
    nothing.start(torch.zeros(6, 5))
    assert nothing.kif()[1].unique().tolist() == [0.0]
    assert isinstance(nothing, LearnedQuantizer)


def test_data_start_from_calibration() -> None:
    q = data(width=6)
    k, i, f = q.kif()
    assert torch.equal(k + i + f, torch.full((1, 5), 6.0))
    peaks = X.abs().amax(0, keepdim=True)
    assert bool((peaks <= i.exp2()).all())
    assert bool((peaks > (i - 1).exp2()).all())
    unsigned = calibrated(HGQData((1, 5), 6, non_negative=True), X.relu())
    assert unsigned.kif()[0].unique().tolist() == [0.0]
    signed = calibrated(HGQData((1, 5), 6, signed=True, non_negative=True), X.relu())
    assert signed.kif()[0].unique().tolist() == [1.0]
    assert torch.equal(data(overflow="WRAP").kif()[1], data(overflow="SAT").kif()[1] + 1)  # a safety bit


@each
def test_calibration_sets_the_format_until_learning_begins(overflow: str, parametrization: Any) -> None:
    w, d = (make(overflow=overflow, parametrization=parametrization) for make in (weight, data))
    first = [t.clone() for t in (*w.kif(W), *d.kif())]
    w.start(W * 8)
    calibrated(d, X * 8)
    moved = [t.clone() for t in (*w.kif(W), *d.kif())]
    assert not torch.equal(first[4], moved[4])
    w.begin_learning()
    d.begin_learning()
    assert w.is_learning
    assert d.is_learning
    learned = [p.detach().clone() for q in (w, d) for p in q.parameters()]
    w.start(W)
    calibrated(d, X)
    assert all(torch.equal(a, b) for a, b in zip(learned, (p for q in (w, d) for p in q.parameters())))


# ---- learning
@each
def test_frozen_is_what_eval_computes(overflow: str, parametrization: Any) -> None:
    w, d = (make(overflow=overflow, parametrization=parametrization) for make in (weight, data))
    with torch.no_grad():
        for p in (*w.parameters(), *d.parameters()):
            p.add_(torch.randn_like(p) * 1.5 - 1)
    for q, x in ((w, W), (d, X)):
        q.eval()
        frozen = q.frozen(x)
        assert torch.equal(frozen(x), q(x))
        assert torch.equal(frozen(q(x)), q(x))
        k, i, f = frozen.kif()
        assert bool(((i + f >= 0) & (k + i + f <= 24)).all())
        if overflow != "WRAP":
            assert torch.equal(q.train()(x), frozen(x))
    assert torch.equal(w.train()(W), w.eval()(W))


def test_bits_are_clamped_in_forward_and_by_clamp() -> None:
    w = weight()
    d = data()
    with torch.no_grad():
        w.b[0] = 99.0
        w.b[1] = -99.0
        d.i[0, 0], d.f[0, 0], d.f[0, 1] = 99.0, 99.0, -99.0
    assert w.magnitude_bits()[0].unique().tolist() == [23.0]
    assert w.magnitude_bits()[1].unique().tolist() == [0.0]
    assert w(W)[1].abs().sum() == 0
    k, i, f = (t.detach() for t in d.kif())
    assert (i[0, 0], (k + i + f)[0, 0]) == (23.0, 24.0)
    values = w(W), d(X)
    w.clamp_()
    d.clamp_()
    assert (w.b.max().item(), w.b.min().item()) == (23.0, 0.0)
    assert (d.i[0, 0].item(), d.f[0, 0].item(), d.f[0, 1].item()) == (23.0, 24.0, -24.0)
    assert torch.equal(w(W), values[0])
    assert torch.equal(d(X), values[1])


def test_more_than_24_bits_in_float64_only() -> None:
    q = HGQWeight((6, 5), 40)
    q.start(W)
    with pytest.raises(ConfigError) as caught:
        q(W)
    assert caught.value.code == "PQ306"
    assert "float64" in caught.value.remedy
    q = q.double()
    assert bool((q(W.double()) - W.double()).abs().max() < 2.0**-30)
    assert torch.equal(q.frozen()(W.double()), q(W.double()))


def test_a_learning_quantizer_waits_for_no_device() -> None:
    for overflow, parametrization in itertools.product(OVERFLOWS, KINDS):
        w, d = (make(overflow=overflow, parametrization=parametrization) for make in (weight, data))
        for q, x in ((w, W.clone().requires_grad_()), (d, X.clone().requires_grad_())):
            q.begin_learning()
            with NoSynchronisation():
                loss = q(x).square().sum() + q.magnitude_bits().sum() + q.regularization()
                loss.backward()
                q.clamp_()


# ---- what EBOPs and the loss read
@each
def test_magnitude_bits(overflow: str, parametrization: Any) -> None:
    """relu(i + f); the gradient lives at 0 bits, except where i is tracked and only follows f."""
    for q, x in both(overflow=overflow, parametrization=parametrization):
        learned = q.get_parameter(q.bit_parameters[-1])
        with torch.no_grad():
            learned.sub_(torch.linspace(0, 12, learned.numel()).reshape(learned.shape))
            learned[..., -1] = -q.i[..., -1].round() if parametrization == "kif" else 0.0
        q(x)
        k, i, f = q.kif(x)
        bits = q.magnitude_bits()
        assert torch.equal(bits, (i + f).clamp(min=0))
        assert torch.equal(q.magnitude_bits(x), bits)
        assert torch.equal(q.sign_bits(x), k)
        grads = torch.autograd.grad(bits.sum(), [q.get_parameter(name) for name in q.bit_parameters], allow_unused=True)
        alive = torch.ones_like(bits)
        if parametrization == "kif":
            alive = (bits > 0 if overflow == "WRAP" else q.i.round() + q.f.round() >= 0).float()
        assert bool((bits == 0).any())
        assert torch.equal(grads[-1], alive)
        if parametrization == "kif" and overflow != "WRAP":
            assert torch.equal(grads[0], alive)
        ((together, signs),) = type(q).bits_of([q], [True])
        assert torch.equal(together, bits)
        assert torch.equal(signs, k)
        assert torch.equal(torch.autograd.grad(together.sum(), q.get_parameter(q.bit_parameters[-1]))[0], alive)


def test_group_norm_scales_the_resource_gradient_alone() -> None:
    plain, normed = (HGQWeight((6, 1), 8, group_size=5, group_grad_norm=on) for on in (False, True))
    found = []
    for q in (plain, normed):
        q.start(W)
        (by_bits,) = torch.autograd.grad(q.magnitude_bits().sum(), q.b)
        (by_value,) = torch.autograd.grad(q(W).sum(), q.b)
        found.append((by_bits, by_value, q.magnitude_bits()))
    assert torch.allclose(found[1][0], found[0][0] / 5**0.5)
    assert torch.equal(found[1][1], found[0][1])
    assert torch.equal(found[1][2], found[0][2])


def test_regularization_sums_what_is_trained() -> None:
    assert weight().regularization().item() == 6 * 5 * 7
    kif = weight(overflow="SAT", parametrization="kif")
    assert kif.regularization().item() == pytest.approx(6 * 5 * 7)
    wrap = weight(overflow="WRAP")
    assert wrap.regularization().item() == pytest.approx(wrap.f.sum().item())
    assert weight(overflow="WRAP", parametrization="kbi").regularization().item() == 6 * 5 * 7
    with torch.no_grad():
        kif.f.sub_(50)
    assert kif.regularization().item() < 0  # monotone, no absolute value
    assert kif.penalty() is None
