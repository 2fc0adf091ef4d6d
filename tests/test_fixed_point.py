"""The quantizer's arithmetic: exact values against rational arithmetic, gradients against closed form and composition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.errors import ConfigError, PQuantError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.quantize.fixed_point import fixed_point, integer_bits, quantize_value

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "fixed_point_vectors.json").read_text())["vectors"]
DETERMINISTIC = tuple(m for m in ROUNDING_MODES if not m.startswith("S_"))
LN2 = math.log(2.0)


# ---- an independent oracle in rational arithmetic
def rounded(s: Fraction, mode: str, u: Fraction | None) -> int:
    below, above = math.floor(s), math.ceil(s)
    if mode == "TRN":
        return below
    if mode == "TRN_ZERO":
        return int(s)
    if u is not None:
        return below + (u < s - below)
    mode = {"S_RND": "RND", "S_RND_CONV": "RND_CONV"}.get(mode, mode)
    if s - below != above - s:
        return min(below, above, key=lambda n: abs(s - n))
    choose: dict[str, Callable[[], int]] = {
        "RND": lambda: above,
        "RND_MIN_INF": lambda: below,
        "RND_ZERO": lambda: min(below, above, key=abs),
        "RND_INF": lambda: max(below, above, key=abs),
        "RND_CONV": lambda: below if below % 2 == 0 else above,
    }
    return choose[mode]()


def oracle(x: Fraction, k: int, i: int, f: int, rounding: str, overflow: str, u: Fraction | None = None) -> Fraction:
    bits = i + f
    if bits < 0 or k + bits <= 0:
        return Fraction(0)
    low, high, period = -k * 2**bits, 2**bits - 1, 2 ** (k + bits)
    n = rounded(x * Fraction(2) ** f, rounding, u)
    if overflow == "SAT":
        n = sorted((low, n, high))[1]
    elif overflow == "SAT_SYM":
        n = sorted((-k * high, n, high))[1]
    elif overflow == "SAT_ZERO":
        n = n if low <= n <= high else 0
    elif overflow == "WRAP":
        n = low + (n - low) % period
    else:  # a triangle wave
        at = (n - low) % (2 * period)
        n = low + at if at < period else high - (at - period)
    return n * Fraction(2) ** -f


# ---- values
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors(dtype: torch.dtype) -> None:
    """All vectors, value and gradient, in float64, and in float32 where x is one."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    tested = 0
    for v in VECTORS:
        if dtype == torch.float64 or Fraction(float(torch.tensor(float(Fraction(v["x"])), dtype=dtype))) == Fraction(v["x"]):
            groups.setdefault((v["round"], v["overflow"]), []).append(v)
            tested += 1
    assert tested == len(VECTORS) if dtype == torch.float64 else tested > 2500
    for (rounding, overflow), group in groups.items():

        def column(name: str, group: list[dict[str, Any]] = group) -> Tensor:
            return torch.tensor([float(Fraction(v[name])) for v in group], dtype=dtype)

        noise = column("u") if rounding == "S_RND" else None
        x = column("x").requires_grad_()
        q = fixed_point(x, column("k"), column("i"), column("f"), rounding, overflow, noise=noise)
        q.sum().backward()
        assert q.tolist() == [v["value_float"] for v in group]
        assert x.grad is not None
        assert x.grad.tolist() == [v["grad_x"] for v in group]


formats = st.tuples(st.integers(0, 1), st.integers(-4, 6), st.integers(-4, 8))


@settings(max_examples=400, deadline=None)
@given(st.integers(-(2**12), 2**12), st.integers(-3, 12), formats, st.sampled_from(ROUNDING_MODES), st.sampled_from(OVERFLOW_MODES))
def test_against_the_oracle(n: int, e: int, kif: tuple[int, int, int], rounding: str, overflow: str) -> None:
    if overflow == "WRAP_SM" and kif[0] == 0:
        return
    exact = n * Fraction(2) ** -e
    expected = oracle(exact, *kif, rounding, overflow)
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([float(exact)], dtype=dtype)
        assert Fraction(float(quantize_value(x, *kif, rounding, overflow))) == expected  # type: ignore[arg-type]
        again = quantize_value(quantize_value(x, *kif, rounding, overflow), *kif, rounding, overflow)  # type: ignore[arg-type]
        assert Fraction(float(again)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e4, 1e4, width=32),
    st.integers(-6, 16),
    st.sampled_from(DETERMINISTIC),
    st.sampled_from(("SAT", "SAT_SYM", "WRAP", "WRAP_SM")),
)
def test_wide_formats_in_float32(x: float, f: int, rounding: str, overflow: str) -> None:
    """24-bit codes of any float32 number."""
    q = fixed_point(torch.tensor([x]), 1, 23 - f, f, rounding, overflow)
    assert Fraction(float(q)) == oracle(Fraction(x), 1, 23 - f, f, rounding, overflow)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e12, 1e12),
    st.integers(25, 53),
    st.integers(-9, 60),
    st.sampled_from(DETERMINISTIC),
    st.sampled_from(("SAT", "SAT_SYM", "SAT_ZERO", "WRAP")),
)
def test_formats_beyond_float32_in_float64(x: float, width: int, f: int, rounding: str, overflow: str) -> None:
    """25 to 53 bits of any float64 number, and the same formats refused in float32."""
    value = torch.tensor([x], dtype=torch.float64)
    for k in (0, 1):
        i = width - k - f
        assert Fraction(float(fixed_point(value, k, i, f, rounding, overflow))) == oracle(Fraction(x), k, i, f, rounding, overflow)
        with pytest.raises(ConfigError) as caught:
            fixed_point(value.float(), k, i, f, rounding, overflow)
        assert caught.value.code == "PQ306"


def test_saturation_to_zero_rounds_first() -> None:
    """A quarter of an lsb above the largest code rounds to it, and is not out of range (A.2)."""
    x = torch.tensor([3.875 + 1 / 32, 3.875 + 1 / 16, -4.0 - 1 / 32, -4.0 - 1 / 8])
    assert fixed_point(x, 1, 2, 3, overflow="SAT_ZERO").tolist() == [3.875, 0.0, -4.0, 0.0]


def test_every_quarter_of_an_lsb() -> None:
    """All modes over several periods of a small format, in one tensor each."""
    quarters = range(-70, 71)
    x = torch.tensor([n / 16 for n in quarters])
    for rounding in ROUNDING_MODES:
        for overflow in OVERFLOW_MODES:
            for k in (0, 1) if overflow != "WRAP_SM" else (1,):
                q = quantize_value(x, k, 1, 2, rounding, overflow)
                assert [Fraction(v) for v in q.tolist()] == [oracle(Fraction(n, 16), k, 1, 2, rounding, overflow) for n in quarters]


def test_half_up_is_not_floor_of_x_plus_a_half() -> None:
    assert fixed_point(torch.tensor([0.49999997]), 1, 4, 0).item() == 0.0
    assert fixed_point(torch.tensor([8388609.0]), 0, 24, 0).item() == 8388609.0
    assert fixed_point(torch.tensor([-0.5, 0.5, 1.5, -1.5]), 1, 4, 0).tolist() == [0.0, 1.0, 2.0, -1.0]


def test_zero_is_zero_in_every_mode() -> None:
    for rounding in ROUNDING_MODES:
        for overflow in OVERFLOW_MODES:
            assert fixed_point(torch.zeros(3), 1, 2, 3, rounding, overflow).tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_two_are_exact(dtype: torch.dtype) -> None:
    """Scaling rests on exp2 of an integer being exact, in the vectorised and the scalar code."""
    limit = 126 if dtype == torch.float32 else 1022
    for n in (1, limit):
        e = torch.arange(-limit, limit + 1, dtype=dtype)
        got = e.exp2() if n == 1 else torch.stack([v.exp2() for v in e])
        assert got.tolist() == [2.0**v for v in range(-limit, limit + 1)]


def test_bits_broadcast_and_round_half_even() -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    f = torch.tensor([1.4, 2.5, 3.5]).reshape(1, 3, 1)
    q = fixed_point(x, 1, torch.tensor(2.2), f)
    expected = torch.stack([fixed_point(x[:, c], 1, 2, f_c) for c, f_c in enumerate((1, 2, 4))], 1)
    assert torch.equal(q, expected)
    assert q.shape == x.shape


def test_infinities_saturate() -> None:
    x = torch.tensor([math.inf, -math.inf], requires_grad=True)
    q = fixed_point(x, 1, 2, 3)
    q.sum().backward()
    assert q.tolist() == [3.875, -4.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]
    assert fixed_point(x.detach(), 1, 2, 3, overflow="SAT_SYM").tolist() == [3.875, -3.875]


@pytest.mark.parametrize(
    ("x", "kif", "overflow", "code"),
    [
        ([math.nan], (1, 2, 3), "SAT", "PQ305"),
        ([math.inf], (1, 2, 3), "WRAP", "PQ305"),
        ([math.inf], (1, 2, 3), "SAT_ZERO", "PQ305"),
        ([3e38], (1, 2, 10), "WRAP", "PQ305"),
        ([1.0], (0, 2, 3), "WRAP_SM", "PQ306"),
        ([1.0], (2, 2, 3), "SAT", "PQ306"),
        ([1.0], (1, math.nan, 3), "SAT", "PQ306"),
        ([1.0], (1, 2, math.inf), "SAT", "PQ306"),
        ([1.0], (1, 12, 12), "SAT", "PQ306"),
        ([1.0], (1, -120, 130), "SAT", "PQ306"),
        ([1.0], (1, 2, 3), "CLIP", "PQ306"),
        ([1.0], (1, torch.zeros(2), 3), "SAT", "PQ409"),
        ([1.0], (1, torch.zeros(1, 1), 3), "SAT", "PQ409"),
    ],
)
def test_refusals(x: list[float], kif: tuple[Any, Any, Any], overflow: str, code: str) -> None:
    with pytest.raises(PQuantError) as caught:
        fixed_point(torch.tensor(x), *kif, overflow=overflow)
    assert caught.value.code == code
    assert caught.value.remedy


def test_refuses_what_is_no_floating_tensor() -> None:
    for x in (torch.tensor([1, 2]), 1.5):
        with pytest.raises(ConfigError) as caught:
            fixed_point(x, 1, 2, 3)  # type: ignore[arg-type]
        assert caught.value.code == "PQ409"


def test_wide_formats_need_float64() -> None:
    with pytest.raises(ConfigError) as caught:
        fixed_point(torch.ones(1), 1, 15, 16)
    assert "x.double()" in caught.value.remedy
    x = torch.tensor([1 / 3], dtype=torch.float64)
    assert Fraction(float(fixed_point(x, 1, 2, 50))) == oracle(Fraction(float(x)), 1, 2, 50, "RND", "SAT")
    with pytest.raises(ConfigError) as caught:
        fixed_point(x, 1, 2, 51)
    assert caught.value.code == "PQ306"


def test_alias() -> None:
    x = torch.tensor([-0.5, 0.5, -2.5])
    assert fixed_point(x, 1, 3, 0, "RN_ZERO").tolist() == [0.0, 0.0, -2.0]


# ---- integer bits of a range
@pytest.mark.parametrize(
    ("low", "high", "i"),
    [
        (-1.0, 0.875, 0),
        (0.0, 1.0, 0),
        (0.0, 1.0000001, 1),
        (-2.0, 0.25, 1),
        (0.0, 0.01, -6),
        (-0.5, 0.5, -1),
        (-0.01, 3.0, 2),
        (0.0, 0.0, -100),
        (0.5, 0.6, 0),
        (-0.6, -0.5, 0),
        (0.0, 2.0**-149, -100),
        (0.0, math.inf, 100),
    ],
)
def test_integer_bits(low: float, high: float, i: int) -> None:
    assert float(integer_bits(torch.tensor(low), torch.tensor(high))) == i


@given(st.floats(2.0**-90, 2.0**90, width=32))
def test_integer_bits_is_the_exact_logarithm(v: float) -> None:
    i = int(integer_bits(torch.tensor(0.0), torch.tensor(v)))
    assert Fraction(2) ** (i - 1) < Fraction(v) <= Fraction(2) ** i
    assert int(integer_bits(torch.tensor(-v), torch.tensor(0.0))) == i
