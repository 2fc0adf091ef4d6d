"""Leaky ReLUs of any slope and PReLU: numbers, notes, and the same bits everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.interval_rules import RULES
from pquant_fx.graph.intervals import Inexact, Interval, constant
from pquant_fx.passes.lift_numbers import significant_bits


class Net(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.a, self.act = nn.Conv1d(2, 3, 2), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.a(x))


def compiled(act: nn.Module, **quantization: Any) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(200, 2, 5)
    return pq.compile(Net(act), {"preset": "fixed8", "quantization_parameters": quantization}, x), x


@pytest.mark.parametrize(
    ("slope", "bits", "rounded"),
    [
        (0.01, 8, 5 / 512),
        (0.2, 8, 26 / 128),
        (0.3, 4, 0.3125),
        (1.3, 8, 83 / 64),
        (-0.7, 5, -0.6875),
        (1e-3, 16, 33 / 2**15),
        (0.3, 2, 0.25),
    ],
)
def test_a_slope_gets_the_grid_of_a_weight_and_a_note(slope: float, bits: int, rounded: float) -> None:
    model, x = compiled(nn.LeakyReLU(slope), default_weight_bits=bits)
    node = next(n for n in model.graph_module.graph.nodes if n.target is F.leaky_relu)
    assert node.args[1] == rounded
    assert abs(rounded - slope) <= max(2.0**-bits, abs(slope) / (16 if bits > 3 else 4))
    (note,) = model.notes
    assert (note.code, note.severity, note.place.module) == ("PQ605", "info", "act")
    assert (str(slope) in note.what, str(rounded) in note.what) == (True, True)
    frozen = model.freeze()
    assert frozen.verify(x, ("integer", "onnx")).ok


def test_exact_slopes_and_float_networks_stay_as_they_are() -> None:
    model, x = compiled(nn.LeakyReLU(0.375))
    assert not model.notes
    frozen = model.freeze()
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    assert torch.equal(frozen(x), model.eval()(x))
    float_model = pq.compile(Net(nn.LeakyReLU(0.01)), "float", x)
    assert next(n for n in float_model.graph_module.graph.nodes if n.target is F.leaky_relu).args[1] == 0.01


def slopes_of(count: int) -> nn.PReLU:
    layer = nn.PReLU(count)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.3, 1.7, count) if count > 1 else torch.tensor([0.3]))
    return layer


@pytest.mark.parametrize("count", [1, 3])
def test_prelu_has_one_quantizer_of_data_and_one_of_its_slopes(count: int) -> None:
    model, x = compiled(slopes_of(count))
    names = [n for n, m in model.graph_module.named_modules() if isinstance(m, pq.Quantizer)]
    assert names == ["pq.x.quantizer", "pq.a.weight_quantizer", "pq.a.bias_quantizer", "pq.act.weight_quantizer", "pq.act.quantizer"]
    slopes = model.graph_module.pq.act.weight_quantizer(model.act.weight)
    assert torch.equal(slopes * 2**8, (slopes * 2**8).round()), "one format, that of the largest"
    model(x).square().mean().backward()
    assert float(model.act.weight.grad.abs().sum()) > 0
    frozen = model.eval().freeze()
    inner = model.graph_module.pq.a
    w, b = inner.weight_quantizer(model.a.weight), inner.bias_quantizer(model.a.bias)
    y = F.conv1d(model.graph_module.pq.x.quantizer(x).double(), w.double(), b.double())
    exact = torch.relu(y) - slopes.double().reshape(-1, 1) * torch.relu(-y)
    assert torch.equal(frozen(x).double(), model.graph_module.pq.act.quantizer(exact))
    assert torch.equal(model(x), frozen(x))
    assert frozen.verify(x * 4, ("integer", "onnx", "qonnx")).ok
    frozen.to_qonnx(strict=True)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_bounds_behind_a_slope_are_those_of_every_code(data: Any) -> None:
    f = data.draw(st.integers(-2, 3))
    ends = np.sort(np.array(data.draw(st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=2, max_size=2))), axis=1)
    slopes = np.array(data.draw(st.lists(st.integers(-12, 12), min_size=1, max_size=2))) * 2.0 ** data.draw(st.integers(-4, 2))
    zeros = data.draw(st.integers(0, 1))
    x = Interval(f, ends[None, :, 0] << zeros, ends[None, :, 1] << zeros, np.full((1, 2), zeros))
    slopes = slopes if len(slopes) == 2 else slopes[:1]
    value, sums = RULES[F.prelu](x, constant(slopes))
    assert sums is None
    for c in range(2):
        codes = np.arange(ends[c, 0], ends[c, 1] + 1) * 2.0 ** (zeros - f)
        met = np.where(codes < 0, codes * slopes[c % len(slopes)], codes)
        assert (math.ldexp(value.low[0, c], -value.f), math.ldexp(value.high[0, c], -value.f)) == (met.min(), met.max())
        unit = 2.0 ** (min(int(value.zeros[0, c]), 50) - value.f)
        assert (met / unit == np.round(met / unit)).all()


def test_slopes_computed_from_data_are_refused() -> None:
    x = Interval(0, np.zeros((1, 2), dtype=np.int64), np.ones((1, 2), dtype=np.int64))
    with pytest.raises(Inexact) as caught:
        RULES[F.prelu](x, x)
    assert caught.value.code == "PQ202"
    assert significant_bits(5 / 512) == 3
