"""What calibration keeps of the values it sees: extremes or moving averages; `histograms` has the methods that count.

Values are grouped by a shape: () is one group, (1, C, 1, 1) a group a channel. Nothing synchronises with the device
until a format is asked for.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.formats import OverflowMode
from pquant_fx.quantize.fixed_point import integer_bits
from pquant_fx.quantize.kernel import widened

__all__ = ["METHODS", "Observer", "across_ranks", "make_observer", "over_ranks"]

METHODS = ("minmax", "ema", "percentile", "mse", "kl")
_MOMENTUM = 0.01


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

    def synchronise(self, device: torch.device) -> None:
        """Know what any rank of torch.distributed has seen; a collective: every rank calls it, in the same order.

        device: where a rank that has seen nothing takes part. A NaN on any rank is an infinite extreme on all of them.
        """
        nothing = torch.full(self.shape, torch.inf, dtype=torch.float64, device=device)
        low = nothing if self._low is None else self._low.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        high = -nothing if self._high is None else self._high.double().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        low, high = over_ranks(low, "MIN"), over_ranks(high, "MAX")
        self._merge(low, high)
        if bool((low <= high).any()):
            self._low, self._high = low, high

    def _record(self, groups: Tensor, low: Tensor, high: Tensor) -> None:
        """What a subclass keeps besides the extremes, of one more batch."""

    def _merge(self, low: Tensor, high: Tensor) -> None:
        """Bring what a subclass keeps together with that of all ranks; low, high: the extremes of all."""

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
    """`ema`: m <- 0.99 m + 0.01 batch value for both ends; the first batch initialises. Ranks count by their batches."""

    _ends: tuple[Tensor, Tensor] | None = None
    _batches = 0

    def _record(self, groups: Tensor, low: Tensor, high: Tensor) -> None:
        self._batches += 1
        if self._ends is None:
            self._ends = (low, high)
        else:
            self._ends = (torch.lerp(self._ends[0], low, _MOMENTUM), torch.lerp(self._ends[1], high, _MOMENTUM))

    def _merge(self, low: Tensor, high: Tensor) -> None:
        ends = self._ends if self._ends is not None else (torch.zeros_like(low), torch.zeros_like(high))
        batches = over_ranks(low.new_tensor(float(self._batches)))
        merged = [over_ranks(end.double() * self._batches) / batches.clamp(min=1) for end in ends]
        self._ends = (merged[0], merged[1])

    def range(self) -> tuple[Tensor, Tensor]:
        if self._ends is None:
            return self.extremes
        return self._ends


def across_ranks() -> bool:
    """Whether several ranks of torch.distributed work together here."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def over_ranks(value: Tensor, how: Literal["SUM", "MIN", "MAX"] = "SUM") -> Tensor:
    """`value` reduced over all ranks of torch.distributed, in a tensor of its own."""
    value = value.clone().contiguous()
    torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, how))
    return value


def make_observer(method: str, shape: tuple[int, ...] = (), percentile: float = 99.99) -> Observer:
    """A fresh observer: minmax, ema, percentile, mse or kl. Raises ConfigError (PQ405) for another name."""
    from pquant_fx.quantize.histograms import Divergence, MeanSquare, Percentile

    if method == "percentile":
        return Percentile(shape, percentile)
    kinds: dict[str, type[Observer]] = {"minmax": Observer, "ema": _MovingAverage, "mse": MeanSquare, "kl": Divergence}
    if method not in kinds:
        raise ConfigError(Problem("PQ405", f"there is no calibration method '{method}'", f"use one of {', '.join(METHODS)}"))
    return kinds[method](shape)
