"""Calibration: formats from data by every method, bias grids from their surroundings, bad data, nothing half-set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.errors import CalibrationError, ConfigError
from pquant_fx.quantize.calibration import calibrate
from pquant_fx.quantize.observers import METHODS, make_observer
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, FixedQuantizer
from tests.calibration_graphs import Block, block, data


def relu_values(gm: GraphModule, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, gm.conv_wq(gm.conv.weight), gm.conv.bias)).detach()  # type: ignore[operator, union-attr]


# ---- formats from data
def test_formats_cover_what_was_seen() -> None:
    gm, x = block(), data()
    assert calibrate(gm, [(x[:8],), (x[8:],)]) == 2
    assert [float(t) for t in gm.xq.kif()] == [1, 2, 5]  # type: ignore[operator, union-attr]
    assert 2 < float(x.abs().max()) < 4
    top = float(relu_values(gm, x).max())
    k, i, f = (float(t) for t in gm.rq.kif())  # type: ignore[operator, union-attr]
    assert (k, i + f) == (0, 8)
    assert 2.0 ** (i - 1) < top <= 2.0**i


def test_unsigned_needs_structure_and_data() -> None:
    positive = data().abs()
    for signed, non_negative, x, k in (
        (None, False, positive, 1),
        (None, True, positive, 0),
        (None, True, positive - 1, 1),
        (True, True, positive, 1),
        (False, False, positive - 1, 0),
    ):
        q = CalibratedQuantizer(8, signed=signed, non_negative=non_negative)
        observer = q.new_observer()
        observer.update(x)
        assert float(q.format_for(observer)[0]) == k


def test_per_channel_formats() -> None:
    q = CalibratedQuantizer(8, shape=(1, 3, 1, 1))
    x = torch.randn(5, 3, 4, 4)
    x = x / x.abs().amax((0, 2, 3), keepdim=True) * torch.tensor([3.0, 0.2, 0.0]).reshape(1, 3, 1, 1)
    for method in METHODS:
        observer = make_observer(method, (1, 3, 1, 1))
        observer.update(x)
        q.set_format(*q.format_for(observer))
        assert q.i.shape == (1, 3, 1, 1)
        assert q.i[0, 2] == q.i[0, 0], "a channel of zeros takes the coarsest lsb"
        assert q.i[0, 0] - q.i[0, 1] in (3, 4, 5)
    with pytest.raises(ConfigError) as caught:
        make_observer("minmax", (1, 3, 1, 1)).update(torch.ones(2, 4, 1, 1))
    assert caught.value.code == "PQ306"


def test_minmax_does_not_depend_on_the_batching() -> None:
    formats = []
    for size in (1, 5, 16):
        gm = block()
        calibrate(gm, [(b,) for b in data().split(size)])
        formats.append([float(t) for q in (gm.xq, gm.rq) for t in q.kif()])  # type: ignore[operator, union-attr]
    assert formats[0] == formats[1] == formats[2]


def test_calibrating_twice_gives_the_same() -> None:
    gm, x = block(), data()
    calibrate(gm, [(x,)])
    before = {n: t.clone() for n, t in gm.state_dict().items()}
    calibrate(gm, [(x,)])
    assert all(torch.equal(t, before[n]) for n, t in gm.state_dict().items())


def test_all_zero_data() -> None:
    gm = block()
    calibrate(gm, [(torch.zeros(2, 2, 6, 6),)])
    assert [float(t) for t in gm.xq.kif()] == [1, 0, 7]  # type: ignore[operator, union-attr]


def test_safety_bits() -> None:
    x = torch.tensor([[3.0, -3.0]])
    for options, i in (({}, 2), ({"safety_bits": 2}, 4), ({"overflow": "WRAP"}, 3), ({"overflow": "WRAP", "safety_bits": 0}, 2)):
        q = CalibratedQuantizer(8, **options)  # type: ignore[arg-type]
        observer = q.new_observer()
        observer.update(x)
        k, got, f = q.format_for(observer)
        assert (float(got), float(k + got + f)) == (i, 8)


def test_wrap_never_wraps_what_was_seen() -> None:
    for top in (1.0, 0.999, 0.99):
        q = CalibratedQuantizer(8, overflow="WRAP", safety_bits=0)
        observer = q.new_observer()
        observer.update(torch.tensor([top, -1.0]))
        q.set_format(*q.format_for(observer))
        assert (q(torch.tensor([top, -1.0])) - torch.tensor([top, -1.0])).abs().max() <= 2.0**-7


@pytest.mark.parametrize("method", METHODS)
def test_every_method_calibrates(method: str) -> None:
    gm = block(method=method)
    calibrate(gm, [(data(),)])
    assert all(q.calibrated for q in gm.modules() if isinstance(q, CalibratedQuantizer | AccumulatorQuantizer))
    assert gm(data()).isfinite().all()


# ---- what calibration leaves alone
def test_modes_gradients_and_hooks_are_left_alone() -> None:
    gm = block()
    gm.train()
    gm.fc.eval()  # type: ignore[union-attr]
    modes = [m.training for m in gm.modules()]
    calibrate(gm, [(data(),)])
    assert [m.training for m in gm.modules()] == modes
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in gm.parameters())
    assert not any(m._forward_pre_hooks for m in gm.modules())


def test_given_formats_stay() -> None:
    gm = block()
    gm.rq = FixedQuantizer(0, 1, 3)
    calibrate(gm, [(data(),)])
    assert [float(t) for t in gm.rq.kif()] == [0, 1, 3]


# ---- bad data
def failing(batches: Any, **options: Any) -> tuple[GraphModule, CalibrationError, dict[str, Tensor]]:
    gm = block(**options)
    calibrate(gm, [(data(),)])
    gm.train()
    before = {n: t.clone() for n, t in gm.state_dict().items()}
    with pytest.raises(CalibrationError) as caught:
        calibrate(gm, batches)
    assert all(m.training for m in gm.modules())
    same = all(torch.equal(t, before[n]) for n, t in gm.state_dict().items())
    assert same, "formats changed although calibration failed"
    assert gm(data()).isfinite().all()
    return gm, caught.value, before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_bad_inputs_are_named(value: float, method: str) -> None:
    x = data()
    x[3, 0, 0, 0] = value
    _, error, _ = failing([(data(),), (x,), (data(),)], method=method)
    assert error.code == "PQ305"
    assert error.place.node == "x"
    assert error.place.line == "net.py:1"
    assert len(error.problems) == 1


def test_values_that_become_infinite_are_named() -> None:
    x = torch.zeros(1, 2, 6, 6)
    x[0, :, :3, :3] = 3e38 * Block().conv.weight[0].detach().sign()
    _, error, _ = failing([(x,)])
    assert error.code == "PQ305"
    assert (error.place.node, error.place.module) == ("rq", "rq")


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 2, 6, 6)], iter(())])
def test_no_data(batches: Any) -> None:
    _, error, _ = failing(batches)
    assert error.code == "PQ410"


def test_bad_parameters_are_named() -> None:
    gm = block()
    with torch.no_grad():
        gm.conv.weight[0, 0, 0, 0] = float("nan")  # type: ignore[index, union-attr]
        gm.fc.bias[0] = float("inf")  # type: ignore[index, union-attr]
    with pytest.raises(CalibrationError) as caught:
        calibrate(gm, [(data(),)])
    assert caught.value.code == "PQ305"
    assert [p.place.module for p in caught.value.problems] == ["conv.weight", "fc.bias"]
    assert not gm.xq.calibrated  # type: ignore[union-attr]


def test_an_error_in_the_data_leaves_everything_as_it_was() -> None:
    gm = block()

    def batches() -> Any:
        yield (data(),)
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        calibrate(gm, batches())
    assert not any(q.calibrated for q in (gm.xq, gm.rq, gm.conv_bq))  # type: ignore[union-attr]
    assert torch.equal(gm.xq(data()), data())  # type: ignore[operator]
