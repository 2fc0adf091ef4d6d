"""Integer codes and intervals: every rounding and overflow mode against exact fractions, every bound against brute force."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pquant_fx.formats import FixedFormat
from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph.interval_codes import Formats, bit_length, dyadic, quantize_codes, quantize_real, trailing_zeros
from pquant_fx.graph.interval_quantizer import full_range, quantize_interval
from pquant_fx.graph.intervals import Inexact, Interval, align, constant, exact_number

VECTORS = json.loads((Path(__file__).parent / "data" / "fixed_point_vectors.json").read_text())["vectors"]
ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_MIN_INF", "RND_INF")
OVERFLOWS = ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP", "WRAP_SM")


def formats(k: int, i: int, f: int) -> Formats:
    return Formats(*(np.array(v, dtype=np.int64) for v in (k, i, f)))


def exact_code(x: Fraction, k: int, i: int, f: int, rounding: str, overflow: str) -> int:
    """The definition with exact fractions, written for this test."""
    bits = i + f
    if bits < 0 or k + bits <= 0:
        return 0
    s = x * Fraction(2) ** f
    n, r = floor(s), s - floor(s)
    half = Fraction(1, 2)
    up = {
        "TRN": False,
        "TRN_ZERO": s < 0 and r > 0,
        "RND": r >= half,
        "RND_CONV": r > half or (r == half and n % 2 == 1),
        "RND_ZERO": r > half or (r == half and s < 0),
        "RND_MIN_INF": r > half,
        "RND_INF": r > half or (r == half and s > 0),
    }[rounding]
    n += up
    low, high, period = -k * 2**bits, 2**bits - 1, 2 ** (k + bits)
    if overflow == "SAT":
        return min(max(n, low), high)
    if overflow == "SAT_SYM":
        return min(max(n, -k * high), high)
    if overflow == "SAT_ZERO":
        return n if low <= n <= high else 0
    wrapped = (n - low) % period + low
    if overflow == "WRAP":
        return wrapped
    phase = (n - low) // period  # every second period runs backwards
    return wrapped if phase % 2 == 0 else low + high - wrapped


@pytest.mark.parametrize("mode", [*ROUNDINGS, "S_RND_CONV"])
def test_integer_quantizer_holds_every_vector(mode: str) -> None:
    chosen = [v for v in VECTORS if v["round"] == mode.removeprefix("S_") and "u" not in v]
    assert chosen
    for v in chosen:
        x = Fraction(v["x"])
        at = formats(v["k"], v["i"], v["f"])
        code = quantize_real(np.array(float(x)), at, mode, v["overflow"])
        assert int(code) == v["code"], v
        if Fraction(float(x)) != x:
            continue
        shift = x.denominator.bit_length() - 1
        assert int(quantize_codes(np.array(x.numerator), shift, at, mode, v["overflow"])) == v["code"], v


@given(
    st.integers(-(2**61), 2**61),
    st.integers(-70, 70),
    st.integers(0, 1),
    st.integers(-40, 40),
    st.integers(-40, 60),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(OVERFLOWS),
)
@settings(max_examples=400, deadline=None)
def test_codes_of_any_size_follow_the_definition(code: int, f: int, k: int, i: int, own: int, rounding: str, overflow: str) -> None:
    if i + own > 55 or (overflow == "WRAP_SM" and not k):
        return
    got = quantize_codes(np.array(code), f, formats(k, i, own), rounding, overflow)  # type: ignore[arg-type]
    assert int(got) == exact_code(Fraction(code) / Fraction(2) ** f, k, i, own, rounding, overflow)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 1),
    st.integers(-20, 20),
    st.integers(-20, 30),
    st.sampled_from(OVERFLOWS),
)
@settings(max_examples=300, deadline=None)
def test_any_float_is_quantized_exactly(x: float, k: int, i: int, own: int, overflow: str) -> None:
    if overflow == "WRAP_SM" and not k:
        return
    for rounding in ROUNDINGS:
        got = quantize_real(np.array([x, -x]), formats(k, i, own), rounding, overflow)  # type: ignore[arg-type]
        assert got.tolist() == [exact_code(s * Fraction(x), k, i, own, rounding, overflow) for s in (1, -1)]


def test_mixed_widths_in_one_array_do_not_disturb_each_other() -> None:
    """Elements that need Python integers and elements that do not are computed together."""
    codes = np.array([2**60, 5, -(2**61), -3], dtype=np.int64)
    k, i, f = np.array([1, 1, 1, 0]), np.array([40, 2, 3, 2]), np.array([10, 3, 4, 1])
    for rounding, overflow in itertools.product(ROUNDINGS, ("SAT", "WRAP", "SAT_ZERO")):
        got = quantize_codes(codes, np.array([0, 4, -6, 2]), Formats(k, i, f), rounding, overflow)  # type: ignore[arg-type]
        for n, g in enumerate(got):
            x = Fraction(int(codes[n])) / Fraction(2) ** [0, 4, -6, 2][n]
            assert int(g) == exact_code(x, int(k[n]), int(i[n]), int(f[n]), rounding, overflow)


def test_bit_counts_agree_with_python() -> None:
    values = [s * (2**p + d) for p in (0, 1, 5, 30, 31, 32, 52, 53, 54, 60, 61) for d in (-1, 0, 1) for s in (1, -1)]
    assert bit_length(values).tolist() == [max(v, -v - 1).bit_length() for v in values]
    assert trailing_zeros(values).tolist() == [63 if v == 0 else (v & -v).bit_length() - 1 for v in values]


@given(st.lists(st.tuples(st.integers(-(2**24), 2**24), st.integers(-12, 12)), min_size=1, max_size=6))
def test_constants_are_written_on_their_coarsest_grid(parts: list[tuple[int, int]]) -> None:
    values = np.array([m * 2.0**e for m, e in parts])
    codes, f, bits = dyadic(values)
    assert np.ldexp(codes.astype(float), -f).tolist() == values.tolist()
    assert bits == max(max(c, -c - 1).bit_length() for c in codes.tolist())
    assert not codes.any() or (codes & 1).any()


def test_bad_constants_are_refused_with_their_codes() -> None:
    for value, code in ((float("nan"), "PQ305"), (float("inf"), "PQ305"), (0.1, "PQ202"), (2.0**-30 + 1, "PQ202")):
        with pytest.raises(Inexact) as caught:
            constant(value, 24)
        assert caught.value.code == code
    with pytest.raises(Inexact) as caught:
        constant([2.0**40, 2.0**-40])
    assert caught.value.code == "PQ303"
    for number in (0.1, True, "a", None):
        with pytest.raises(Inexact) as caught:
            exact_number(number)
        assert caught.value.code == "PQ202"
    assert (int(exact_number(-0.375).low), exact_number(-0.375).f) == (-3, 3)
    assert (int(exact_number(96).low), exact_number(96).f) == (3, -5)


def test_interval_knows_formats_per_element_and_as_a_whole() -> None:
    x = Interval(4, np.array([-8, 0, 16]), np.array([7, 15, 16]))
    assert x.format() == FixedFormat(1, 1, 4)
    assert x.widths.tolist() == [3, 4, 1]
    assert x.bits == 4
    assert x.span == 5
    k, i, f = x.formats()
    assert [k.tolist(), i.tolist(), f.tolist()] == [[1, 0, 0], [-1, 0, 1], [4, 4, 0]]
    assert (x.minimum, x.maximum) == (-0.5, 1.0)
    assert constant([0.0, 0.0]).format().width == 0
    assert constant([[0.5, -0.25]]).is_constant
    assert x.contains([[0.25, 0.5, 1.0]])
    assert not x.contains([[0.25, 0.5, 1.0625]])
    assert not x.contains([[0.3, 0.5, 1.0]])


def test_interval_keeps_its_values_on_a_finer_grid_and_refuses_nonsense() -> None:
    x = Interval(2, np.array([-3]), np.array([5]))
    assert (x.at(5).low.tolist(), x.at(5).high.tolist(), x.at(5).bits, x.at(5).format()) == ([-24], [40], 3, x.format())
    assert [v.f for v in align(x, Interval(4, np.array([0]), np.array([1])))] == [4, 4]
    with pytest.raises(Inexact, match="63 bits") as caught:
        x.at(62)
    assert caught.value.code == "PQ303"
    with pytest.raises(ValueError, match="coarser"):
        x.at(1)
    with pytest.raises(ValueError, match="above"):
        Interval(0, np.array([1]), np.array([0]))
    with pytest.raises(ValueError, match="shapes"):
        Interval(0, np.array([1]), np.array([1, 2]))


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_quantized_interval_is_what_brute_force_finds(rounding: str, overflow: str) -> None:
    """Every code of the input is quantized: none leaves the interval; saturating modes attain both ends; facts are exact."""
    for low, high in ((-21, 30), (-6, 5), (3, 9), (-40, -20), (0, 0), (17, 40)):
        for k, i, own in ((1, 1, 2), (0, 1, 1), (1, 2, 4), (1, 0, 0), (0, 2, 0), (1, -2, 1), (1, 3, 5)):
            if overflow == "WRAP_SM" and not k:
                continue
            x = Interval(3, np.array(low), np.array(high))
            at = formats(k, i, own)
            result, facts = quantize_interval(x, at, rounding, overflow)  # type: ignore[arg-type]
            inputs = [Fraction(c, 8) for c in range(low, high + 1)]
            codes = [exact_code(v, k, i, own, rounding, overflow) for v in inputs]
            values = [Fraction(c) / Fraction(2) ** own for c in codes]
            assert result.contains([float(v) for v in values])
            if overflow in ("SAT", "SAT_SYM"):
                assert (Fraction(result.minimum), Fraction(result.maximum)) == (min(values), max(values))
            wide = [exact_code(v, 1, 20, own, rounding, "SAT") for v in inputs]
            assert facts.never_overflows == (wide == codes or (at.empty.all() and not any(wide)))
            if facts.never_rounds:
                assert all((v * 2**own).denominator == 1 for v in inputs)
            if facts.is_identity:
                assert values == inputs
            full = full_range(at, overflow)  # type: ignore[arg-type]
            assert full.contains([float(v) for v in values])


def test_identity_is_found_through_known_zero_bits() -> None:
    """Two channels on different grids: each fits the quantizer on its own grid although their common lsb does not."""
    x = Interval(6, np.array([0, 0]), np.array([63, 60]), np.array([0, 2]))
    _, facts = quantize_interval(x, Formats(np.array([0, 0]), np.array([0, 0]), np.array([6, 4])), "RND", "SAT")
    assert facts.is_identity
    _, facts = quantize_interval(x, Formats(np.array([0, 0]), np.array([0, 0]), np.array([4, 6])), "RND", "SAT")
    assert not facts.never_rounds


def conv_cases() -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]]:
    return [
        ((2, 4, 9), (6, 4, 3), (2,), (1,), (1,), 1),
        ((2, 4, 9), (4, 1, 3), (1,), (2,), (2,), 4),
        ((1, 4, 7, 6), (6, 2, 3, 2), (2, 1), (1, 0), (1, 2), 2),
        ((3, 2, 5, 5), (3, 2, 1, 1), (2, 2), (0, 0), (1, 1), 1),
        ((0, 2, 5, 5), (3, 2, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ]


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding", "dilation", "groups"), conv_cases())
def test_correlation_is_torchs_convolution(shape, kernel, stride, padding, dilation, groups) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    x, w = rng.integers(-50, 50, shape), rng.integers(-50, 50, kernel)
    conv = F.conv1d if len(stride) == 1 else F.conv2d
    expected = conv(torch.from_numpy(x).double(), torch.from_numpy(w).double(), None, stride, padding, dilation, groups).numpy()
    for kind in (np.int64, np.float64):
        got = arrays.correlate(x.astype(kind), w.astype(kind), stride, padding, dilation, groups)
        assert got.dtype == kind
        assert got.shape == expected.shape
        assert (got == expected).all()


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_pools_are_torchs_pools(h: int, w: int, kh: int, kw: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> None:
    x = np.random.default_rng(h * 10 + w).integers(-99, 99, (2, 3, h, w))
    args = ((kh, kw), (stride, stride), (min(padding, kh // 2), min(padding, kw // 2)))
    try:
        expected = F.max_pool2d(torch.from_numpy(x).double(), *args, (dilation, dilation), ceil_mode).numpy()
    except RuntimeError:
        return
    if np.isfinite(expected).all():
        got = arrays.window_max(x, *args, (dilation, dilation), ceil_mode)
        assert got.shape == expected.shape
        assert (got == expected).all()
    sums = F.avg_pool2d(torch.from_numpy(x).double(), *args, ceil_mode, True, 1).numpy()
    got = arrays.window_sum(x, *args, ceil_mode)
    assert got.shape == sums.shape
    assert (got == sums).all()


@given(st.lists(st.integers(-1, 2), min_size=2, max_size=4).filter(lambda p: len(p) % 2 == 0), st.integers(-3, 3))
def test_padding_is_torchs_padding(pads: list[int], value: int) -> None:
    x = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    expected = F.pad(torch.from_numpy(x), pads, "constant", value).numpy()
    assert arrays.pad(x, pads, value).tolist() == expected.tolist()
