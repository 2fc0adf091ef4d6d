"""FixedFormat: ranges, text, the smallest covering format, and exact growth, against brute force over tiny formats."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pquant_fx.errors import ConfigError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES, FixedFormat, overflow_mode, rounding_mode


def tiny() -> Iterator[FixedFormat]:
    for k, i, f in itertools.product((0, 1), (-2, -1, 0, 1, 2), (-1, 0, 1, 2)):
        if i + f >= 0 and k + i + f >= 1:
            yield FixedFormat(k, i, f)


def values(fmt: FixedFormat) -> list[Fraction]:
    low, high = fmt.code_range
    return [c * Fraction(2) ** -fmt.f for c in range(low, high + 1)]


def holds(fmt: FixedFormat, value: Fraction) -> bool:
    code = value * Fraction(2) ** fmt.f
    low, high = fmt.code_range
    return code.denominator == 1 and low <= code <= high


@pytest.mark.parametrize(
    ("fmt", "width", "codes", "minimum", "maximum", "text"),
    [
        (FixedFormat(1, 2, 5), 8, (-128, 127), -4.0, 3.96875, "fixed<8,3>"),
        (FixedFormat(0, 0, 8), 8, (0, 255), 0.0, 255 / 256, "ufixed<8,0>"),
        (FixedFormat(1, -3, 6), 4, (-8, 7), -0.125, 7 / 64, "fixed<4,-2>"),
        (FixedFormat(1, 5, -2), 4, (-8, 7), -32.0, 28.0, "fixed<4,6>"),
        (FixedFormat(1, 0, 0), 1, (-1, 0), -1.0, 0.0, "fixed<1,1>"),
        (FixedFormat(0, 0, 0), 0, (0, 0), 0.0, 0.0, "zero"),
        (FixedFormat(1, -2, 1), 0, (0, 0), 0.0, 0.0, "zero"),
        (FixedFormat(0, 2, -3), 0, (0, 0), 0.0, 0.0, "zero"),
    ],
)
def test_range_and_text(fmt: FixedFormat, width: int, codes: tuple[int, int], minimum: float, maximum: float, text: str) -> None:
    assert (fmt.width, fmt.code_range, fmt.minimum, fmt.maximum, str(fmt)) == (width, codes, minimum, maximum, text)


def test_text_round_trip() -> None:
    for fmt in tiny():
        assert FixedFormat.parse(str(fmt)) == (fmt, "RND", "SAT")
        assert FixedFormat.parse("ap_" + str(fmt))[0] == fmt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed<16,6>", (FixedFormat(1, 5, 10), "RND", "SAT")),
        ("ap_ufixed< 8 , 0 , AP_TRN , AP_WRAP >", (FixedFormat(0, 0, 8), "TRN", "WRAP")),
        ("fixed<4,-2,RN_ZERO>", (FixedFormat(1, -3, 6), "RND_ZERO", "SAT")),
    ],
)
def test_parse(text: str, expected: tuple[FixedFormat, str, str]) -> None:
    assert FixedFormat.parse(text) == expected


@pytest.mark.parametrize("text", ["", "fixed<8>", "int8", "fixed<8,x>", "fixed<8,1,UP>", "fixed<8,1,RND,CLIP>", "fixed<8,1"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FixedFormat.parse(text)
    assert caught.value.code == "PQ306"


def test_modes() -> None:
    assert [rounding_mode(m) for m in ROUNDING_MODES] == list(ROUNDING_MODES)
    assert [overflow_mode(m) for m in OVERFLOW_MODES] == list(OVERFLOW_MODES)
    assert rounding_mode("RN_ZERO") == "RND_ZERO"
    for unknown in (lambda: rounding_mode("ROUND"), lambda: overflow_mode("CLIP"), lambda: FixedFormat(2, 1, 1)):
        with pytest.raises(ConfigError) as caught:
            unknown()
        assert caught.value.code == "PQ306"


@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(-4, 12))
def test_for_codes_is_the_smallest_format(a: int, b: int, f: int) -> None:
    low, high = min(a, b), max(a, b)
    fmt = FixedFormat.for_codes(low, high, f)
    assert fmt.f == f
    assert fmt.code_range[0] <= low
    assert high <= fmt.code_range[1]
    assert fmt.k == (low < 0)
    narrower = FixedFormat(fmt.k, fmt.i - 1, f)
    assert fmt.magnitude_bits == 0 or not (narrower.code_range[0] <= low and high <= narrower.code_range[1])


@pytest.mark.parametrize(
    ("low", "high", "f", "i"), [(-8, 7, 3, 0), (0, 256, 8, 1), (0, 255, 8, 0), (-32, 4, 4, 1), (0, 3, 8, -6), (-64, 64, 7, 0)]
)
def test_for_codes_vectors(low: int, high: int, f: int, i: int) -> None:
    assert FixedFormat.for_codes(low, high, f).i == i


def test_growth_holds_every_result() -> None:
    for a, b in itertools.product(tiny(), tiny()):
        total, product, union = a + b, a * b, a | b
        ends = list(itertools.product((values(a)[0], values(a)[-1]), (values(b)[0], values(b)[-1])))
        assert all(holds(total, x + y) for x, y in ends)
        assert all(holds(product, x * y) for x, y in ends)
        assert all(holds(union, x) for x in (values(a)[0], values(a)[-1], values(b)[0], values(b)[-1]))
        assert total.f <= max(a.f, b.f)
        assert product.f <= a.f + b.f


def test_growth_on_all_values() -> None:
    """Every pair of values, not only the ends: the lsb of the results is fine enough."""
    small = [fmt for fmt in tiny() if fmt.width <= 3]
    for a, b in itertools.product(small, small):
        for x, y in itertools.product(values(a), values(b)):
            assert holds(a + b, x + y)
            assert holds(a * b, x * y)


def test_product_of_the_most_negative_values_needs_the_extra_bit() -> None:
    a = FixedFormat(1, 1, 1)
    assert (a * a).maximum >= a.minimum * a.minimum
    assert FixedFormat((a * a).k, (a * a).i - 1, (a * a).f).maximum < a.minimum * a.minimum
