"""What a format means for the arithmetic: bounds, scales, and codes that wrap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pquant_fx.formats import OverflowMode

__all__ = ["Bits", "Grid", "as_bits", "widened", "wrapped"]

Bits = Tensor | float


class Grid(NamedTuple):
    """What a format means for the arithmetic: value bounds (0 when zero-width), 2^f, 2^-f, and 1, or 0 when zero-width.

    valid is None where zero-width formats pass gradients like any other.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    step: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, k: Tensor, i: Tensor, f: Tensor, overflow: OverflowMode) -> Grid:
        """The constants of the format k, i, f in their dtype; fractional bits are rounded half to even."""
        i, f = i.round(), f.round()
        top, step, bits = i.exp2(), (-f).exp2(), i + f
        valid = ((k + bits > 0) & (bits >= 0)).to(top.dtype)
        high = (top - step) * valid
        low = -k * (high if overflow == "SAT_SYM" else top * valid)
        return cls(low, high, f.exp2(), step, valid)

    @classmethod
    def saturating(cls, k: Tensor, i: Tensor, f: Tensor, overflow: OverflowMode, signed: bool | None = None, least: int = 0) -> Grid:
        """The same for integer-valued bits under SAT or SAT_SYM, also those that are learned: i counts as at least -f (HGQ).

        signed: what k is everywhere, None where it differs. least: magnitude bits below which only 0 is left; with 0, the signed
        one-bit type {-lsb, 0} of SAT is a type too.
        """
        lowest = -f
        step, top = lowest.exp2(), torch.maximum(i, lowest).exp2()
        high = top - step
        if signed is False:
            low = torch.zeros_like(high)
        else:
            low = -high if overflow == "SAT_SYM" else top * (i + f < least).to(top.dtype).sub_(1)
            low = low if signed else low * k
        return cls(low, high, f.exp2(), step, None)


def wrapped(n: Tensor, k: Tensor, i: Tensor, f: Tensor, grid: Grid, mirrored: bool) -> Tensor:
    """The low W bits of the codes `n`, read as signed if k; WRAP_SM complements them in every second period."""
    assert grid.valid is not None
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


def widened(x: Tensor) -> Tensor:
    """`x` in the type that it is computed in: float32 for half and bfloat16, which hold 11 and 8 bits only."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def as_bits(value: Bits, x: Tensor) -> Tensor:
    """A bit count as a tensor of x's dtype, without a copy from the host where it is a tensor already."""
    return value.to(x.dtype) if isinstance(value, Tensor) else torch.full((), float(value), dtype=x.dtype, device=x.device)
