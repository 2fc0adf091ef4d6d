"""Observers: moving averages, histogram percentiles and least squares against direct computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pquant_fx.errors import ConfigError
from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.quantize.observers import METHODS, make_observer


def test_moving_average() -> None:
    observer = make_observer("ema")
    for low, high in ((-1.0, 2.0), (-3.0, 4.0), (0.0, 0.0)):
        observer.update(torch.tensor([low, 0.0, high]))
    low, high = observer.range()
    assert float(low) == pytest.approx((-1 * 0.99 - 3 * 0.01) * 0.99)
    assert float(high) == pytest.approx((2 * 0.99 + 4 * 0.01) * 0.99)
    assert [float(t) for t in observer.extremes] == [-3.0, 4.0]


@pytest.mark.parametrize("scale", [1.0, 1e-4, 300.0])
def test_percentile_against_sorting(scale: float) -> None:
    """Within a bin of the true quantile, also when the range had to double and the bins were merged."""
    torch.manual_seed(0)
    x = torch.randn(40000) * scale
    observer = make_observer("percentile", (), 99.0)
    for part in x.abs().argsort().split(10000):  # growing ranges
        observer.update(x[part])
    low, high = observer.range()
    width = 2.0 ** torch.frexp(x.abs().max())[1].item() / 2048
    assert x.quantile(0.99) - width <= high <= x.quantile(0.99) + 2 * width
    assert x.quantile(0.01) - 2 * width <= low <= x.quantile(0.01) + width


def test_percentile_ignores_an_outlier_that_minmax_covers() -> None:
    x = torch.rand(20000)
    x[0] = 100.0
    bits = {}
    for method in ("minmax", "percentile"):
        observer = make_observer(method, (), 99.9)
        observer.update(x)
        bits[method] = float(observer.integer_bits(torch.tensor(0.0), 8, "SAT"))
    assert bits == {"minmax": 7.0, "percentile": 0.0}


def test_percentile_of_few_values_is_the_extreme() -> None:
    observer = make_observer("percentile")
    observer.update(torch.tensor([-0.3, 0.1, 1.7]))
    assert [float(t) for t in observer.range()] == pytest.approx([-0.3, 1.7])


@pytest.mark.parametrize("percentile", [50.0, 101.0])
def test_percentile_refuses(percentile: float) -> None:
    with pytest.raises(ConfigError) as caught:
        make_observer("percentile", (), percentile)
    assert caught.value.code == "PQ407"


@pytest.mark.parametrize("width", [3, 4, 6, 8])
@pytest.mark.parametrize("outlier", [0.0, 12.0])
def test_mse_is_the_best_of_five(width: int, outlier: float) -> None:
    torch.manual_seed(1)
    x = torch.cat([torch.randn(30000), torch.full((3,), outlier)])
    observer = make_observer("mse")
    for part in x.split(7000):
        observer.update(x[:0])
        observer.update(part)
    got = int(observer.integer_bits(torch.tensor(1.0), width, "SAT"))
    top = int(torch.frexp(x.abs().max())[1])
    errors = {i: float((fixed_point(x, 1, i, width - 1 - i) - x).square().sum()) for i in range(top - 4, top + 1)}
    assert errors[got] <= 1.02 * min(errors.values())


def divergence(x: Tensor, k: int, i: int, width: int) -> float:
    """KL of the histogram of `x` (2048 bins a side up to its power of two) from its quantized version, by a plain loop."""
    step = 2.0 ** torch.frexp(x.abs().max())[1].item() / 2048
    counts: dict[int, int] = {}
    for bin_ in (x.double() / step).floor().long().tolist():
        counts[bin_] = counts.get(bin_, 0) + 1
    lsb, codes = 2.0 ** -(width - k - i), {}
    for bin_ in counts:
        point = min(max((bin_ + 0.5) * step, float(x.min())), float(x.max()))
        codes[bin_] = min(max(math.floor(point / lsb + 0.5), -k * 2 ** (width - k)), 2 ** (width - k) - 1)
    total, result = sum(counts.values()), 0.0
    for bin_, count in counts.items():
        alike = [b for b in counts if codes[b] == codes[bin_]]
        spread = sum(counts[b] for b in alike) / len(alike)
        result += count / total * math.log(count / spread)
    return result


@pytest.mark.parametrize("width", [2, 3, 4, 6])
@pytest.mark.parametrize("k", [0, 1])
def test_kl_is_the_least_divergence_of_five_by_a_plain_loop(width: int, k: int) -> None:
    torch.manual_seed(width)
    x = torch.cat([torch.randn(3000), 4 * torch.randn(20)])
    x = x.abs() if k == 0 else x
    observer = make_observer("kl")
    observer.update(x)
    got = int(observer.integer_bits(torch.tensor(float(k)), width, "SAT"))
    top = int(torch.frexp(x.abs().max())[1])
    found = {i: divergence(x, k, i, width) for i in range(top - 4, top + 1)}
    assert found[got] <= min(found.values()) + 1e-12
    assert len({round(v, 6) for v in found.values()}) > 1  # there was something to choose


def test_kl_takes_the_widest_of_equals() -> None:
    observer = make_observer("kl")
    observer.update(torch.tensor([-1.0, 0.25, 1.0, 7.0]))
    assert float(observer.integer_bits(torch.tensor(1.0), 16, "SAT")) == 3


@pytest.mark.parametrize("method", METHODS)
def test_groups_are_independent(method: str) -> None:
    """A histogram a channel: each group gives what it gives alone."""
    torch.manual_seed(2)
    x = torch.randn(500, 3, 4) * torch.tensor([0.01, 1.0, 40.0]).reshape(1, 3, 1)
    together = make_observer(method, (1, 3, 1))
    together.update(x)
    found = together.integer_bits(torch.ones(1, 3, 1), 4, "SAT").flatten()
    for channel in range(3):
        alone = make_observer(method)
        alone.update(x[:, channel])
        assert float(alone.integer_bits(torch.tensor(1.0), 4, "SAT")) == float(found[channel])


def test_many_groups_have_coarser_histograms_that_fit_memory() -> None:
    shape = (1, 16, 16, 16)
    observer = make_observer("mse", shape)
    for _ in range(2):
        observer.update(torch.randn(2, 16, 16, 16))
    counts = observer._found(torch.device("cpu"))  # type: ignore[attr-defined]
    assert counts.numel() <= 2**21
    assert float(counts.sum()) == 4 * 16**3
    assert observer.integer_bits(torch.ones(shape), 6, "SAT").shape == shape
