"""Interval arithmetic on fixed-point codes: what every value of a circuit can be, exactly.

An `Interval` bounds the integer codes of a value element by element and knows, in addition, how many of their low bits
are always zero. The second part keeps per-channel formats apart although all codes share one lsb: a channel on a coarse
grid needs no more bits because its neighbour is on a fine one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pquant_fx.formats import FixedFormat
from pquant_fx.graph.interval_codes import ALL_ZERO, MAX_BITS, Ints, bit_length, dyadic, trailing_zeros

__all__ = ["CONSTANT_BITS", "Inexact", "Interval", "align", "constant", "exact_number", "require_bits"]

CONSTANT_BITS = 24
"""A constant that no quantizer made may use this many bits: float32 holds it and so does every engine."""


class Inexact(Exception):
    """Why a value has no exact integer meaning: `code` (PQ2xx, PQ3xx), what, and the remedy."""

    def __init__(self, code: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.code, self.what, self.remedy = code, what, remedy


@dataclass(frozen=True, eq=False)
class Interval:
    """Codes between `low` and `high` at lsb 2^-f, both inclusive, per element of one sample (or of a parameter).

    f: exponent of the common lsb; low, high: int64 arrays of the sample's shape, equal for constants;
    zeros: how many low bits of each code are known to be zero (63 for the code 0).
    """

    f: int
    low: Ints
    high: Ints
    zeros: Ints = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape:
            raise ValueError(f"bounds of different shapes {self.low.shape} and {self.high.shape}")
        if (self.low > self.high).any():
            raise ValueError("a lower bound lies above its upper bound")
        known = np.zeros(self.low.shape, dtype=np.int64) if self.zeros is None else np.broadcast_to(self.zeros, self.low.shape)
        fixed = self.low == self.high
        if fixed.any():
            known = np.where(fixed, trailing_zeros(self.low), known)
        object.__setattr__(self, "zeros", known)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.low.shape

    @property
    def is_constant(self) -> bool:
        return bool((self.low == self.high).all())

    @property
    def widths(self) -> Ints:
        """Magnitude bits each element needs on its own grid."""
        return np.maximum(self._spans - self.zeros, 0)

    @property
    def bits(self) -> int:
        """Magnitude bits of the widest element on its own grid: 24 or fewer fit float32, 53 or fewer float64."""
        return int(self.widths.max(initial=0))

    @property
    def span(self) -> int:
        """Magnitude bits of the widest code at the common lsb: what int64 has to hold."""
        return int(self._spans.max(initial=0))

    @property
    def _spans(self) -> Ints:
        return np.maximum(bit_length(self.low), bit_length(self.high))

    @property
    def minimum(self) -> float:
        """Smallest real value of any element."""
        return float(np.ldexp(float(self.low.min()), -self.f)) if self.low.size else 0.0

    @property
    def maximum(self) -> float:
        """Largest real value of any element."""
        return float(np.ldexp(float(self.high.max()), -self.f)) if self.high.size else 0.0

    def format(self) -> FixedFormat:
        """The smallest format that holds every element."""
        if self.low.size == 0:
            return FixedFormat(0, -self.f, self.f)
        low, high = int(self.low.min()), int(self.high.max())
        spare = int(self.zeros.min())
        if spare >= ALL_ZERO:
            return FixedFormat(0, -self.f, self.f)
        return FixedFormat.for_codes(low >> spare, high >> spare, self.f - spare)

    def formats(self) -> tuple[Ints, Ints, Ints]:
        """The smallest (k, i, f) of every element by itself, as arrays; elements that are always 0 have i + f = 0, k = 0."""
        k = (self.low < 0).astype(np.int64)
        nothing = self.zeros >= ALL_ZERO
        f = np.where(nothing, self.f, self.f - self.zeros)
        return k, np.where(nothing, -self.f, self._spans - self.f), f

    def at(self, f: int) -> Interval:
        """The same values as codes at a finer lsb. Raises Inexact (PQ303) when they leave 62 bits."""
        shift = f - self.f
        if shift == 0:
            return self
        if shift < 0:
            raise ValueError(f"f = {f} is coarser than f = {self.f}")
        require_bits(self.span + shift if self.span else 0)
        shift = min(shift, MAX_BITS)
        return Interval(f, self.low << shift, self.high << shift, np.minimum(self.zeros + shift, ALL_ZERO))

    def scaled(self, power: int) -> Interval:
        """Times 2^power: only the binary point moves."""
        return Interval(self.f - power, self.low, self.high, self.zeros)

    def moved(self, move: Callable[..., Any], *args: Any) -> Interval:
        """Every element moved by the same data movement."""
        return Interval(self.f, move(self.low, *args), move(self.high, *args), move(self.zeros, *args))

    def contains(self, values: ArrayLike) -> bool:
        """Whether real values (batch first, or of the interval's shape) lie on the grid and inside the bounds."""
        codes = np.ldexp(np.asarray(values, dtype=np.float64), self.f)
        unit = np.ldexp(1.0, np.minimum(self.zeros, 52).astype(np.int32))
        return bool(((codes >= self.low) & (codes <= self.high) & (np.floor(codes / unit) * unit == codes)).all())


def constant(values: ArrayLike, limit: int = MAX_BITS) -> Interval:
    """The interval of known real values. Raises Inexact: PQ305 for NaN or inf, PQ202 beyond `limit` bits, PQ303 beyond 62."""
    real = np.asarray(values, dtype=np.float64)
    if not np.isfinite(real).all():
        raise Inexact("PQ305", "a constant holds NaN or infinity", "repair the parameter; see where training diverged")
    codes, f, bits = dyadic(real)
    if bits > min(limit, MAX_BITS):
        if limit < MAX_BITS:
            raise Inexact(
                "PQ202",
                f"a constant needs {bits} bits to be exact",
                f"use numbers that are integers times a power of two of at most {limit} bits, or let a quantizer round them",
            )
        raise Inexact("PQ303", f"the values of one tensor span {bits} bits", "give its elements formats that lie closer together")
    return Interval(f, codes, codes)


def exact_number(value: Any) -> Interval:
    """A Python number as an interval of shape (). Raises Inexact (PQ202) unless it is dyadic with at most 24 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Inexact("PQ202", f"{value!r} is no real number", "use a float or an int")
    try:
        return constant(float(value), CONSTANT_BITS)
    except Inexact:
        remedy = f"use a number that is an integer times a power of two (of at most {CONSTANT_BITS} bits), as 0.25 or 1.5"
        raise Inexact("PQ202", f"the constant {value!r} is not exact in fixed point", remedy) from None


def require_bits(bits: int) -> None:
    """Raise Inexact (PQ303) when codes of that many bits would not fit our integers."""
    if bits > MAX_BITS:
        raise Inexact(
            "PQ303",
            f"exact codes need {bits} bits, more than {MAX_BITS}",
            "give its inputs and weights fewer bits, or formats that lie closer together",
        )


def align(*values: Interval) -> tuple[Interval, ...]:
    """The values at their finest common lsb."""
    f = max(v.f for v in values)
    return tuple(v.at(f) for v in values)
