"""The tables of rounding and overflow modes, whole-quantizer vectors, bits from a range: number by number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES, FixedFormat, OverflowMode, RoundingMode
from pquant_fx.quantize.fixed_point import fixed_point, quantize_value
from pquant_fx.quantize.ranges import required_integer_bits

MODES = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_MIN_INF", "RND_INF")
ROUNDED = {
    2.5: (2, 2, 3, 2, 2, 2, 3),
    -2.5: (-3, -2, -2, -2, -2, -3, -3),
    1.5: (1, 1, 2, 2, 1, 1, 2),
    -1.5: (-2, -1, -1, -2, -1, -2, -2),
    0.5: (0, 0, 1, 0, 0, 0, 1),
    -0.5: (-1, 0, 0, 0, 0, -1, -1),
    1.25: (1, 1, 1, 1, 1, 1, 1),
    -1.25: (-2, -1, -1, -1, -1, -1, -1),
    1.75: (1, 1, 2, 2, 2, 2, 2),
    -1.75: (-2, -1, -2, -2, -2, -2, -2),
    -0.125: (-1, 0, 0, 0, 0, 0, 0),
}
OVERFLOWS = ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP", "WRAP_SM")
SIGNED = {
    -17: (-4, -3, 0, -1, -1),
    -13: (-4, -3, 0, 3, 3),
    -9: (-4, -3, 0, -1, 0),
    -8: (-4, -3, 0, 0, -1),
    -5: (-4, -3, 0, 3, -4),
    -4: (-4, -3, -4, -4, -4),
    3: (3, 3, 3, 3, 3),
    4: (3, 3, 0, -4, 3),
    5: (3, 3, 0, -3, 2),
    7: (3, 3, 0, -1, 0),
    8: (3, 3, 0, 0, -1),
    9: (3, 3, 0, 1, -2),
    12: (3, 3, 0, -4, -4),
    16: (3, 3, 0, 0, 0),
}
UNSIGNED = {-5: (0, 0, 0, 3), 5: (3, 3, 0, 1), 9: (3, 3, 0, 1)}


@pytest.mark.parametrize("at", range(len(MODES)))
def test_rounding_modes(at: int) -> None:
    q = fixed_point(torch.tensor(list(ROUNDED)), 1, 8, 0, MODES[at])
    assert q.tolist() == [row[at] for row in ROUNDED.values()]


@pytest.mark.parametrize("at", range(len(OVERFLOWS)))
def test_overflow_modes(at: int) -> None:
    """Codes of three signed bits, at two binary points, and of two unsigned ones."""
    codes = torch.tensor([float(n) for n in SIGNED])
    for f in (0, 4, -3):
        q = fixed_point(codes * 2.0**-f, 1, 2 - f, f, overflow=OVERFLOWS[at]) * 2.0**f
        assert q.tolist() == [row[at] for row in SIGNED.values()]
    if OVERFLOWS[at] != "WRAP_SM":
        q = fixed_point(torch.tensor([float(n) for n in UNSIGNED]), 0, 2, 0, overflow=OVERFLOWS[at])
        assert q.tolist() == [row[at] for row in UNSIGNED.values()]


@pytest.mark.parametrize(
    ("x", "kif", "rounding", "overflow", "code", "text"),
    [
        (13 / 8, (1, 1, 2), "RND", "SAT", 7, "fixed<4,2>"),
        (-13 / 8, (1, 1, 2), "RND", "SAT", -6, "fixed<4,2>"),
        (17 / 8, (1, 1, 2), "RND", "SAT", 7, "fixed<4,2>"),
        (-19 / 8, (1, 1, 2), "RND", "SAT", -8, "fixed<4,2>"),
        (-19 / 8, (1, 1, 2), "RND", "SAT_SYM", -7, "fixed<4,2>"),
        (17 / 8, (1, 1, 2), "TRN", "WRAP", -8, "fixed<4,2>"),
        (255 / 256, (0, 0, 7), "RND", "SAT", 127, "ufixed<7,0>"),
        (255 / 256, (0, 0, 7), "RND", "WRAP", 0, "ufixed<7,0>"),
        (255 / 256, (0, 0, 7), "RND", "SAT_ZERO", 0, "ufixed<7,0>"),
        (6.0, (1, 5, -2), "RND_CONV", "SAT", 2, "fixed<4,6>"),
        (10.0, (1, 5, -2), "RND_CONV", "SAT", 2, "fixed<4,6>"),
        (-6.0, (1, 5, -2), "RND_ZERO", "SAT", -1, "fixed<4,6>"),
        (3 / 64, (1, -3, 6), "RND", "SAT", 3, "fixed<4,-2>"),
        (1 / 4, (1, -3, 6), "RND", "SAT", 7, "fixed<4,-2>"),
        (-5.0, (1, 0, 0), "RND", "SAT", -1, "fixed<1,1>"),
        (5.0, (0, 0, 0), "RND", "SAT", 0, "zero"),
        (-1.0, (1, -2, 1), "RND", "SAT", 0, "zero"),
    ],
)
def test_selected_formats(x: float, kif: tuple[int, int, int], rounding: str, overflow: str, code: int, text: str) -> None:
    assert fixed_point(torch.tensor(x), *kif, rounding, overflow).item() == code * 2.0 ** -kif[2]
    assert str(FixedFormat(*kif)) == text


def test_every_code_up_to_2_to_the_24_is_exact_in_float32() -> None:
    codes = torch.tensor([2.0**24 - 1, 2.0**23 + 1, 8388609.0, -(2.0**23), 1.0])
    for f in (0, 9, -5):
        x = codes * 2.0**-f
        assert torch.equal(fixed_point(x, 0, 24 - f, f)[:3], x[:3])
        assert torch.equal(fixed_point(x[3:], 1, 23 - f, f), x[3:])


# ---- properties, inside and outside the range that float32 holds exactly
modes = (st.sampled_from([m for m in ROUNDING_MODES if not m.startswith("S_")]), st.sampled_from(OVERFLOW_MODES))
widths = st.integers(0, 24)
points = st.integers(-30, 30)


@settings(max_examples=300, deadline=None)
@given(st.floats(-3e9, 3e9, width=32), st.integers(0, 1), widths, points, *modes)
def test_idempotent_and_zero_stays(x: float, k: int, width: int, f: int, rounding: RoundingMode, overflow: OverflowMode) -> None:
    if overflow == "WRAP_SM" and k == 0:
        return
    q = quantize_value(torch.tensor([x, 0.0]), k, width - k - f, f, rounding, overflow)
    assert torch.equal(quantize_value(q, k, width - k - f, f, rounding, overflow), q)
    assert q[1] == 0
    if width == 0:
        assert q[0] == 0
    elif width == 1:
        lsb = 2.0**-f
        one_bit = {0.0, -lsb} if overflow != "SAT_SYM" else {0.0}
        assert q[0].item() in (one_bit if k else {0.0, lsb})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-3e9, 3e9, width=32), min_size=2, max_size=30), st.integers(0, 1), widths, points, modes[0])
def test_saturating_quantizers_are_monotone(numbers: list[float], k: int, width: int, f: int, rounding: RoundingMode) -> None:
    x = torch.tensor(sorted(numbers))
    for overflow in ("SAT", "SAT_SYM"):
        q = quantize_value(x, k, width - k - f, f, rounding, overflow)  # type: ignore[arg-type]
        assert bool((q.diff() >= 0).all())
        inside = (x >= q.min()) & (x <= q.max())
        assert bool(((q - x).abs().double()[inside] <= 2.0**-f).all())


# ---- integer bits of a range (A.12)
@pytest.mark.parametrize(
    ("low", "high", "f", "k", "i"),
    [
        (-1.0, 7 / 8, 3, 1, 0),
        (0.0, 1.0, 8, 0, 1),
        (0.0, 255 / 256, 8, 0, 0),
        (0.0, 511 / 512, 8, 0, 1),
        (-2.0, 1 / 4, 4, 1, 1),
        (0.0, 0.01, 8, 0, -6),
        (-1 / 2, 1 / 2, 7, 1, 0),
    ],
)
def test_integer_bits_of_a_range(low: float, high: float, f: int, k: int, i: int) -> None:
    ends: list[Tensor] = [torch.tensor(low), torch.tensor(high)]
    got = required_integer_bits(*ends, torch.tensor(float(f)), "RND")
    assert got.item() == i
    for end in ends:
        wrapped, rounded = (quantize_value(end, k, i, f, "RND", o) for o in ("WRAP", "SAT"))  # type: ignore[arg-type]
        assert wrapped == rounded


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9), st.integers(-3, 10), st.sampled_from(MODES), st.booleans())
def test_integer_bits_are_enough_and_no_fewer_would_do(numbers: list[float], f: int, rounding: RoundingMode, symmetric: bool) -> None:
    x = torch.tensor(numbers)
    i = required_integer_bits(x.amin(), x.amax(), torch.tensor(float(f)), rounding, symmetric)
    codes = quantize_value(x, 1, 20, f, rounding, "SAT") * 2.0**f
    bits = int(i + f)
    assert bits >= 0
    top, bottom = 2**bits - 1, -(2**bits) + int(symmetric)
    assert bool(((codes >= bottom) & (codes <= top)).all())
    if bits > 0:
        top, bottom = 2 ** (bits - 1) - 1, -(2 ** (bits - 1)) + int(symmetric)
        assert bool(((codes < bottom) | (codes > top)).any())
