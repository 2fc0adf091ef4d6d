"""The quantizer modules: formats, uncalibrated behaviour, copies and states, freezing, one graph under torch.compile."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from pquant_fx.errors import CalibrationError, ConfigError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.quantize.fixed_point import fixed_point, quantize_value
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer, FixedQuantizer

WEIGHT = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.01, 4.0, 0.3, 1e-4, 1.0]).reshape(
    6, 1, 1, 1
)
BIAS = torch.randn(6, generator=torch.Generator().manual_seed(1))


def every_quantizer() -> list[tuple[Quantizer, Tensor]]:
    calibrated = CalibratedQuantizer(8, non_negative=True)
    calibrated.set_format(0, 2, 6)
    return [
        (FixedQuantizer(1, 2, 5), WEIGHT),
        (FixedQuantizer(1, torch.arange(6.0).reshape(6, 1, 1, 1), 3, "RND_CONV", "SAT_SYM"), WEIGHT),
        (calibrated, WEIGHT),
        (DynamicQuantizer(8), WEIGHT),
        (DynamicQuantizer(4, None, "TRN", "SAT_SYM"), WEIGHT),
        (AccumulatorQuantizer(torch.arange(6.0) + 8, calibrated=True), BIAS),
    ]


def names(cases: list[tuple[Quantizer, Tensor]]) -> list[str]:
    return [f"{type(q).__name__}{n}" for n, (q, _) in enumerate(cases)]


CASES = every_quantizer()
each = pytest.mark.parametrize(("quantizer", "x"), CASES, ids=names(CASES))


# ---- what holds for all of them
@each
def test_kif_is_what_forward_does(quantizer: Quantizer, x: Tensor) -> None:
    k, i, f = quantizer.kif(x)
    assert all(torch.equal(t, t.round()) for t in (k, i, f))
    assert torch.equal(quantizer(x), quantize_value(x, k, i, f, quantizer.rounding, quantizer.overflow))
    assert not torch.equal(quantizer(x), x)


@each
def test_train_and_eval_agree(quantizer: Quantizer, x: Tensor) -> None:
    quantizer = copy.deepcopy(quantizer)
    assert torch.equal(quantizer.train()(x), quantizer.eval()(x))


@each
def test_copies_pickles_and_states(quantizer: Quantizer, x: Tensor) -> None:
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(x), quantizer(x))
    buffer = io.BytesIO()
    torch.save(quantizer.state_dict(), buffer)
    buffer.seek(0)
    blank = {
        FixedQuantizer: lambda: FixedQuantizer(1, 0, 0, quantizer.rounding, quantizer.overflow),
        CalibratedQuantizer: lambda: CalibratedQuantizer(8),
        DynamicQuantizer: lambda: copy.deepcopy(quantizer),
        AccumulatorQuantizer: lambda: AccumulatorQuantizer(),
    }[type(quantizer)]()
    blank.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(blank(x), quantizer(x))
    assert blank.calibrated


@each
def test_float64(quantizer: Quantizer, x: Tensor) -> None:
    double = copy.deepcopy(quantizer).to(torch.float64)
    assert double(x.double()).dtype == torch.float64
    assert torch.equal(double(x.double()), quantizer(x).double())


@each
def test_frozen_gives_the_same_bits_and_keeps_them(quantizer: Quantizer, x: Tensor) -> None:
    frozen = quantizer.frozen(x)  # type: ignore[operator]
    assert type(frozen) is FixedQuantizer
    q = quantizer(x)
    assert torch.equal(frozen(x), q)
    assert torch.equal(frozen(q), q)
    assert not frozen.training


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, for every autograd.Function
def test_one_graph_under_torch_compile() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(WEIGHT.clone()), nn.Parameter(BIAS.clone())
            self.data = CalibratedQuantizer(8)
            self.data.set_format(1, 2, 5)
            self.weights, self.biases = DynamicQuantizer(8), AccumulatorQuantizer(torch.full((6,), 14.0), calibrated=True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.conv2d(self.data(x), self.weights(self.weight), self.biases(self.bias))

    layer, x = Layer(), torch.randn(2, 3, 6, 6)
    fast = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for model in (layer, fast):
        layer.zero_grad()
        y = model(x)
        y.square().sum().backward()
        results.append((y.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert len(results[0]) == 3


def test_gradients_reach_the_value() -> None:
    for quantizer, x in every_quantizer():
        leaf = x.clone().requires_grad_()
        quantizer(leaf).sum().backward()
        assert leaf.grad is not None
        if not isinstance(quantizer, FixedQuantizer):
            assert torch.equal(leaf.grad, torch.ones_like(x))


def test_no_name_collides_with_module_attributes() -> None:
    for quantizer, _ in every_quantizer():
        assert not {name for name, _ in quantizer.named_buffers()} & set(dir(nn.Module))


# ---- FixedQuantizer
def test_fixed_equals_the_function() -> None:
    x = torch.randn(50) * 4
    for rounding in (m for m in ROUNDING_MODES if not m.startswith("S_")):
        for overflow in OVERFLOW_MODES:
            assert torch.equal(FixedQuantizer(1, 1, 3, rounding, overflow)(x), fixed_point(x, 1, 1, 3, rounding, overflow))


def test_fixed_limits_and_text() -> None:
    q = FixedQuantizer(1, 2, 5)
    assert (q.minimum, q.maximum) == (-4.0, 3.96875)
    assert FixedQuantizer(1, 2, 5, overflow="SAT_SYM").minimum == -3.96875
    assert "fixed<8,3>" in repr(q)
    assert "ufixed<8,0>" in repr(FixedQuantizer(0, 0, 8))
    assert "fixed<6..8,3>" in repr(FixedQuantizer(1, 2, torch.tensor([3.0, 5.0])))
    assert "zero" in repr(FixedQuantizer(0, 0, 0))


def test_set_format_in_place_and_to_another_shape() -> None:
    q = FixedQuantizer(1, torch.zeros(3, 1), 4, calibrated=False)
    before = q.i.data_ptr()
    q.set_format(1, 2, 3)
    assert q.i.data_ptr() == before
    assert q.i.shape == (3, 1)
    assert q.i.unique().item() == 2
    q.set_format(torch.ones(2, 1, 1), 2, 3)
    assert q.f.shape == (2, 1, 1)
    assert q.calibrated


@pytest.mark.parametrize(
    "kif",
    [(2, 1, 1), (0.5, 1, 1), (1, float("nan"), 1), (1, 1, float("inf")), (1, 200, -195), (1, 30, 30), (1, torch.tensor([0.0, 40.0]), 20)],
)
def test_impossible_formats(kif: tuple[float | Tensor, float | Tensor, float | Tensor]) -> None:
    q = FixedQuantizer(1, 2, 3)
    for attempt in (lambda: FixedQuantizer(*kif), lambda: q.set_format(*kif)):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.code == "PQ306"
    assert [float(t) for t in q.kif()] == [1, 2, 3]


def test_wrap_sm_is_signed() -> None:
    with pytest.raises(ConfigError) as caught:
        FixedQuantizer(0, 2, 3, overflow="WRAP_SM")
    assert caught.value.code == "PQ306"


def test_more_than_24_bits_need_float64() -> None:
    for quantizer in (FixedQuantizer(1, 15, 16), DynamicQuantizer(32)):
        with pytest.raises(ConfigError) as caught:
            quantizer(torch.ones(2, 2))
        assert caught.value.code == "PQ306"
        x = torch.full((2, 2), 1 / 3, dtype=torch.float64)
        assert quantizer(x).sub(x).abs().max() <= 2.0**-16
    loaded = FixedQuantizer(1, 2, 3)
    loaded.load_state_dict(FixedQuantizer(1, 15, 16).state_dict())
    with pytest.raises(ConfigError):
        loaded(torch.ones(1))


def test_not_calibrated_passes_through() -> None:
    x = torch.randn(5, 4)
    for quantizer in (FixedQuantizer(1, 0, 1, calibrated=False), CalibratedQuantizer(8), AccumulatorQuantizer()):
        assert quantizer(x) is x
        assert not quantizer.calibrated
        assert (quantizer.minimum, quantizer.maximum) == (-float("inf"), float("inf"))
        assert "not calibrated" in repr(quantizer)
        with pytest.raises(CalibrationError) as caught:
            quantizer.frozen(x)
        assert caught.value.code == "PQ307"
        other = copy.deepcopy(quantizer)
        other.load_state_dict(quantizer.state_dict())
        assert not other.calibrated


def test_no_edit_of_the_buffers_goes_unnoticed() -> None:
    """The constants that forward keeps are those of the buffers as they are."""
    x = torch.randn(20) * 8
    q = FixedQuantizer(1, 1, 3)
    assert torch.equal(q(x), fixed_point(x, 1, 1, 3))
    q.i.fill_(3)
    assert torch.equal(q(x), fixed_point(x, 1, 3, 3))
    other = copy.deepcopy(q)
    other.f.sub_(2)
    assert torch.equal(other(x), fixed_point(x, 1, 3, 1))
    q.set_format(0, 2, 2)
    assert torch.equal(q(x), fixed_point(x, 0, 2, 2))
    q.load_state_dict(FixedQuantizer(1, 0, 4).state_dict())
    assert torch.equal(q(x), fixed_point(x, 1, 0, 4))
    assert torch.equal(torch.func.functional_call(q, {"i": torch.tensor(2.0)}, x), fixed_point(x, 1, 2, 4))
    assert torch.equal(q(x), fixed_point(x, 1, 0, 4))
    stacked = torch.vmap(lambda i: torch.func.functional_call(q, {"i": i}, x))(torch.tensor([1.0, 2.0]))
    assert torch.equal(stacked, torch.stack([fixed_point(x, 1, i, 4) for i in (1, 2)]))
    assert torch.equal(q(x), fixed_point(x, 1, 0, 4))
    assert torch.equal(q(x.double()), fixed_point(x.double(), 1, 0, 4))


def test_inference_mode_leaves_nothing_behind() -> None:
    q, x = FixedQuantizer(1, 1, 3), torch.randn(5, requires_grad=True)
    with torch.inference_mode():
        q(x)
    q(x).sum().backward()
    assert x.grad is not None
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        q(torch.empty(3, dtype=torch.float64))
    assert type(q(x.double())) is Tensor


def test_stochastic_rounding_freezes_to_its_evaluation_mode() -> None:
    torch.manual_seed(0)
    for mode, frozen in (("S_RND", "RND"), ("S_RND_CONV", "RND_CONV")):
        quantizer = FixedQuantizer(1, 3, 1, mode)
        x = torch.full((1000,), 0.25)
        assert quantizer.train()(x).unique().numel() == 2
        assert torch.equal(quantizer.eval()(x), fixed_point(x, 1, 3, 1, frozen))
        assert quantizer.frozen().rounding == frozen


def test_snapshot_brings_the_format_back() -> None:
    q = FixedQuantizer(1, 2, 3, calibrated=False)
    restore = q.snapshot()
    q.set_format(1, torch.ones(4, 1), 30)
    restore()
    assert not q.calibrated
    assert [float(t) for t in q.kif()] == [1, 2, 3]
