"""Observers that count: histograms of what a value was, and the range that a percentile, the squared error or the divergence chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.formats import OverflowMode
from pquant_fx.quantize.fixed_point import INTEGER_BITS_LIMIT, integer_bits
from pquant_fx.quantize.kernel import quantize_value
from pquant_fx.quantize.observers import Observer, over_ranks

__all__ = ["Divergence", "Histogram", "MeanSquare", "Percentile"]

_HALF_BINS = 2048  # bins on each side of zero
_CELLS = 2**21  # bins of all groups together: many groups get coarser histograms, of at least _FEWEST bins a side
_FEWEST = 32
_CANDIDATES = 5
_POINTS = 4  # evaluation points in a bin


class Histogram(Observer):
    """Counts over [-R, R], R a power of two that doubles (bins merge in pairs) when a value lies outside."""

    _counts: Tensor | None = None
    _exponent: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__(shape)
        fitting = max(_CELLS // (2 * torch.Size(shape).numel()), 1)
        self._half = min(_HALF_BINS, max(_FEWEST, 1 << (fitting.bit_length() - 1)))

    def _record(self, groups: Tensor, low: Tensor, high: Tensor) -> None:
        needed = integer_bits(low.reshape(-1, 1), high.reshape(-1, 1)).double()
        self._widen(needed)
        counts = self._found(groups.device)
        bins = (groups.double() / self._step()).floor().nan_to_num(0.0).clamp(-self._half, self._half - 1).long() + self._half
        offsets = torch.arange(len(groups), device=groups.device).unsqueeze(1) * (2 * self._half)
        found = torch.bincount((bins + offsets).reshape(-1), minlength=counts.numel())
        self._counts = counts + found.reshape(counts.shape)

    def _merge(self, low: Tensor, high: Tensor) -> None:
        if self._counts is None:
            self._exponent = torch.full((low.numel(), 1), -float(INTEGER_BITS_LIMIT), dtype=torch.float64, device=low.device)
        self._widen(over_ranks(self._exponent, "MAX"))
        self._counts = over_ranks(self._found(low.device))

    def _widen(self, exponent: Tensor) -> None:
        """Let R of each group be at least 2^exponent."""
        if self._counts is None:
            self._exponent = exponent
            return
        wider = torch.maximum(self._exponent, exponent)
        codes = torch.arange(-self._half, self._half, dtype=torch.float64, device=self._counts.device)
        merged = (codes * (self._exponent - wider).exp2()).floor().long() + self._half
        self._counts = torch.zeros_like(self._counts).scatter_add_(1, merged, self._counts)
        self._exponent = wider

    def _found(self, device: torch.device) -> Tensor:
        """The counts, (groups, bins); zeros before the first value."""
        if self._counts is not None:
            return self._counts
        return torch.zeros(torch.Size(self.shape).numel(), 2 * self._half, dtype=torch.float64, device=device)

    def _step(self) -> Tensor:
        return self._exponent.exp2() / self._half


class Percentile(Histogram):
    """`percentile`: p percent of the values lie at or below the upper end, and p percent at or above the lower one."""

    def __init__(self, shape: tuple[int, ...] = (), percentile: float = 99.99) -> None:
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
        return ((index + 1 - self._half) * self._step()).reshape(self.shape).to(like.dtype)


class _BestOfFive(Histogram, ABC):
    """Of the five i at and below the covering one, that with the least loss over the histogram; the widest of equals."""

    points = 1

    def integer_bits(self, k: Tensor, width: int, overflow: OverflowMode) -> Tensor:
        low, high = self.extremes
        widest = integer_bits(low * k, high)
        if self._counts is None:
            return widest
        fine = torch.arange(2 * self._half * self.points, dtype=torch.float64, device=low.device)
        fine = (fine + 0.5) / self.points - self._half
        columns = [t.double().reshape(-1, 1) for t in (k.expand_as(widest), widest, low, high)]
        best = []
        at_once = max(_CELLS // len(fine), 1)
        for first in range(0, len(self._counts), at_once):
            rows = slice(first, first + at_once)
            sign, top, least, most = (c[rows] for c in columns)
            points = torch.minimum(torch.maximum(fine * self._step()[rows], least), most)
            losses = [self._loss(self._counts[rows], points, sign, top - less, width) for less in range(_CANDIDATES)]
            best.append(torch.stack(losses).argmin(0))
        return widest - torch.cat(best).reshape(self.shape).to(widest.dtype)

    @abstractmethod
    def _loss(self, counts: Tensor, points: Tensor, k: Tensor, i: Tensor, width: int) -> Tensor:
        """What (k, i) of that width costs each group: counts (groups, bins) of values at `points` (groups, bins * points)."""


class MeanSquare(_BestOfFive):
    """`mse`: the squared error."""

    points = _POINTS

    def _loss(self, counts: Tensor, points: Tensor, k: Tensor, i: Tensor, width: int) -> Tensor:
        q = quantize_value(points, k, i, width - k - i, "RND", "SAT")
        return (counts.repeat_interleave(_POINTS, dim=1) * (q - points) ** 2).sum(1)


class Divergence(_BestOfFive):
    """`kl`: the Kullback-Leibler divergence of the histogram from its quantized version (after Migacz 2017).

    The quantized version knows how often each code occurs and nothing else: it spreads that count evenly over the bins, of
    those that occur, which the code stands for.
    """

    def _loss(self, counts: Tensor, points: Tensor, k: Tensor, i: Tensor, width: int) -> Tensor:
        codes = quantize_value(points, k, i, width - k - i, "RND", "SAT")
        changes = torch.nn.functional.pad((codes[:, 1:] != codes[:, :-1]).long(), (1, 0))
        code = changes.cumsum(1)  # bins of one code stand side by side: rounding is monotone
        occurs = (counts > 0).to(counts.dtype)
        mass, members = (torch.zeros_like(counts).scatter_add_(1, code, v).gather(1, code) for v in (counts, occurs))
        ratio = counts * members / mass.clamp(min=1)
        return torch.where(counts > 0, counts * ratio.clamp(min=torch.finfo(ratio.dtype).tiny).log(), 0.0).sum(1)
