"""Observers: moving averages, histogram percentiles and least squares against direct computation."""

from __future__ import annotations

import pytest
import torch

from pquant_fx.errors import ConfigError
from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.quantize.observers import make_observer


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
