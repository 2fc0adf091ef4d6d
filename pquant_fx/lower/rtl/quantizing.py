"""A quantizer on alkaid's variables: rounding by adders, overflow by tests of the bits above the format (UG1399, ap_fixed modes).

Saturation to powers of two needs no comparison: a code lies inside [-2^B, 2^B) when the bits from 2^B up are all equal.
"""

from __future__ import annotations

from typing import Any

from pquant_fx.formats import OverflowMode, RoundingMode, evaluation_mode
from pquant_fx.lower.rtl.adapter import constant, field

__all__ = ["bit", "is_negative", "quantized"]


def quantized(x: Any, k: int, i: int, f: int, rounding: RoundingMode, overflow: OverflowMode) -> Any:
    """q(x; k, i, f) of one variable. A format without bits gives the constant 0."""
    if i + f < 0 or k + i + f <= 0:
        return constant(0.0)
    return _overflowed(_rounded(x, f, evaluation_mode(rounding)), k, i, f, overflow)


def is_negative(x: Any) -> Any:
    """One bit: 1 where x < 0."""
    if x.low >= 0 or x.high < 0:
        return constant(float(x.low < 0))
    return bit(x, x.kif[1])


def bit(x: Any, power: int) -> Any:
    """The bit of weight 2^power of the two's complement code, as 0 or 1; the sign is repeated upwards."""
    return field(x, 0, power + 1, -power) * 2.0**-power


# ---- rounding: floor(x + something), where the something may depend on a bit
def _rounded(x: Any, f: int, mode: RoundingMode) -> Any:
    """x on the grid 2^-f. With e the lsb of x: a tie counts as below the half when e is taken from it."""
    step = x.step if x.low != x.high else _lsb(x.low)
    unit = 2.0**-f
    if step >= unit:
        return x
    half = unit / 2
    if mode == "RND":
        x = x + half
    elif mode == "RND_MIN_INF":
        x = x + (half - step)
    elif mode == "TRN_ZERO":
        x = x + is_negative(x) * (unit - step)
    elif mode == "RND_ZERO":
        x = (x + (half - step)) + is_negative(x) * step
    elif mode == "RND_INF":
        x = (x + half) - is_negative(x) * step
    elif mode == "RND_CONV":
        x = (x + (half - step)) + bit(x, -f) * step
    return _floor(x, f)


def _floor(x: Any, f: int) -> Any:
    if x.low == x.high:
        return constant((x.low // 2.0**-f) * 2.0**-f)
    k, i, own = x.kif
    if own <= f:
        return x
    if -f >= int(k) + i:  # nothing but the sign is left
        return is_negative(x) * -(2.0**-f)
    return field(x, int(k), i, f)


def _lsb(value: float) -> float:
    """The largest power of two that divides the value."""
    if value == 0:
        return 2.0**60
    numerator, denominator = abs(value).as_integer_ratio()
    return (numerator & -numerator) / denominator


# ---- overflow of a value on the grid
def _overflowed(x: Any, k: int, i: int, f: int, mode: OverflowMode) -> Any:
    high = 2.0**i - 2.0**-f
    low = -k * (high if mode == "SAT_SYM" else 2.0**i)
    if low <= x.low and x.high <= high:
        return x
    if mode == "WRAP":
        return field(x, k, i, f)
    if mode == "WRAP_SM":
        kept = field(x, k, i, f)
        return _chosen(bit(x, i) ^ bit(x, i + 1), -kept - 2.0**-f, kept)
    if mode == "SAT_ZERO":
        return _chosen(_outside(x, k, i), constant(0.0), field(x, k, i, f))
    return _saturated(x, k, i, f, mode)


def _saturated(x: Any, k: int, i: int, f: int, mode: OverflowMode) -> Any:
    unit = 2.0**-f
    high = 2.0**i - unit
    if x.low == x.high:
        return constant(high if x.low > high else -k * (high if mode == "SAT_SYM" else 2.0**i))
    if not k and x.low < 0:
        x = x.relu() if x.high > 0 else constant(0.0)
    beyond, negative, kept = _outside(x, k, i), is_negative(x), field(x, k, i, f)
    if kept.low == kept.high:  # 0: all of x lies above the format
        y = (beyond & negative) * (-k * 2.0**i) + (beyond & ~negative) * high
    else:
        y = _chosen(beyond, _chosen(negative, constant(-k * 2.0**i), constant(high)), kept)
    if mode == "SAT" or not k or y.low > -(2.0**i):
        return y
    if i + f == 0:
        return constant(0.0)  # one bit, and that is the sign
    return y + (is_negative(y) & ~field(y, 0, i, f).unary_bit_op("any")) * unit


def _outside(x: Any, k: int, i: int) -> Any:
    """One bit: 1 where x does not lie in [-k 2^i, 2^i)."""
    limit = 2.0**i
    if x.low >= -k * limit and x.high < limit:
        return constant(0.0)
    if x.low >= limit or x.high < -k * limit:
        return constant(1.0)
    bits = x.kif[1]
    if x.low >= 0 or not k:
        beyond = field(x, 0, bits, -i).unary_bit_op("any") if x.high >= limit else constant(0.0)
        return beyond if x.low >= 0 else is_negative(x) | beyond
    upper = field(x, 1, bits, -i)
    if x.step > limit:  # all multiples of it but 0 are too large
        return upper.unary_bit_op("any")
    # inside, the upper bits are 0 or -1
    return upper.unary_bit_op("any") & ~upper.unary_bit_op("all")


def _chosen(key: Any, yes: Any, no: Any) -> Any:
    """yes where the bit `key` is 1, else no."""
    if key.low == key.high:
        return yes if key.low else no
    return key.msb_mux(yes, no)
