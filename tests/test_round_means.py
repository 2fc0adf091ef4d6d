"""Means over numbers of elements that are no power of two: the reciprocal, its error, its bounds, the same bits everywhere."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.interval_rules import RULES
from pquant_fx.graph.intervals import Interval
from pquant_fx.graph.means import fixed_reciprocal, scaled_pool, scaled_sum
from pquant_fx.lower.integer_ops import OPERATORS, Codes


@given(st.integers(1, 5000), st.integers(1, 16))
def test_the_reciprocal_is_dyadic_and_close(count: int, bits: int) -> None:
    r = Fraction(fixed_reciprocal(count, bits))
    f = bits + (count - 1).bit_length() + 1
    assert (r * 2**f).denominator == 1
    assert abs(r - Fraction(1, count)) <= Fraction(1, 2 ** (f + 1))
    assert abs(r - Fraction(1, count)) * count * 2**bits <= Fraction(1, 4), "a quarter of an lsb for sums of codes below 2^bits"
    assert float(np.float32(float(r))) == float(r)


def test_windows_against_a_loop_and_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (2, 3, 5, 7), generator=generator).double() / 16
    r = fixed_reciprocal(6, 8)
    made = scaled_pool(x, (3, 2), (2, 3), (1, 1), False, True, r)
    padded = F.pad(x, (1, 1, 1, 1))
    for n, c, i, j in itertools.product(range(2), range(3), range(made.shape[2]), range(made.shape[3])):
        assert float(made[n, c, i, j]) == float(padded[n, c, 2 * i : 2 * i + 3, 3 * j : 3 * j + 2].sum()) * r
    assert float((made - F.avg_pool2d(x, (3, 2), (2, 3), (1, 1))).abs().max()) <= 2.0**-6
    line = scaled_pool(x[:, :, 0], (3,), (2,), (1,), False, True, r)
    assert torch.equal(line, scaled_pool(x[:, :, :1], (1, 3), (1, 2), (0, 1), False, True, r)[:, :, 0])
    codes = Codes((x * 16).long().numpy(), 4)
    for function, rest in ((scaled_pool, ((3, 2), (2, 3), (1, 1), False, True, r)), (scaled_sum, ((2, 3), True, r))):
        got = OPERATORS[function](codes, *rest)
        assert np.array_equal(np.ldexp(got.codes.astype(float), -got.f), function(x, *rest).numpy())


def test_bounds_hold_and_are_reached() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(-4, 1, (1, 1, 3))
    x = Interval(2, low, low + rng.integers(1, 4, low.shape))
    corners = torch.from_numpy(np.array(list(itertools.product(*zip(x.low.ravel(), x.high.ravel())))).reshape(-1, 1, 3) / 4)
    for function, rest in ((scaled_sum, ((2,), False, 0.34375)), (scaled_pool, ((3,), (1,), (1,), False, True, 0.34375))):
        value, sums = RULES[function](x, *rest)
        met = function(corners, *rest).numpy()
        assert np.array_equal(np.ldexp(value.low[0].astype(float), -value.f), met.min(0))
        assert np.array_equal(np.ldexp(value.high[0].astype(float), -value.f), met.max(0))
        assert sums is not None
        assert sums.f == x.f, "the sum itself is exact"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(1, 4, 3), nn.AvgPool2d(3, 2), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(F.relu(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("bits", [6, 8, 12])
def test_a_network_says_what_it_does_and_every_engine_does_it(bits: int) -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(60, 1, 9, 9)
    quantization = {"default_weight_bits": bits, "default_data_bits": bits}
    model = pq.compile(net, {"preset": "fixed8", "quantization_parameters": quantization}, x)
    notes = [n for n in model.notes if n.code == "PQ605"]
    assert [(n.severity, n.place.module, "1/9" in n.what) for n in notes] == [("info", "pool", True), ("info", "", True)]
    model.train()(x).square().mean().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())
    frozen = model.eval().freeze()
    exact = frozen.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal((model if exact else model.double())(x.to(frozen.dtype)).double(), frozen(x.to(frozen.dtype)).double())
    assert frozen.verify(x * 3, ("integer", "onnx", "qonnx")).ok
    expected = net.double()(x.double()).detach()
    assert float((expected - frozen(x)).abs().max() / expected.abs().max()) < 8 * 2.0**-bits
    assert model.ebops().total > 0


def test_a_place_that_is_not_quantized_keeps_its_mean_and_is_refused() -> None:
    model = pq.compile(Net(), {"preset": "fixed8", "layers": {"pool": {"quantize": False}}}, torch.randn(9, 1, 9, 9))
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert (caught.value.code, "averages 9" in str(caught.value), "quantize: true" in caught.value.remedy) == ("PQ202", True, True)


def test_float_keeps_the_mean_of_the_model() -> None:
    net, x = Net(), torch.randn(9, 1, 9, 9)
    assert torch.allclose(pq.compile(net, "float", x).eval()(x), net.eval()(x), atol=1e-6)
