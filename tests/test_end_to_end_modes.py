"""The bits agree in every rounding and overflow mode, width, granularity and join policy, not only in those of the preset."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pquant_fx as pq
from tests.end_to_end import assert_bits, compiled, error, float_outputs, trained
from tests.structures_fixed import FIXED, names


def quantization(**settings: Any) -> dict[str, Any]:
    return {"preset": "fixed8", "quantization_parameters": settings}


def widths(data: int, weight: int, **more: Any) -> dict[str, Any]:
    return quantization(default_data_bits=data, default_weight_bits=weight, **more)


CONFIGS: dict[str, Any] = {
    "5 and 4 bits, RND_CONV, SAT_SYM, per tensor": widths(
        5, 4, round_mode="RND_CONV", overflow_mode_data="SAT_SYM", overflow_mode_parameters="SAT_SYM", granularity="per_tensor"
    ),
    "6 bits, TRN, WRAP": widths(6, 6, round_mode="TRN", overflow_mode_data="WRAP"),
    "WRAP everywhere": quantization(overflow_mode_data="WRAP", overflow_mode_parameters="WRAP"),
    "WRAP_SM, TRN": quantization(overflow_mode_data="WRAP_SM", overflow_mode_parameters="WRAP_SM", round_mode="TRN"),
    "SAT_ZERO, TRN_ZERO": quantization(overflow_mode_data="SAT_ZERO", overflow_mode_parameters="SAT_ZERO", round_mode="TRN_ZERO"),
    "RND_ZERO": quantization(round_mode="RND_ZERO"),
    "RND_INF": quantization(round_mode="RND_INF"),
    "RND_MIN_INF": quantization(round_mode="RND_MIN_INF"),
    "stochastic in training": quantization(round_mode="S_RND"),
    "static formats": quantization(
        default_data_integer_bits=2, default_data_fractional_bits=5, default_weight_integer_bits=0, default_weight_fractional_bits=7
    ),
    "unsigned static data": quantization(
        default_data_integer_bits=2, default_data_fractional_bits=3, default_data_keep_negatives=False,
        default_weight_integer_bits=2, default_weight_fractional_bits=3,
    ),
    "2 bits": widths(2, 2),
    "1 bit": widths(1, 1),
    "12 bits": widths(12, 12),
    "calibrated by mse": {"preset": "fixed8", "calibration": {"method": "mse"}},
    "calibrated by percentile": {"preset": "fixed8", "calibration": {"method": "percentile"}},
    "joins shared": {"preset": "fixed8", "joins": {"policy": "shared"}},
    "joins requantized": {"preset": "fixed8", "joins": {"policy": "requant"}},
}  # fmt: skip
STRUCTURES = ("AwkwardNumbers", "CatOfScales", "PreActivation")
names("structures_fixed_constants"), names("structures_fixed_maps")  # registers them


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("label", CONFIGS)
def test_every_mode_gives_the_same_bits(name: str, label: str) -> None:
    case = FIXED[name]
    assert_bits(trained(compiled(case, CONFIGS[label]), case), case)


@pytest.mark.parametrize("label", ["6 bits, TRN, WRAP", "joins shared", "joins requantized", "WRAP_SM, TRN"])
@pytest.mark.parametrize("name", ["ThreeWay", "Extremes", "CatTwice", "ConvWithTwoConsumers", "SqueezeExcite", "AsymmetricPadding"])
def test_joins_agree_too(name: str, label: str) -> None:
    case = FIXED[name]
    model = compiled(case, CONFIGS[label])
    x = case.inputs(64)
    assert error(float_outputs(case.model(), x), model.freeze()(**x)) < 0.2
    assert_bits(trained(model, case), case)


@pytest.mark.parametrize("name", ["Residual", "ThreeWay", "Extremes", "CatTwice", "ConvWithTwoConsumers", "SkipConcat"])
@pytest.mark.parametrize("policy", ["shared", "requant"])
def test_join_policies_move_no_value_at_16_bits(name: str, policy: str) -> None:
    case = FIXED[name]
    config = {**widths(16, 16), "joins": {"policy": policy}}
    x = case.inputs(64)
    assert error(float_outputs(case.model(), x), compiled(case, config).freeze()(**x)) < 2e-4


@pytest.mark.parametrize("name", STRUCTURES)
def test_few_bits_still_follow_the_float_model(name: str) -> None:
    case = FIXED[name]
    x = case.inputs(64)
    expected = float_outputs(case.model(), x)
    errors = [error(expected, compiled(case, widths(bits, bits)).freeze()(**x)) for bits in (4, 8, 12)]
    assert errors[0] < 0.2
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4


def test_numbers_keep_their_leading_bits_under_static_formats() -> None:
    """A weight format that can not hold 100.3 or 1/300 says nothing about numbers in the user's code."""

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 100.3 + x / 300

    x = torch.linspace(-3, 3, 64).reshape(8, 8)
    model = pq.compile(Net(), CONFIGS["static formats"], x)
    assert float((model.freeze()(x) - Net()(x)).abs().max()) < 5
