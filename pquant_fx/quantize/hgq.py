"""High Granularity Quantization: every group of values trains its own bits (Sun et al. 2024, arXiv 2405.00645).

KIF trains i and f; KBI trains i and the magnitude bits b = i + f. Under WRAP i is not trained but tracked: it is what the
values need (`required_integer_bits`), and training rounds without wrapping. Bits count rounded half to even, with identity
gradient. A format of no bits is 0, and its bits regrow where the loss wants a larger magnitude (see `kernel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.quantize.bit_gradients import learned_bits, scaled_gradient, straight
from pquant_fx.quantize.fixed_point import exact_width, integer_bits
from pquant_fx.quantize.kernel import Grid, quantize_value, round_value
from pquant_fx.quantize.learned import LearnedQuantizer, parameter
from pquant_fx.quantize.ranges import required_integer_bits, settled, widened_to_wrap

__all__ = ["MOST_I", "HGQQuantizer", "Parametrization"]

Parametrization = Literal["kif", "kbi"]
MOST_I, _MOST_F = 23.0, 24.0  # |i|, |f| up to which bits are trained (HGQ2)


class HGQQuantizer(LearnedQuantizer):
    """What HGQData and HGQWeight share: parameters `i` (a buffer where it is tracked) and `f` (KIF) or `b` (KBI), and their arithmetic.

    group_size: how many values of a sample share a format; with group_grad_norm the gradient of `magnitude_bits` is divided by
    its root (HGQ v1), its value stays.
    """

    i: Tensor
    f: Tensor
    b: Tensor
    overflows = ("SAT", "SAT_SYM", "WRAP")

    def _set_up(self, parametrization: str, group_size: int, group_grad_norm: bool, tracked: bool = False) -> None:
        if parametrization not in get_args(Parametrization):
            remedy = f"use one of {', '.join(get_args(Parametrization))}"
            raise ConfigError(Problem("PQ405", f"there is no parametrization '{parametrization}'", remedy))
        self.parametrization, self.group_size, self.group_grad_norm = parametrization, group_size, group_grad_norm
        self.tracked = tracked or self.overflow == "WRAP"
        self.by_width = parametrization == "kbi"
        self._most = exact_width(torch.float32 if self.width <= 24 else torch.float64)
        magnitude = self.width - float(self.k.amax())
        if self.tracked:
            self.register_buffer("i", torch.full(self.shape, 2.0))
        else:
            self.i = parameter(self.shape, 2.0)
        setattr(self, "b" if self.by_width else "f", parameter(self.shape, magnitude if self.by_width else magnitude - 2.0))
        own = "b" if self.by_width else "f"
        self.bit_parameters = (own,) if self.tracked else ("i", own)

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """The parameters whose sum the magnitude bits are, rounded."""
        return (self.b,) if self.by_width else (self.f,) if self.tracked else (self.i, self.f)

    def bits(self, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """i and f as integers within their bounds, with identity gradient."""
        i, f = self._whole()
        own_i = i if self.tracked else straight(self.i, i)
        return own_i, straight(self._fraction(self.i), f)

    def magnitude_bits(self, x: Tensor | None = None) -> Tensor:
        """relu(i + f), of the group shape. Under `group_grad_norm` with a smaller gradient.

        Its gradient lives at 0 bits: with relu's there, bits that only just round to 0 would be pressed no further and come and go.
        It ends there where i is tracked, because i = -f of a group of zeros follows any f.
        """
        if self.by_width:
            bits = straight(self.b, self._widths())
        else:
            i, f = self.bits(x)
            bits = (i + f).relu() if self.tracked else (i + f).clamp(min=0)
        return scaled_gradient(bits, self.group_size**-0.5) if self.group_grad_norm and self.group_size > 1 else bits

    @classmethod
    def bits_of(cls, quantizers: Sequence[Quantizer], signs: Sequence[bool]) -> list[tuple[Tensor, Tensor | None]]:
        """As `magnitude_bits` and `sign_bits` one by one, with one node of autograd for all."""
        alike = [q for q in quantizers if isinstance(q, HGQQuantizer)]
        with torch.no_grad():
            whole = [q._widths() if q.by_width else q._width_of_both() for q in alike]
            stored = [q._stored_signs(n) if signed else None for q, n, signed in zip(alike, whole, signs)]
            alive = [n > 0 if q.tracked and not q.by_width else n >= 0 for q, n in zip(alike, whole)]
        owners = [(n, p) for n, q in enumerate(alike) for p in q.trained]
        found = learned_bits([n.relu_() for n in whole], alive, [n for n, _ in owners], [p for _, p in owners])
        norms = [q.group_size**-0.5 if q.group_grad_norm and q.group_size > 1 else None for q in alike]
        return [(t if norm is None else scaled_gradient(t, norm), sign) for t, norm, sign in zip(found, norms, stored)]

    def _width_of_both(self) -> Tensor:
        """i + f as they count (see `_whole`), in fewer steps: each count of a training step takes these."""
        f = self.f.detach().clamp(-_MOST_F, self._finest()).round_()
        return self.i.detach().clamp(-MOST_I, MOST_I).round_().add_(f).add_(self.k).clamp_(max=self._most).sub_(self.k)

    def _stored_signs(self, whole: Tensor) -> Tensor:
        """k where i + f = `whole` bits store anything."""
        lone = self.least == 0 and self.overflow != "SAT_SYM"
        return self.k * (torch.heaviside(whole, self.k) if lone else whole.relu().sign())

    def regularization(self) -> Tensor:
        """Sum of i and f (KIF), of f alone (KIF with i tracked), of b (KBI): what L1 gamma acts on, unbounded below."""
        if self.by_width:
            return self.b.sum()
        return self.f.sum() if self.tracked else self.i.sum() + self.f.sum()

    def clamp_(self) -> None:
        with torch.no_grad():
            if self.by_width:
                self.b.clamp_(0.0, self._widest())
            else:
                self.f.clamp_(-_MOST_F, self._finest())
            if not self.tracked:
                self.i.clamp_(-MOST_I, MOST_I)

    def _take(self, k: Tensor, i: Tensor, f: Tensor) -> None:
        top = float(i.amax()) if i.numel() else 0.0
        if abs(top) > MOST_I:
            what = f"values of about 2^{top:.0f} are out of reach: HGQ trains formats with -{MOST_I:.0f} <= i <= {MOST_I:.0f}"
            raise ConfigError(Problem("PQ306", what, "scale the values, or choose another quantizer for this place"))
        self.k.copy_(k)
        self.i.copy_(i)
        (self.b if self.by_width else self.f).copy_(i + f if self.by_width else f)
        self.clamp_()

    def _value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            i, f = self._whole()
            grid = Grid.saturating(self.k, i, f, self.overflow, self._signed, self.least)
        modes = self.rounding, self.overflow, self.training
        return quantize_value(x, self.k, self.i, self._fraction(self.i), *modes, grid=grid, signed=self._signed)

    def _whole(self) -> tuple[Tensor, Tensor]:
        """i and f as they count: rounded, within bounds, together no wider than floating point holds; without gradients."""
        i = self.i.detach().clamp(-MOST_I, MOST_I).round_()
        if self.by_width:
            return i, self._widths() - i
        return i, torch.minimum(self._whole_fraction(), self._most - self.k - i)

    def _whole_fraction(self) -> Tensor:
        return self.f.detach().clamp(-_MOST_F, self._finest()).round_()

    def _widths(self) -> Tensor:
        return self.b.detach().clamp(0.0, self._widest()).round_()

    def _fraction(self, i: Tensor) -> Tensor:
        """f as autograd sees it."""
        return self.b - i if self.by_width else self.f

    def _widest(self) -> float:
        return self._most - 1.0

    def _finest(self) -> float:
        return _MOST_F if self._most == 24 else float(self._most)

    def _needed(self, low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The i that values from `low` to `high` need, and the f that goes with it, as integers: nothing wraps."""
        if not self.by_width:
            f = self._whole_fraction()
            return required_integer_bits(low, high, f, self.rounding, symmetric), f
        b = self._widths()
        most = torch.maximum(high, -low) if symmetric else high
        i = settled(integer_bits(low, high), (low == 0) & (high == 0), spread=int(_MOST_F))
        i = widened_to_wrap(i, most, b, self.rounding, "WRAP")
        return i, b - i

    def _rounded(self, x: Tensor, i: Tensor, f: Tensor) -> Tensor:
        """x rounded to the grid 2^-f, without bounds; 0 where b is 0."""
        present = (self._widths() > 0).to(x.dtype) if self.by_width else None
        return round_value(x, self._fraction(i), self.rounding, self.training, whole=f, present=present)
