"""Fixed-point formats: `FixedFormat(k, i, f)`, rounding and overflow modes, exact growth rules.

k is the sign bit (0 or 1), i the integer bits WITHOUT the sign, f the fraction bits; i and f may be negative.
Magnitude bits B = i + f, stored bits W = k + B, lsb = 2^-f, codes in [-k 2^B, 2^B - 1], value = code * 2^-f.
HLS writes the same type `fixed<W, I>` with I = k + i. A format with W <= 0 or B < 0 holds only the value 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from pquant_fx.errors import ConfigError, Problem

__all__ = [
    "OVERFLOW_MODES",
    "ROUNDING_MODES",
    "FixedFormat",
    "OverflowMode",
    "RoundingMode",
    "evaluation_mode",
    "overflow_mode",
    "rounding_mode",
]

RoundingMode = Literal["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_MIN_INF", "RND_INF", "S_RND", "S_RND_CONV"]
OverflowMode = Literal["SAT", "SAT_SYM", "SAT_ZERO", "WRAP", "WRAP_SM"]
ROUNDING_MODES: tuple[RoundingMode, ...] = get_args(RoundingMode)
OVERFLOW_MODES: tuple[OverflowMode, ...] = get_args(OverflowMode)
_ROUNDING_ALIASES: dict[str, RoundingMode] = {"RN_ZERO": "RND_ZERO"}
_EVALUATION: dict[RoundingMode, RoundingMode] = {"S_RND": "RND", "S_RND_CONV": "RND_CONV"}
_TEXT = re.compile(r"(?:ap_)?(u?)fixed<\s*(-?\d+)\s*,\s*(-?\d+)\s*(?:,\s*(?:AP_)?(\w+)\s*(?:,\s*(?:AP_)?(\w+)\s*)?)?>")


def rounding_mode(name: str) -> RoundingMode:
    """The rounding mode of that name, `RN_ZERO` (the paper's spelling) included. Raises ConfigError (PQ306)."""
    mode = _ROUNDING_ALIASES.get(name, name)
    if mode not in ROUNDING_MODES:
        raise ConfigError(Problem("PQ306", f"unknown rounding mode '{name}'", f"use one of {', '.join(ROUNDING_MODES)}"))
    return mode


def evaluation_mode(mode: RoundingMode) -> RoundingMode:
    """The deterministic mode that a stochastic one stands for outside training: S_RND -> RND, S_RND_CONV -> RND_CONV."""
    return _EVALUATION.get(mode, mode)


def overflow_mode(name: str) -> OverflowMode:
    """The overflow mode of that name. Raises ConfigError (PQ306)."""
    if name not in OVERFLOW_MODES:
        raise ConfigError(Problem("PQ306", f"unknown overflow mode '{name}'", f"use one of {', '.join(OVERFLOW_MODES)}"))
    return name


@dataclass(frozen=True, order=True)
class FixedFormat:
    """A fixed-point number format: k sign bits, i integer bits without sign, f fraction bits."""

    k: int
    i: int
    f: int

    def __post_init__(self) -> None:
        if self.k not in (0, 1):
            raise ConfigError(Problem("PQ306", f"the sign bit k is {self.k}", "k is 1 for signed and 0 for unsigned values"))

    @property
    def magnitude_bits(self) -> int:
        return self.i + self.f

    @property
    def width(self) -> int:
        """Stored bits W = k + i + f; 0 for the zero-width format."""
        return 0 if self.magnitude_bits < 0 else max(self.k + self.magnitude_bits, 0)

    @property
    def lsb(self) -> float:
        return 2.0**-self.f

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest integer code."""
        if self.width == 0:
            return 0, 0
        return -self.k * 2**self.magnitude_bits, 2**self.magnitude_bits - 1

    @property
    def minimum(self) -> float:
        return self.code_range[0] * self.lsb

    @property
    def maximum(self) -> float:
        return self.code_range[1] * self.lsb

    def __str__(self) -> str:
        return f"{'' if self.k else 'u'}fixed<{self.width},{self.k + self.i}>" if self.width else "zero"

    @classmethod
    def parse(cls, text: str) -> tuple[FixedFormat, RoundingMode, OverflowMode]:
        """Read `fixed<W,I>`, `ufixed<W,I,RND,SAT>` or the `ap_` spelling; modes default to RND, SAT.

        Raises ConfigError (PQ306) when the text is no such type.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ConfigError(Problem("PQ306", f"'{text}' is no fixed-point type", "write it as 'fixed<16,6>' or 'ufixed<8,0,RND,SAT>'"))
        unsigned, width, integer, rounding, overflow = match.groups()
        k = 0 if unsigned else 1
        made = cls(k, int(integer) - k, int(width) - int(integer))
        return made, rounding_mode(rounding or "RND"), overflow_mode(overflow or "SAT")

    @classmethod
    def for_codes(cls, low: int, high: int, f: int) -> FixedFormat:
        """The smallest format with fraction bits `f` that holds every integer code in [low, high]."""
        bits = max(high, 0).bit_length()
        if low < 0:
            bits = max(bits, (-low - 1).bit_length())
        return cls(1 if low < 0 else 0, bits - f, f)

    def __add__(self, other: FixedFormat) -> FixedFormat:
        """Exact format of a sum."""
        return FixedFormat(max(self.k, other.k), max(self.i, other.i) + 1, max(self.f, other.f))

    def __mul__(self, other: FixedFormat) -> FixedFormat:
        """Exact format of a product; the extra bit is only for (-2^i)(-2^j)."""
        return FixedFormat(max(self.k, other.k), self.i + other.i + (self.k & other.k), self.f + other.f)

    def __or__(self, other: FixedFormat) -> FixedFormat:
        """The smallest format that holds both (concat)."""
        return FixedFormat(max(self.k, other.k), max(self.i, other.i), max(self.f, other.f))
