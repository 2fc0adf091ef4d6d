"""The functional quantizer with its checks, and the integer bits of a range. The arithmetic is in `kernel`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from pquant_fx.errors import ConfigError, PQuantError, Problem
from pquant_fx.formats import OverflowMode, overflow_mode, rounding_mode
from pquant_fx.quantize.kernel import Bits, as_bits, quantize_value, round_value, widened

__all__ = [
    "EXPONENT_LIMIT",
    "INTEGER_BITS_LIMIT",
    "exact_width",
    "fixed_point",
    "integer_bits",
    "quantize_value",
    "require_exact",
    "round_value",
]

EXPONENT_LIMIT = 126  # |i| and |f| up to which 2^i and 2^-f are normal float32 numbers
INTEGER_BITS_LIMIT = 100  # |i| of a format derived from data: with W <= 24 every scale stays a normal float32


def fixed_point(
    x: Tensor, k: Bits, i: Bits, f: Bits, rounding: str = "RND", overflow: str = "SAT", *, noise: Tensor | None = None
) -> Tensor:
    """Quantize `x` to the fixed-point format (k, i, f) with straight-through gradients for x, i and f.

    k: sign bit, 0 or 1; i: integer bits without the sign; f: fraction bits; i and f may be negative. Numbers, or tensors
    that broadcast to x; fractional bit counts enter rounded half to even, with identity gradient. rounding: TRN,
    TRN_ZERO, RND, RND_CONV, RND_ZERO (also RN_ZERO), RND_MIN_INF, RND_INF, or the stochastic S_RND, S_RND_CONV, which
    draw from torch's generator unless `noise` (U[0, 1), x's shape) is given. overflow: SAT, SAT_SYM, SAT_ZERO, WRAP, WRAP_SM.
    Result: x's shape; x's dtype, float32 for half and bfloat16. Infinities saturate under SAT and SAT_SYM.

    Raises PQ305 for NaN (and for infinities that can not saturate), PQ306 for an impossible format or mode (also more
    bits than x's dtype holds exactly: 24 for float32, 53 for float64), PQ409 when x is no floating tensor or the bits do
    not broadcast to it. The checks of values are left out where a tensor has none yet (torch.compile, vmap, meta tensors).
    """
    if has_torch_function((x,)):  # as torch's own functions do: a trace of the model sees one call
        result: Tensor = handle_torch_function(fixed_point, (x,), x, k, i, f, rounding, overflow, noise=noise)
        return result
    round_mode, over_mode = rounding_mode(rounding), overflow_mode(overflow)
    _check_shapes(x, (k, i, f) if noise is None else (k, i, f, noise))
    if not (torch.compiler.is_compiling() or any(_traced(t) for t in (x, k, i, f))):
        _check_format(widened(x), k, i, f, over_mode)
        _check_values(widened(x), f, over_mode)
    return quantize_value(x, k, i, f, round_mode, over_mode, True, noise=noise)


def exact_width(dtype: torch.dtype) -> int:
    """Stored bits up to which every code is exact in `dtype`'s arithmetic here: 53 for float64, else 24."""
    return 53 if dtype == torch.float64 else 24


def require_exact(width: int, dtype: torch.dtype) -> None:
    """Raise ConfigError (PQ306) when values of `dtype` can not hold codes of that many bits."""
    if width > exact_width(dtype):
        what = f"{width} bits are more than a {dtype} value holds exactly ({exact_width(dtype)})"
        raise ConfigError(Problem("PQ306", what, "use the model in float64 (`model.double()`, `x.double()`), or fewer bits"))


def _traced(value: Bits) -> bool:
    return isinstance(value, Tensor) and (value.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(value))


def _check_shapes(x: Tensor, others: tuple[Bits, ...]) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ConfigError(Problem("PQ409", f"fixed_point got {found}", "give a floating tensor, for example `x.float()`"))
    for value in others:
        shape = value.shape if isinstance(value, Tensor) else ()
        if len(shape) > x.dim() or any(a not in (1, b) for a, b in zip(reversed(shape), reversed(x.shape))):
            what = f"a format of shape {tuple(shape)} does not broadcast to x of shape {tuple(x.shape)}"
            raise ConfigError(Problem("PQ409", what, "give k, i and f as numbers, or with one entry or x's size along each axis"))


def _check_format(x: Tensor, k: Bits, i: Bits, f: Bits, overflow: OverflowMode) -> None:
    sign, integer, fraction = (torch.as_tensor(v).detach().double().to(x.device) for v in (k, i, f))
    if bool((sign != 0).logical_and(sign != 1).any()):
        raise ConfigError(Problem("PQ306", "the sign bit k is neither 0 nor 1", "k is 1 for signed and 0 for unsigned values"))
    if overflow == "WRAP_SM" and bool((sign == 0).any()):
        raise ConfigError(Problem("PQ306", "WRAP_SM is defined for signed formats only", "use k=1, or overflow='WRAP'"))
    limit = 1022 if x.dtype == torch.float64 else EXPONENT_LIMIT
    for name, bits in (("i", integer), ("f", fraction)):
        if not bool((bits.abs() <= limit).all()):
            remedy = f"keep {name} within -{limit} .. {limit}, or use `x.double()`"
            raise ConfigError(Problem("PQ306", f"{name} is beyond what {x.dtype} can scale by", remedy))
    widest = int((sign + integer.round() + fraction.round()).max()) if x.numel() else 0
    if widest > exact_width(x.dtype):
        raise ConfigError(
            Problem(
                "PQ306",
                f"{widest} bits are more than {x.dtype} holds exactly ({exact_width(x.dtype)})",
                "use `x.double()` (up to 53 bits)" if widest <= 53 else "use at most 53 bits",
            )
        )


def _check_values(x: Tensor, f: Bits, overflow: OverflowMode) -> None:
    if bool(x.isnan().any()):
        raise PQuantError(Problem("PQ305", "x holds NaN, which no format can represent", "remove NaN before quantizing"))
    if overflow in ("SAT", "SAT_SYM"):
        return
    if bool(x.isinf().any()):
        raise PQuantError(Problem("PQ305", f"x holds infinities, which {overflow} can not represent", "use overflow='SAT', or clip x"))
    if overflow != "SAT_ZERO" and not bool((x.detach() * as_bits(f, x).detach().round().exp2()).isfinite().all()):
        raise PQuantError(Problem("PQ305", f"x * 2^f leaves the range of {x.dtype}", "use `x.double()`, or overflow='SAT'"))


def integer_bits(low: Tensor, high: Tensor) -> Tensor:
    """The fewest integer bits i with -2^i <= low and high <= 2^i, exactly (from the exponents, no logarithm).

    low, high: same shape; the result has it too and is integer-valued, within +-100. A range of zeros gives -100. A high
    that is a power of two, or less than one lsb below it, saturates by at most one lsb: under SAT that costs less than
    the bit that would hold it (Vivado's and QKeras' rule). Infinities give 100.
    """
    largest = widened(torch.maximum(-low, high))
    mantissa, exponent = torch.frexp(largest)
    bits = exponent.to(largest.dtype) - (mantissa == 0.5).to(largest.dtype)
    limit = float(INTEGER_BITS_LIMIT)
    bits = bits.clamp_(-limit, limit).masked_fill_(largest <= 0, -limit)
    return bits.masked_fill_(largest == float("inf"), limit)
