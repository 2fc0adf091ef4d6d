"""The straight-through gradients of `kernel`, in as few passes over memory as they take."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from pquant_fx.formats import OverflowMode, RoundingMode
from pquant_fx.graph.functions import applied, summed
from pquant_fx.quantize.grid import Grid

__all__ = ["LN2", "Modes", "applied", "grad_all", "grad_x", "summed"]

LN2 = log(2.0)


class Modes(NamedTuple):
    """straight: pass dq/dx = 1 everywhere and nothing to the bits, for formats that follow their own value. signed: k, or None."""

    rounding: RoundingMode
    overflow: OverflowMode
    straight: bool
    signed: bool | None


def grad_x(grad: Tensor, x: Tensor, grid: Grid, overflow: OverflowMode) -> Tensor:
    if overflow in ("WRAP", "WRAP_SM"):
        return grad if grid.valid is None else grad * grid.valid
    low, high = grid.low, grid.high
    if grid.valid is not None:  # a zero-width format has no inside: both bounds go where no value is
        far = torch.finfo(x.dtype).max
        low, high = torch.where(grid.valid > 0, low, far), torch.where(grid.valid > 0, high, far)
    # no boolean of x's size: Inductor's CPU code stores one 50 times slower than a float
    outside = torch.clamp(x, low, high).sub_(x).sign_().abs_()
    return torch.addcmul(grad, outside, grad, value=-1)


def grad_all(grad: Tensor, x: Tensor, rounded: Tensor, k: Tensor, grid: Grid, modes: Modes) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dx, and what dL/di and dL/df are sums of, of the format's shape (all axes that k and the grid share are summed already).

    rounded: q of x, or of x clipped under SAT_ZERO; under WRAP and WRAP_SM x rounded without bounds.
    """
    shape = torch.broadcast_shapes(k.shape, grid.step.shape)  # type: ignore[no-untyped-call]
    ln2 = LN2 if grid.valid is None else LN2 * grid.valid
    if modes.overflow in ("WRAP", "WRAP_SM"):
        by_f = summed(grad * (x - rounded), shape) * ln2
        return grad_x(grad, x, grid, modes.overflow), torch.zeros_like(grid.step), by_f
    clipped = torch.clamp(x, grid.low, grid.high)
    errors = summed(grad * (clipped - rounded), shape)  # 0 outside: the bounds are on the grid
    side = (x - clipped).sign_()  # +-1 above and below
    pushed = grad * side
    by_x = torch.addcmul(grad, pushed, side, value=-1)
    by_x = by_x if grid.valid is None else by_x * grid.valid
    if modes.overflow == "SAT_ZERO":
        return by_x, torch.zeros_like(grid.step), errors * ln2
    by_bounds = summed(pushed if modes.signed else grad * side.clamp(min=-k), shape)
    by_step = by_bounds
    if modes.overflow == "SAT" and modes.signed is not False:
        # where no bits are left, the lower bound of a signed format is 0 as well, and its bits must regrow for x < 0 too
        by_step = summed(grad * side.clamp(min=-k * (grid.low == 0).to(k.dtype)), shape)
    return by_x, by_bounds * (grid.high + grid.step) * ln2, torch.addcmul(errors, by_step, grid.step) * ln2
