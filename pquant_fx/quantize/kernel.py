"""The quantizer q(x; k, i, f): the one definition of fixed point that training, evaluation and every target share.

    s = x 2^f (exact);   n = round(s);   n' = overflow(n);   q = n' 2^-f

Codes lie in [-k 2^B, 2^B - 1] with B = i + f magnitude bits. A format with k + B <= 0 or B < 0 holds only 0. SAT and
SAT_SYM clip first and round afterwards, which gives the same value because the bounds lie on the grid and rounding is
monotone; SAT_ZERO, WRAP and WRAP_SM round first.

Straight-through gradients (Bengio et al. 2013), for i and f as in HGQ (Sun et al. 2024), [a, b] the range:

    |                      | a <= x <= b  | x > b      | x < a                    |
    | dq/dx, SAT family    | 1            | 0          | 0                        |
    | dq/dx, WRAP, WRAP_SM | 1            | 1          | 1                        |
    | dq/df, SAT           | ln2 (x - q)  | ln2 2^-f   | 0  (SAT_SYM: -k ln2 2^-f) |
    | dq/di, SAT, SAT_SYM  | 0            | ln2 2^i    | -k ln2 2^i               |
    | dq/df, WRAP, WRAP_SM | ln2 (x - round(x)) everywhere; i gets no gradient    |

SAT_ZERO: dq/df is ln2 (x - q) inside and 0 outside, i gets none. A zero-width format passes no gradient at all.
"""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pquant_fx.formats import OverflowMode, RoundingMode
from pquant_fx.quantize.rounding import is_stochastic, round_codes

__all__ = ["Bits", "Grid", "as_bits", "quantize_value", "round_value", "widened"]

Bits = Tensor | float
_LN2 = log(2.0)


class Grid(NamedTuple):
    """What a format means for the arithmetic: value bounds (0 when zero-width), 2^f, 2^-f, and 1, or 0 when zero-width."""

    low: Tensor
    high: Tensor
    scale: Tensor
    step: Tensor
    valid: Tensor

    @classmethod
    def of(cls, k: Tensor, i: Tensor, f: Tensor, overflow: OverflowMode) -> Grid:
        """The constants of the format k, i, f in their dtype; fractional bits are rounded half to even."""
        i, f = i.round(), f.round()
        top, step, bits = i.exp2(), (-f).exp2(), i + f
        valid = ((k + bits > 0) & (bits >= 0)).to(top.dtype)
        high = (top - step) * valid
        low = -k * (high if overflow == "SAT_SYM" else top * valid)
        return cls(low, high, f.exp2(), step, valid)


def _wrap(n: Tensor, k: Tensor, i: Tensor, f: Tensor, grid: Grid, mirrored: bool) -> Tensor:
    """The low W bits of the codes `n`, read as signed if k; WRAP_SM complements them in every second period."""
    width = (k + i.round() + f.round()) * grid.valid
    span = width.exp2()
    periods = (n * (-width).exp2()).floor()
    field = n - periods * span
    code = field - span * (field > grid.high * grid.scale)
    if not mirrored:
        return code * grid.valid
    odd = periods - 2 * (periods * 0.5).floor()
    same = odd == (code < 0)
    return torch.where(same, code, -1 - code) * grid.valid


class _Modes(NamedTuple):
    """straight: pass dq/dx = 1 everywhere and nothing to the bits, for formats that follow their own value."""

    rounding: RoundingMode
    overflow: OverflowMode
    straight: bool


class _Quantize(torch.autograd.Function):
    """q(x; k, i, f) with the closed-form gradients above. Saves x (and the noise), no mask. `grid` is Grid.of(k, i, f)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        k: Tensor,
        i: Tensor,
        f: Tensor,
        low: Tensor,
        high: Tensor,
        scale: Tensor,
        step: Tensor,
        valid: Tensor,
        noise: Tensor | None,
        modes: _Modes,
    ) -> Tensor:
        grid = Grid(low, high, scale, step, valid)
        if modes.overflow in ("SAT", "SAT_SYM"):
            return round_codes(torch.clamp(x, grid.low, grid.high), grid.scale, modes.rounding, noise).mul_(grid.step)
        n = round_codes(x, grid.scale, modes.rounding, noise)
        if modes.overflow == "SAT_ZERO":
            outside = (n < grid.low * grid.scale) | (n > grid.high * grid.scale)
            return n.masked_fill(outside, 0.0) * grid.step
        return _wrap(n, k, i, f, grid, modes.overflow == "WRAP_SM") * grid.step

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.modes = inputs[-1]
        if not ctx.modes.straight:
            ctx.save_for_backward(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.modes.straight:
            return grad, *[None] * 10
        x, k, i, f, low, high, scale, step, valid, noise = ctx.saved_tensors
        grid, modes = Grid(low, high, scale, step, valid), ctx.modes
        need_x, _, need_i, need_f = ctx.needs_input_grad[:4]
        grad_x = _grad_x(grad, x, grid, modes.overflow) if need_x else None
        grad_i = _grad_i(grad, x, k, i, grid, modes.overflow).sum_to_size(i.shape) if need_i else None
        grad_f = _grad_f(grad, x, k, noise, grid, modes).sum_to_size(f.shape) if need_f else None
        return grad_x, None, grad_i, grad_f, *[None] * 7


class _Round(torch.autograd.Function):
    """Rounding to a grid that has no bounds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, f: Tensor, noise: Tensor | None, rounding: RoundingMode) -> Tensor:
        return round_codes(x, f.exp2(), rounding, noise) * (-f).exp2()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None


def _grad_x(grad: Tensor, x: Tensor, grid: Grid, overflow: OverflowMode) -> Tensor:
    if overflow in ("WRAP", "WRAP_SM"):
        return grad * grid.valid
    # a zero-width format has no inside: both bounds go where no value is
    far = torch.finfo(x.dtype).max
    low, high = torch.where(grid.valid > 0, grid.low, far), torch.where(grid.valid > 0, grid.high, far)
    # no boolean of x's size: Inductor's CPU code stores one 50 times slower than a float
    outside = torch.clamp(x, low, high).sub_(x).sign_().abs_()
    return torch.addcmul(grad, outside, grad, value=-1)


def _side(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """x clipped, and 1 where it lay above and below the range."""
    clipped = torch.clamp(x, grid.low, grid.high)
    side = (x - clipped).sign() * grid.valid
    return clipped, side.clamp(min=0), (-side).clamp(min=0)


def _grad_i(grad: Tensor, x: Tensor, k: Tensor, i: Tensor, grid: Grid, overflow: OverflowMode) -> Tensor:
    if overflow not in ("SAT", "SAT_SYM"):
        return torch.zeros_like(grad)
    _, above, below = _side(x, grid)
    return grad * (_LN2 * i.round().exp2()) * (above - k * below)


def _grad_f(grad: Tensor, x: Tensor, k: Tensor, noise: Tensor | None, grid: Grid, modes: _Modes) -> Tensor:
    if modes.overflow in ("WRAP", "WRAP_SM"):
        return grad * (x - round_codes(x, grid.scale, modes.rounding, noise) * grid.step) * (_LN2 * grid.valid)
    clipped, above, below = _side(x, grid)
    error = clipped - round_codes(clipped, grid.scale, modes.rounding, noise) * grid.step  # 0 outside: the bounds are on the grid
    if modes.overflow == "SAT":
        error = error + above * grid.step
    elif modes.overflow == "SAT_SYM":
        error = error + (above - k * below) * grid.step
    return grad * error * _LN2


def quantize_value(
    x: Tensor,
    k: Bits,
    i: Bits,
    f: Bits,
    rounding: RoundingMode,
    overflow: OverflowMode,
    training: bool = False,
    *,
    noise: Tensor | None = None,
    straight: bool = False,
    grid: Grid | None = None,
) -> Tensor:
    """`fixed_point` without checks on values and without a host synchronisation: for modules, torch.compile and vmap.

    The arithmetic is float32 for half and bfloat16 input, and so is the result, because bfloat16 does not hold 9-bit codes.
    training: let the stochastic modes draw noise (or take `noise`). straight: dq/dx = 1 everywhere, no gradient for the bits.
    grid: Grid.of(k, i, f, overflow) in x's dtype, for callers that keep it.
    NaN stays NaN; infinities saturate under SAT and SAT_SYM and are undefined otherwise.
    """
    x = widened(x)
    if is_stochastic(rounding) and training and noise is None:
        noise = torch.rand_like(x)
    k, i, f = as_bits(k, x), as_bits(i, x), as_bits(f, x)
    if grid is None:
        grid = Grid.of(k.detach(), i.detach(), f.detach(), overflow)
    result: Tensor = _Quantize.apply(x, k, i, f, *grid, noise, _Modes(rounding, overflow, straight))  # type: ignore[no-untyped-call]
    return result


def round_value(x: Tensor, f: Bits, rounding: RoundingMode, training: bool = False) -> Tensor:
    """`x` rounded to multiples of 2^-f, of any size, with the gradient 1; same numerics as `quantize_value`."""
    x = widened(x)
    noise = torch.rand_like(x) if is_stochastic(rounding) and training else None
    result: Tensor = _Round.apply(x, as_bits(f, x), noise, rounding)  # type: ignore[no-untyped-call]
    return result


def widened(x: Tensor) -> Tensor:
    """`x` in the type that it is computed in: float32 for half and bfloat16, which hold 11 and 8 bits only."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def as_bits(value: Bits, x: Tensor) -> Tensor:
    """A bit count as a tensor of x's dtype, without a copy from the host where it is a tensor already."""
    return value.to(x.dtype) if isinstance(value, Tensor) else torch.full((), float(value), dtype=x.dtype, device=x.device)
