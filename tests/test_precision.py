"""Floating types that hold fewer bits than a format: refused where our arithmetic needs them, told where only other operators do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from pquant_fx.errors import ConfigError, PQuantWarning
from pquant_fx.quantize import DynamicQuantizer, FixedQuantizer, HGQData, HGQWeight, TQTData, fixed_point
from tests.learned_quantizers import calibrated

X = torch.randn(8, 4)


def quantizers(width: int) -> list[Any]:
    """Signed formats of that width."""
    weight = HGQWeight((8, 4), width)
    weight.start(X)
    fixed = FixedQuantizer(1, 2, width - 3)
    learned = [calibrated(kind((), width), X) for kind in (HGQData, TQTData)]
    return [fixed, FixedQuantizer(1, 2, torch.full((1, 4), width - 3.0)), DynamicQuantizer(width), weight, *learned]


@pytest.mark.parametrize(("dtype", "holds"), [(torch.bfloat16, 8), (torch.float16, 11)])
@pytest.mark.parametrize("how", ["input", "autocast"])
def test_a_narrow_type_is_told_once(dtype: torch.dtype, holds: int, how: str) -> None:
    for width, expected in ((holds + 1, 0), (holds + 2, 1)):
        for q in quantizers(width):
            with warnings.catch_warnings(record=True) as told, torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
                warnings.simplefilter("always")
                for _ in range(3):
                    y = q(X.to(dtype) if how == "input" else X)
            assert y.dtype == torch.float32
            assert [w.category for w in told] == [PQuantWarning] * expected
            if told:
                assert str(dtype).removeprefix("torch.") in str(told[0].message)


def test_arithmetic_is_float32_under_autocast() -> None:
    """12 bits, which bfloat16 does not hold, come out exact; only the consumer casts."""
    q = calibrated(HGQData((1, 4), 12), X)
    plain = q(X)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(PQuantWarning):
        assert torch.equal(q(X), plain)
    leaf = X.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (q(leaf) * X).sum().backward()
    reference = X.clone().requires_grad_()
    f = q.f.grad.clone()
    q.f.grad = None
    (q(reference) * X).sum().backward()
    assert leaf.grad is not None
    assert reference.grad is not None
    assert torch.equal(leaf.grad, reference.grad)
    assert torch.allclose(q.f.grad, f)


def test_float32_is_not_told_about() -> None:
    for q in quantizers(24):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            q(X)


def test_formats_beyond_float32_name_the_remedy() -> None:
    for q in (FixedQuantizer(1, 10, 14), DynamicQuantizer(25), quantizers(25)[3], quantizers(25)[4], quantizers(25)[5]):
        with pytest.raises(ConfigError) as caught:
            q(X)
        assert caught.value.code == "PQ306"
        assert "float64" in caught.value.remedy
    with pytest.raises(ConfigError):
        fixed_point(X, 1, 10, 14)
