"""The quantizer of fixed width whose format is a function of the parameter that it quantizes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pquant_fx.errors import CalibrationError, ConfigError, Problem
from pquant_fx.formats import evaluation_mode, overflow_mode, rounding_mode
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.quantize.gradients import summed
from pquant_fx.quantize.kernel import Grid, quantize_value, widened
from pquant_fx.quantize.precision import check_precision
from pquant_fx.quantize.ranges import check_width, covering, extremes, widened_to_wrap
from pquant_fx.quantize.static import FixedQuantizer

__all__ = ["DynamicQuantizer"]

_CANDIDATES = 5


class DynamicQuantizer(Quantizer):
    """A parameter quantizer of width W whose format is a function of the value, alike in train and eval.

    axis: who shares a format: an int, all of one index of that axis (0: an output channel); None, the whole tensor; "each",
    nobody. Per group i covers its range (`integer_bits`), k = 1 and f = W - k - i. A group of zeros is the constant 0: k = 0
    and no bits, with the largest i of the others. range: "mse" lets the format of a group saturate by `less` integer bits,
    0 to 4, whichever made the squared error smallest when `start` looked last; it needs the value's `shape`. Gradient 1
    everywhere: the range is the value's own, and pruned groups can recover. Raises ConfigError (PQ306, PQ407).
    """

    less: Tensor

    def __init__(
        self,
        width: int,
        axis: int | Literal["each"] | None = 0,
        rounding: str = "RND",
        overflow: str = "SAT",
        *,
        range: Literal["minmax", "mse"] = "minmax",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        check_width(width)
        self.width, self.axis = width, axis
        self.rounding, self.overflow = rounding_mode(rounding), overflow_mode(overflow)
        self.searches = range == "mse" and axis != "each"  # a value alone gains nothing by saturating
        if self.searches:
            if self.overflow not in ("SAT", "SAT_SYM") or shape is None:
                what = f"range 'mse' with {overflow}" if shape is not None else "range 'mse' without the shape of the value"
                raise ConfigError(Problem("PQ407", f"{what} is impossible", "use SAT and give the shape, or range 'minmax'"))
            self.register_buffer("less", torch.zeros(self._groups(tuple(shape))))

    @property
    def calibrated(self) -> bool:
        return True

    def _limit(self, upper: bool) -> float:
        return float("inf") if upper else float("-inf")

    def start(self, value: Tensor) -> None:
        """Choose anew how far each group saturates, by its squared error on `value`; nothing to do unless `range` is "mse"."""
        if not self.searches:
            return
        with torch.no_grad():
            x = widened(value)
            i, _ = covering(*extremes(x, self._groups(tuple(x.shape))))
            mode, errors = evaluation_mode(self.rounding), []
            for less in range(_CANDIDATES):
                q = quantize_value(x, 1, i - less, self.width - 1 - i + less, mode, self.overflow)
                errors.append(summed((q - x).double().square(), i.shape))
            self.less.copy_(torch.stack(errors).argmin(0))  # the first of equals: the widest range

    def kif(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """k, i, f for the value `x`: 0-d for axis None, else x's rank with size 1 on every shared axis."""
        if x is None:
            raise CalibrationError(Problem("PQ307", "this format follows its value", "give the value: `quantizer.kif(weight)`"))
        x = widened(x.detach())
        low, high = extremes(x, self._groups(tuple(x.shape)))
        i, zero = covering(low, high)
        if self.searches:
            i = i - self.less
        if low.numel() == x.numel():  # values that share their format with no other: nothing is gained by saturating them
            top = x.abs() if self.overflow == "SAT_SYM" else x
            i = widened_to_wrap(i, top, self.width - 1, self.rounding, "WRAP")
        else:
            i = widened_to_wrap(i, high, self.width - 1, self.rounding, self.overflow)
        k = 1 - zero.to(i.dtype)
        return k, i, (self.width - 1) * k - i

    def magnitude_bits(self, x: Tensor | None = None) -> Tensor:
        """W - 1, and 0 for groups that are zero in `x` where the value is given."""
        return torch.full((), self.width - 1.0) if x is None else super().magnitude_bits(x)

    def forward(self, x: Tensor) -> Tensor:
        """q(x), of x's shape. Raises ConfigError (PQ306) when the width is more than x's dtype holds exactly."""
        check_precision(self, self.width, self.width - 1, x)
        k, i, f = self.kif(x)
        grid = Grid.saturating(k, i, f, self.overflow) if self.overflow in ("SAT", "SAT_SYM") else None
        return quantize_value(x, k, i, f, self.rounding, self.overflow, self.training, straight=True, grid=grid)

    def frozen(self, x: Tensor) -> FixedQuantizer:
        """The stored format for the value `x`: `frozen(x)(x)` equals `self(x)` in eval mode, and q is a fixed point of it."""
        return FixedQuantizer(*self.kif(x), evaluation_mode(self.rounding), self.overflow).to(x.device).eval()

    def extra_repr(self) -> str:
        groups = {None: "per tensor", "each": "per element"}.get(self.axis, f"per index of axis {self.axis}")  # type: ignore[arg-type]
        return f"fixed<{self.width},*> {groups}{', mse' if self.searches else ''}, {self.rounding}, {self.overflow}"

    def _groups(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of k, i and f for a value of that shape."""
        if self.axis == "each" or not shape:
            return shape
        if self.axis is None:
            return ()
        return tuple(size if axis == self.axis % len(shape) else 1 for axis, size in enumerate(shape))
