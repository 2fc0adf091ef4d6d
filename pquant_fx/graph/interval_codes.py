"""Integer arithmetic on fixed-point codes: rounding and overflow by shifts and masks, on numpy int64.

This is the reference of all engines and shares nothing with the floating-point kernel of the quantizers. A value is
code * 2^-f. Codes that would leave 62 bits on the way are computed with Python's integers instead, element by element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pquant_fx.formats import OverflowMode, RoundingMode, evaluation_mode

__all__ = ["ALL_ZERO", "MAX_BITS", "Formats", "Ints", "bit_length", "dyadic", "quantize_codes", "quantize_real", "trailing_zeros"]

Ints: TypeAlias = NDArray[np.int64]
MAX_BITS = 62
"""Codes stay under 2^62, so that one addition or one sign change can not leave int64."""
ALL_ZERO = 63
"""Trailing zero bits of the code 0."""


def bit_length(codes: ArrayLike) -> Ints:
    """Bits of the magnitude a two's complement code needs besides its sign: 0 for 0 and -1, B for -2^B and 2^B - 1."""
    c = np.asarray(codes, dtype=np.int64)
    magnitude = np.where(c < 0, ~c, c)
    top = magnitude >> 31
    upper = np.frexp(top.astype(np.float64))[1] + 31
    lower = np.frexp((magnitude & 0x7FFFFFFF).astype(np.float64))[1]
    return np.where(top > 0, upper, lower).astype(np.int64)


def trailing_zeros(codes: ArrayLike) -> Ints:
    """How often 2 divides each code; 63 for the code 0."""
    c = np.asarray(codes, dtype=np.int64)
    lowest = (c & -c).astype(np.float64)
    return np.where(c == 0, ALL_ZERO, np.frexp(lowest)[1] - 1).astype(np.int64)


def dyadic(values: ArrayLike) -> tuple[Ints, int, int]:
    """Write finite floats as codes on their coarsest common grid: (codes, f, bits of the widest code).

    The codes are only meaningful when bits <= 62; f is 0 when every value is 0.
    """
    x = np.asarray(values, dtype=np.float64)
    mantissa, exponent = np.frexp(x)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    zeros = trailing_zeros(whole)
    used = whole != 0
    if not used.any():
        return np.zeros(x.shape, dtype=np.int64), 0, 0
    f = int((53 - exponent - zeros)[used].max())
    shift = np.where(used, f - 53 + exponent.astype(np.int64), 0)
    bits = int((bit_length(whole) + shift)[used].max())
    if bits > MAX_BITS:
        return whole, f, bits
    codes = np.where(shift >= 0, whole << np.maximum(shift, 0), whole >> np.minimum(np.maximum(-shift, 0), 62))
    return codes, f, bits


@dataclass(frozen=True)
class Formats:
    """Formats (k, i, f) of every element of a value, as int64 arrays of one shape. W <= 0 or B < 0: the constant 0."""

    k: Ints
    i: Ints
    f: Ints

    @property
    def empty(self) -> NDArray[np.bool_]:
        """Where nothing but 0 can be stored."""
        magnitude = self.i + self.f
        return (magnitude < 0) | (self.k + magnitude <= 0)

    @property
    def lsb(self) -> int:
        """The finest f of any element that stores something: the common grid; 0 when none does."""
        used = ~self.empty
        return int(self.f[used].max()) if used.any() else 0

    @property
    def bits(self) -> int:
        """Stored bits of the widest element."""
        return int(np.where(self.empty, 0, self.k + self.i + self.f).max(initial=0))

    def compact(self) -> Formats:
        """The same formats without repetition: size 1 on every axis along which they are one broadcast value."""
        return Formats(*(a[tuple(slice(0, 1) if step == 0 else slice(None) for step in a.strides)] for a in (self.k, self.i, self.f)))

    def span(self, overflow: OverflowMode) -> tuple[Ints, Ints]:
        """Smallest and largest code of every element, each at its own f."""
        one = np.int64(1)
        high = np.where(self.empty, 0, (one << np.clip(self.i + self.f, 0, MAX_BITS)) - 1)
        low = np.where(self.empty, 0, -self.k * (high if overflow == "SAT_SYM" else high + 1))
        return low, high

    def spread(self) -> Ints:
        """Left shift that brings every element's codes to the common grid."""
        return np.where(self.empty, 0, self.lsb - self.f)


def quantize_codes(codes: Ints, f: int | Ints, formats: Formats, rounding: RoundingMode, overflow: OverflowMode) -> Ints:
    """q(code * 2^-f) as codes at each element's own f: scale, round, then resolve overflow (UG1399, ap_fixed modes).

    codes broadcasts with the formats; stochastic modes round as they do in evaluation.
    """
    rounding = evaluation_mode(rounding)
    if _fits(codes, np.asarray(f) - formats.f, formats):
        return _quantize(codes, np.asarray(f) - formats.f, formats, rounding, overflow)
    c, k, i, own, given = np.broadcast_arrays(codes, formats.k, formats.i, formats.f, np.asarray(f, dtype=np.int64))
    drop = given - own
    wide = (bit_length(c) - drop > MAX_BITS - 1) | (drop > 60) | (k + i + own > MAX_BITS - 2)
    out = np.empty(c.shape, dtype=np.int64)
    narrow = ~wide
    out[narrow] = _quantize(c[narrow], drop[narrow], Formats(k[narrow], i[narrow], own[narrow]), rounding, overflow)
    big = Formats(*(a[wide].astype(object) for a in (k, i, own)))
    out[wide] = _quantize(c[wide].astype(object), drop[wide].astype(object), big, rounding, overflow)
    return out


def _fits(codes: Ints, drop: Ints, formats: Formats) -> bool:
    """Whether the extreme codes, and so all of them, stay inside int64 on the way."""
    if codes.size == 0 or drop.size == 0:
        return True
    bits = int(bit_length([codes.min(), codes.max()]).max())
    return bits - int(drop.min()) < MAX_BITS and int(drop.max()) <= 60 and int((formats.k + formats.i + formats.f).max()) <= MAX_BITS - 2


def quantize_real(x: NDArray[np.float64], formats: Formats, rounding: RoundingMode, overflow: OverflowMode) -> Ints:
    """q(x) of finite floats as codes at each element's own f, through the float's mantissa and exponent."""
    mantissa, exponent = np.frexp(x)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lsb = 53 - exponent.astype(np.int64)
    # a 53-bit mantissa dropped by 60 bits rounds like one dropped by more: only its sign and being non-zero count
    lsb = np.minimum(lsb, formats.f + 60)
    return quantize_codes(whole, lsb, formats, rounding, overflow)


def _quantize(c: Any, drop: Any, at: Formats, rounding: RoundingMode, overflow: OverflowMode) -> Ints:
    """On int64, or on objects (Python integers) where int64 could overflow."""
    magnitude = np.maximum(at.i + at.f, 0)
    empty = ((at.i + at.f) < 0) | ((at.k + at.i + at.f) <= 0)
    width = np.maximum(at.k + magnitude, 1)
    one = at.k * 0 + 1
    high = (one << magnitude) - 1
    low = -at.k * (high if overflow == "SAT_SYM" else high + 1)
    n = _overflow(_round(c, drop, rounding), at.k, low, high, one << width, width, overflow)
    return np.where(empty, 0, n).astype(np.int64)


def _round(c: Any, drop: Any, mode: RoundingMode) -> Any:
    """The integer near c * 2^-drop."""
    scaled = c << np.maximum(-drop, 0)
    right = np.maximum(drop, 0)
    unit = (drop * 0 + 1) << right
    n = scaled >> right
    rest = 2 * (scaled & (unit - 1))
    above, tie = rest > unit, rest == unit
    up = {
        "TRN": lambda: above & ~above,
        "TRN_ZERO": lambda: (rest > 0) & (c < 0),
        "RND": lambda: above | tie,
        "RND_MIN_INF": lambda: above,
        "RND_ZERO": lambda: above | (tie & (c < 0)),
        "RND_INF": lambda: above | (tie & (c > 0)),
        "RND_CONV": lambda: above | (tie & ((n & 1) == 1)),
    }[mode]()
    return n + np.where(up, 1, 0)


def _overflow(n: Any, k: Any, low: Any, high: Any, period: Any, width: Any, mode: OverflowMode) -> Any:
    """Bring the rounded code into [low, high]; period = 2^width."""
    if mode in ("SAT", "SAT_SYM"):
        return np.minimum(np.maximum(n, low), high)
    if mode == "SAT_ZERO":
        return np.where((n >= low) & (n <= high), n, 0)
    field = n & (period - 1)
    sign = (field >> (width - 1)) & 1
    wrapped = field - np.where((sign == 1) & (k == 1), period, 0)
    if mode == "WRAP":
        return wrapped
    deleted = (n >> width) & 1
    return np.where(deleted == sign, wrapped, -1 - wrapped)
