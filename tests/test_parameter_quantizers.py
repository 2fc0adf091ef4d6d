"""Quantizers whose format follows a parameter: weights by their range, biases by the accumulator's grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pquant_fx.errors import CalibrationError, ConfigError, PQuantError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer


# ---- DynamicQuantizer
def test_dynamic_formats_follow_each_channel() -> None:
    w = torch.tensor([[0.01, -0.003], [1.0, 0.2], [-1.0, 0.5], [1.01, 0.0], [-1e-4, 0.0]])
    k, i, f = DynamicQuantizer(8).kif(w)
    assert k.flatten().tolist() == [1.0] * 5
    assert i.flatten().tolist() == [-6.0, 0.0, 0.0, 1.0, -13.0]
    assert torch.equal(k + i + f, torch.full((5, 1), 8.0))
    assert i.shape == (5, 1)
    assert [float(t) for t in DynamicQuantizer(8, None).kif(w)] == [1.0, 1.0, 6.0]


def test_dynamic_groups_of_zeros() -> None:
    w = torch.tensor([[0.0, 0.0], [0.3, 0.0], [3.0, 1.0]])
    k, i, f = DynamicQuantizer(8).kif(w)
    assert i.flatten().tolist() == [2.0, -1.0, 2.0]  # no finer lsb than the coarsest channel has
    assert k.flatten().tolist() == [0.0, 1.0, 1.0]
    assert (i + f).flatten().tolist() == [0.0, 7.0, 7.0]
    assert DynamicQuantizer(8)(w)[0].tolist() == [0.0, 0.0]
    _, i, _ = DynamicQuantizer(8).kif(torch.zeros(3, 2))
    assert i.flatten().tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(DynamicQuantizer(8, None)(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_dynamic_tiny_channels_share_an_accumulator() -> None:
    _, i, _ = DynamicQuantizer(8).kif(torch.tensor([[1.5], [1e-30]]))
    assert i.flatten().tolist() == [1.0, -15.0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6),
    st.integers(1, 24),
    st.sampled_from([m for m in ROUNDING_MODES if not m.startswith("S_")]),
    st.sampled_from(OVERFLOW_MODES),
)
def test_dynamic_is_within_an_lsb_and_freezes(numbers: list[float], width: int, rounding: str, overflow: str) -> None:
    w = torch.tensor(numbers).reshape(3, 2)
    quantizer = DynamicQuantizer(width, 0, rounding, overflow)
    q, frozen = quantizer(w), quantizer.frozen(w)
    assert torch.equal(frozen(w), q)
    assert torch.equal(frozen(q), q)
    if width > 1:
        assert bool(((q - w).abs().double() <= (-quantizer.kif(w)[2]).exp2().double()).all())


def test_dynamic_range_of_powers_of_two() -> None:
    """Under SAT a top of exactly 2^i saturates by one lsb; under WRAP it gets the bit, or it would become -2^i."""
    w = torch.tensor([[1.0, -0.3]])
    assert DynamicQuantizer(8)(w)[0, 0] == 127 / 128
    assert DynamicQuantizer(8, overflow="WRAP")(w)[0, 0] == 1.0
    assert DynamicQuantizer(8, overflow="WRAP").kif(w)[1].item() == 1.0
    assert DynamicQuantizer(8)(-w)[0, 0] == -1.0


@pytest.mark.parametrize("width", [0, -1, 54])
def test_impossible_widths(width: int) -> None:
    for make in (lambda: DynamicQuantizer(width), lambda: CalibratedQuantizer(width)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert caught.value.code == "PQ306"


def test_followers_need_their_value() -> None:
    for quantizer in (DynamicQuantizer(8), AccumulatorQuantizer(3.0, calibrated=True)):
        assert quantizer.maximum == float("inf")
        with pytest.raises(CalibrationError) as caught:
            quantizer.kif()
        assert caught.value.code == "PQ307"


# ---- AccumulatorQuantizer
def test_accumulator_rounds_and_never_saturates() -> None:
    quantizer = AccumulatorQuantizer(torch.tensor([2.0, 3.0]), calibrated=True)
    assert quantizer(torch.tensor([1000.3, -0.3])).tolist() == [1000.25, -0.25]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=4, max_size=4), st.lists(st.integers(-3, 20), min_size=4, max_size=4))
def test_accumulator_freezes_to_one_width(numbers: list[float], fractions: list[int]) -> None:
    b = torch.tensor(numbers)
    quantizer = AccumulatorQuantizer(torch.tensor(fractions, dtype=torch.float32), calibrated=True)
    frozen = quantizer.frozen(b)
    k, i, f = frozen.kif()
    widths = (k + i + f).unique()
    assert widths.numel() == 1
    assert float(widths) >= 2
    assert k.unique().tolist() == [1.0]
    assert torch.equal(frozen(b), quantizer(b))
    assert torch.equal(frozen(quantizer(b)), quantizer(b))
    codes = quantizer(b).double() * f.double().exp2()
    low, high = -(2.0 ** (float(widths) - 2)), 2.0 ** (float(widths) - 2) - 1
    assert float(widths) == 2 or float(codes.min()) < low or float(codes.max()) > high, "one bit fewer would do"


def test_accumulator_refuses_what_has_no_format() -> None:
    quantizer = AccumulatorQuantizer(3.0, calibrated=True)
    with pytest.raises(PQuantError) as caught:
        quantizer.frozen(torch.tensor([float("nan")]))
    assert caught.value.code == "PQ305"
    with pytest.raises(ConfigError) as refused:
        quantizer.set_fraction(200.0)
    assert refused.value.code == "PQ306"
    with pytest.raises(ConfigError) as wide:
        AccumulatorQuantizer(40.0, calibrated=True).frozen(torch.tensor([1e6]))
    assert wide.value.code == "PQ306"


def test_accumulator_takes_per_channel_fractions_later() -> None:
    quantizer = AccumulatorQuantizer()
    quantizer.set_fraction(torch.tensor([1.0, 2.0, 3.0]))
    assert quantizer.calibrated
    assert quantizer(torch.full((3,), 0.15)).tolist() == [0.0, 0.25, 0.125]
    assert "f=1..3" in repr(quantizer)


def test_calibrated_refuses_unknown_methods() -> None:
    with pytest.raises(ConfigError) as caught:
        CalibratedQuantizer(8, method="median")
    assert caught.value.code == "PQ405"
