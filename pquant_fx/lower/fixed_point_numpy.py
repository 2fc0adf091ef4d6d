"""The fixed-point quantizer on numpy arrays in float64: what the operator `FixedPoint` executes and the hls4ml importer reasons with.

Exact while codes stay below 2^53; rounding and overflow follow AMD UG1399 (ap_fixed) with the tie rules of `formats`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "holds_only_zero", "is_zero_width", "overflow_codes", "quantize_array", "round_codes"]

Array = npt.NDArray[np.float64]


def quantize_array(x: npt.ArrayLike, k: npt.ArrayLike, i: npt.ArrayLike, f: npt.ArrayLike, rounding: str, overflow: str) -> Array:
    """q(x; k, i, f): scale by 2^f, round, resolve overflow, scale back. k, i, f broadcast to x; zero width gives 0."""
    ka, ia, fa = (np.asarray(t, dtype=np.float64) for t in (k, i, f))
    codes = round_codes(np.ldexp(np.asarray(x, dtype=np.float64), fa.astype(np.int64)), rounding)
    kept = overflow_codes(codes, ka, ia + fa, overflow)
    return np.asarray(np.where(is_zero_width(ka, ia, fa), 0.0, np.ldexp(kept, -fa.astype(np.int64))))


def is_zero_width(k: Array, i: Array, f: Array) -> npt.NDArray[np.bool_]:
    """Where the format holds nothing but 0: W <= 0 or B < 0."""
    return np.asarray((k + i + f <= 0) | (i + f < 0))


def holds_only_zero(k: Array, i: Array, f: Array, overflow: str) -> npt.NDArray[np.bool_]:
    """Where nothing but 0 can come out: no width, or one signed bit without its only other code -1 (SAT_SYM)."""
    empty = is_zero_width(k, i, f)
    return np.asarray(empty | ((k == 1) & (i + f == 0))) if overflow == "SAT_SYM" else empty


def round_codes(s: Array, rounding: str) -> Array:
    """s = x * 2^f to integers. Halving is exact, so 'nearest' is written without adding 1/2, which would round by itself."""
    a, sign = np.abs(s), np.sign(s)
    match rounding:
        case "TRN":
            return np.floor(s)
        case "TRN_ZERO":
            return np.trunc(s)
        case "RND" | "S_RND":
            return np.ceil(np.floor(2 * s) / 2)
        case "RND_MIN_INF":
            return np.floor(np.ceil(2 * s) / 2)
        case "RND_INF":
            return np.asarray(sign * np.ceil(np.floor(2 * a) / 2))
        case "RND_ZERO":
            return np.asarray(sign * np.floor(np.ceil(2 * a) / 2))
        case "RND_CONV" | "S_RND_CONV":
            return np.round(s)
    raise ValueError(f"unknown rounding mode {rounding}")


def overflow_codes(n: Array, k: Array, magnitude_bits: Array, overflow: str) -> Array:
    """Integer codes of any size into [-k 2^B, 2^B - 1]."""
    size = np.exp2(np.maximum(magnitude_bits, 0))
    high, low = size - 1, -k * size
    match overflow:
        case "SAT":
            return np.clip(n, low, high)
        case "SAT_SYM":
            return np.clip(n, -k * high, high)
        case "SAT_ZERO":
            return np.where((n < low) | (n > high), 0.0, n)
        case "WRAP":
            period = size * (1 + k)
            rest = n - np.floor(n / period) * period
            return np.where(rest > high, rest - period, rest)
        case "WRAP_SM":
            rest = n - np.floor(n / (4 * size)) * (4 * size)
            falling = np.where(rest < 3 * size, 2 * size - 1 - rest, rest - 4 * size)
            return np.asarray(np.where(rest < size, rest, falling))
    raise ValueError(f"unknown overflow mode {overflow}")
