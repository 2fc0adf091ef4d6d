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

SAT_ZERO: dq/df is ln2 (x - q) inside and 0 outside, i gets none. A zero-width format passes no gradient at all, unless its
bits are learned (`Grid.saturating`): then both bounds are 0, every x lies outside, and SAT_SYM's rows say how the bits regrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pquant_fx.formats import OverflowMode, RoundingMode
from pquant_fx.graph.functions import flat, parts
from pquant_fx.quantize.gradients import LN2, Modes, applied, grad_all, grad_x, summed
from pquant_fx.quantize.grid import Bits, Grid, as_bits, widened, wrapped
from pquant_fx.quantize.rounding import is_stochastic, round_codes

__all__ = ["Bits", "Grid", "as_bits", "quantize_value", "round_value", "round_values", "widened"]


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
        modes: Modes,
    ) -> Tensor:
        grid = Grid(low, high, scale, step, valid)
        if modes.overflow in ("SAT", "SAT_SYM"):
            clipped = torch.clamp(x, grid.low, grid.high)
            return round_codes(clipped, grid.scale, modes.rounding, noise, modes.signed is False).mul_(grid.step)
        n = round_codes(x, grid.scale, modes.rounding, noise)
        if modes.overflow == "SAT_ZERO":
            outside = (n < grid.low * grid.scale) | (n > grid.high * grid.scale)
            return n.masked_fill(outside, 0.0) * grid.step
        return wrapped(n, k, i, f, grid, modes.overflow == "WRAP_SM") * grid.step

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.modes = inputs[-1]
        if ctx.modes.straight:
            return
        x, k, i, f, *rest = inputs[:-1]
        of_bits = i.requires_grad or f.requires_grad
        ctx.shapes = i.shape, f.shape
        ctx.save_for_backward(x, *rest, *((k, output) if of_bits else ()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.modes.straight:
            return grad, *[None] * 10
        x, low, high, scale, step, valid, noise, *of_bits = ctx.saved_tensors
        grid, modes = Grid(low, high, scale, step, valid), ctx.modes
        if not of_bits:
            return grad_x(grad, x, grid, modes.overflow), *[None] * 10
        k, rounded = of_bits
        if modes.overflow not in ("SAT", "SAT_SYM"):  # q is not x rounded
            inside = torch.clamp(x, grid.low, grid.high) if modes.overflow == "SAT_ZERO" else x
            rounded = round_codes(inside, grid.scale, modes.rounding, noise) * grid.step
        by_x, by_i, by_f = grad_all(grad, x, rounded, k, grid, modes)
        of_i, of_f = ctx.shapes
        return by_x, None, summed(by_i, of_i), summed(by_f, of_f), *[None] * 7


class _Round(torch.autograd.Function):
    """Rounding to a grid that has no bounds; dq/df = ln2 (x - q) where f is learned. step is 2^-f, or 0 for no value at all."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, f: Tensor, scale: Tensor, step: Tensor, noise: Tensor | None, rounding: RoundingMode) -> Tensor:
        return round_codes(x, scale, rounding, noise).mul_(step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[1].shape
        ctx.save_for_backward(*((inputs[0], output) if inputs[1].requires_grad else ()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_f = None
        if ctx.saved_tensors:
            x, q = ctx.saved_tensors
            by_f = summed(grad * (x - q), ctx.shape) * LN2
        return grad, by_f, None, None, None, None


class _RoundAll(torch.autograd.Function):
    """(2^f, 2^-f, mode, x...) -> each x rounded, all as one vector, whose entries have their own f; gradient 1."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, step: Tensor, rounding: RoundingMode, *values: Tensor) -> tuple[Tensor, ...]:
        return parts(round_codes(flat(values), scale, rounding).mul_(step), values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *grads


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
    signed: bool | None = None,
) -> Tensor:
    """`fixed_point` without checks on values and without a host synchronisation: for modules, torch.compile and vmap.

    The arithmetic is float32 for half and bfloat16 input, and so is the result, because bfloat16 does not hold 9-bit codes.
    training: let the stochastic modes draw noise (or take `noise`). straight: dq/dx = 1 everywhere, no gradient for the bits.
    grid: Grid.of(k, i, f, overflow) in x's dtype, for callers that keep it. signed: k, where all of it is known to be the same.
    NaN stays NaN; infinities saturate under SAT and SAT_SYM and are undefined otherwise.
    """
    x = widened(x)
    if is_stochastic(rounding) and training and noise is None:
        noise = torch.rand_like(x)
    k, i, f = as_bits(k, x), as_bits(i, x), as_bits(f, x)
    if grid is None:
        grid = Grid.of(k.detach(), i.detach(), f.detach(), overflow)
    result: Tensor = applied(_Quantize, x, k, i, f, *grid, noise, Modes(rounding, overflow, straight, signed))
    return result


def round_value(
    x: Tensor, f: Bits, rounding: RoundingMode, training: bool = False, *, whole: Tensor | None = None, present: Tensor | None = None
) -> Tensor:
    """`x` rounded to multiples of 2^-f, of any size, with the gradient 1 and dq/df = ln2 (x - q); same numerics as `quantize_value`.

    f: fractional bits are rounded half to even; whole: what they count as otherwise. present: 1, or 0 where q is 0 (no bits).
    """
    x = widened(x)
    noise = torch.rand_like(x) if is_stochastic(rounding) and training else None
    f = as_bits(f, x)
    whole = f.detach().round() if whole is None else whole
    step = (-whole).exp2() if present is None else (-whole).exp2() * present
    result: Tensor = applied(_Round, x, f, whole.exp2(), step, noise, rounding)
    return result


def round_values(values: Sequence[Tensor], scale: Tensor, step: Tensor, rounding: RoundingMode) -> tuple[Tensor, ...]:
    """`round_value` of several values of one dtype, without learned bits and without noise; scale, step: 2^f and 2^-f of all their
    entries, as one vector.
    """
    result: tuple[Tensor, ...] = applied(_RoundAll, scale, step, rounding, *values)
    return result
