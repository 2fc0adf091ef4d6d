"""What calibration keeps of the values it sees: extremes, moving averages or histograms, never the values themselves.

Values are grouped by a shape: () is one group, (1, C, 1, 1) a group a channel. Nothing synchronises with the device
until a format is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.formats import OverflowMode
from pquant_fx.quantize.fixed_point import integer_bits
from pquant_fx.quantize.kernel import quantize_value, widened

__all__ = ["METHODS", "Observer", "make_observer"]

METHODS = ("minmax", "ema", "percentile", "mse")
_HALF_BINS = 2048  # bins on each side of zero
_MOMENTUM = 0.01
_CANDIDATES = 5
_POINTS = 4  # evaluation points in a bin


class Observer:
    """`minmax`: the smallest and largest value of each group."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    @property
    def seen(self) -> bool:
        """Whether any value was."""
        return self._low is not None

    @property
    def extremes(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value so far, of the group shape; NaN or infinite as soon as one value was."""
        if self._low is None or self._high is None:
            raise ConfigError(Problem("PQ307", "the observer has seen no value", "run the graph on at least one batch"))
        return self._low, self._high

    def update(self, x: Tensor) -> None:
        """Take in the values `x`, any float dtype; an empty batch changes nothing."""
        if x.numel() == 0:
            return
        groups = self._groups(widened(x.detach()))
        low, high = groups.amin(1).reshape(self.shape), groups.amax(1).reshape(self.shape)
        self._record(groups, low, high)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def integer_bits(self, k: Tensor, width: int, overflow: OverflowMode) -> Tensor:
        """i for a format with sign bit k, of the group shape."""
        low, high = self.range()
        return integer_bits(low * k, high)

    def range(self) -> tuple[Tensor, Tensor]:
        """The range that the format shall cover."""
        return self.extremes

    def _record(self, groups: Tensor, low: Tensor, high: Tensor) -> None:
        """What a subclass keeps besides the extremes."""

    def _groups(self, x: Tensor) -> Tensor:
        """x as (groups, values)."""
        if not self.shape:
            return x.reshape(1, -1)
        if len(self.shape) != x.dim() or any(s not in (1, n) for s, n in zip(self.shape, x.shape)):
            what = f"a format of shape {self.shape} does not fit a value of shape {tuple(x.shape)}"
            raise ConfigError(Problem("PQ306", what, "give the group shape the value's rank, with size 1 on shared axes"))
        own = [d for d, s in enumerate(self.shape) if s != 1]
        shared = [d for d, s in enumerate(self.shape) if s == 1]
        return x.permute(own + shared).reshape(torch.Size(self.shape).numel(), -1)


class _MovingAverage(Observer):
    """`ema`: m <- 0.99 m + 0.01 batch value for both ends; the first batch initialises."""

    _ends: tuple[Tensor, Tensor] | None = None

    def _record(self, groups: Tensor, low: Tensor, high: Tensor) -> None:
        if self._ends is None:
            self._ends = (low, high)
        else:
            self._ends = (torch.lerp(self._ends[0], low, _MOMENTUM), torch.lerp(self._ends[1], high, _MOMENTUM))

    def range(self) -> tuple[Tensor, Tensor]:
        if self._ends is None:
            return self.extremes
        return self._ends


class _Histogram(Observer):
    """Counts over [-R, R], R a power of two that doubles (bins merge in pairs) when a value lies outside."""

    _counts: Tensor | None = None
    _exponent: Tensor

    def _record(self, groups: Tensor, low: Tensor, high: Tensor) -> None:
        needed = integer_bits(low.reshape(-1, 1), high.reshape(-1, 1)).double()
        if self._counts is None:
            self._counts = torch.zeros(len(groups), 2 * _HALF_BINS, dtype=torch.float64, device=groups.device)
            self._exponent = needed
        else:
            wider = torch.maximum(self._exponent, needed)
            codes = torch.arange(-_HALF_BINS, _HALF_BINS, dtype=torch.float64, device=groups.device)
            merged = (codes * (self._exponent - wider).exp2()).floor().long() + _HALF_BINS
            self._counts = torch.zeros_like(self._counts).scatter_add_(1, merged, self._counts)
            self._exponent = wider
        bins = (groups.double() / self._step()).floor().nan_to_num(0.0).clamp(-_HALF_BINS, _HALF_BINS - 1).long() + _HALF_BINS
        offsets = torch.arange(len(groups), device=groups.device).unsqueeze(1) * (2 * _HALF_BINS)
        found = torch.bincount((bins + offsets).reshape(-1), minlength=self._counts.numel())
        self._counts = self._counts + found.reshape(self._counts.shape)

    def _step(self) -> Tensor:
        return self._exponent.exp2() / _HALF_BINS


class _Percentile(_Histogram):
    """`percentile`: p percent of the values lie at or below the upper end, and p percent at or above the lower one."""

    def __init__(self, shape: tuple[int, ...], percentile: float) -> None:
        super().__init__(shape)
        if not 50.0 < percentile <= 100.0:
            raise ConfigError(Problem("PQ407", f"a percentile of {percentile} keeps no range", "use more than 50 and at most 100"))
        self.percentile = percentile

    def range(self) -> tuple[Tensor, Tensor]:
        low, high = self.extremes
        if self._counts is None:
            return low, high
        wanted = self._counts.sum(1, keepdim=True) * (self.percentile / 100.0)
        upper = self._edge(self._counts.cumsum(1), wanted, high)
        lower = -self._edge(self._counts.flip(1).cumsum(1), wanted, -low)
        return torch.maximum(lower, low), torch.minimum(upper, high)

    def _edge(self, cumulated: Tensor, wanted: Tensor, like: Tensor) -> Tensor:
        """The outer edge of the first bin at which the count is reached."""
        index = (cumulated < wanted).sum(1, keepdim=True)
        return ((index + 1 - _HALF_BINS) * self._step()).reshape(self.shape).to(like.dtype)


class _MeanSquare(_Histogram):
    """`mse`: of the five i at and below the covering one, that with the least squared error over the histogram."""

    def integer_bits(self, k: Tensor, width: int, overflow: OverflowMode) -> Tensor:
        low, high = self.extremes
        widest = integer_bits(low * k, high)
        if self._counts is None:
            return widest
        fine = torch.arange(2 * _HALF_BINS * _POINTS, dtype=torch.float64, device=low.device)
        points = ((fine + 0.5) / _POINTS - _HALF_BINS) * self._step()
        points = torch.minimum(torch.maximum(points, low.reshape(-1, 1)), high.reshape(-1, 1))
        weights = self._counts.repeat_interleave(_POINTS, dim=1)
        sign, top = k.double().reshape(-1, 1), widest.double().reshape(-1, 1)
        errors = []
        for less in range(_CANDIDATES):
            i = top - less
            q = quantize_value(points, sign, i, width - sign - i, "RND", "SAT")
            errors.append((weights * (q - points) ** 2).sum(1))
        best = torch.stack(errors).argmin(0)  # the first of equals: the widest range
        return widest - best.reshape(self.shape).to(widest.dtype)


def make_observer(method: str, shape: tuple[int, ...] = (), percentile: float = 99.99) -> Observer:
    """A fresh observer: minmax, ema, percentile or mse. Raises ConfigError (PQ405) for another name."""
    if method == "percentile":
        return _Percentile(shape, percentile)
    kinds: dict[str, type[Observer]] = {"minmax": Observer, "ema": _MovingAverage, "mse": _MeanSquare}
    if method not in kinds:
        raise ConfigError(Problem("PQ405", f"there is no calibration method '{method}'", f"use one of {', '.join(METHODS)}"))
    return kinds[method](shape)
