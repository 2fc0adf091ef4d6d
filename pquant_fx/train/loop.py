"""What the loop around a session can do for the compression methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

__all__ = ["Loop", "loop_around"]


def _alone(_: Tensor) -> None:
    """One process has seen everything."""


@dataclass(frozen=True)
class Loop:
    """retrace: traces data ranges over the training data, None where a loop has no data to offer. agree: makes a number that was
    measured the same on all ranks; to be called by all of them. optimizer: whose state follows masks and rewinding, None where it
    is not known. add_ranks: adds up a tensor over all ranks, in place; to be called by all of them.
    """

    retrace: Callable[[], None] | None = None
    agree: Callable[[float], float] = float
    optimizer: Optimizer | None = None
    add_ranks: Callable[[Tensor], None] = _alone


def loop_around(model: nn.Module, retrace: Callable[[], None] | None = None, optimizer: Optimizer | None = None) -> Loop:
    """A loop that trains `model`: ranks agree where it is inside DistributedDataParallel."""
    found: Any = model
    while isinstance(found, nn.Module):
        if isinstance(found, DistributedDataParallel):
            group = found.process_group
            return Loop(retrace, _first_rank_of(group), optimizer, _sum_over(group))
        found = getattr(found, "_orig_mod", None)
    return Loop(retrace, optimizer=optimizer)


def _first_rank_of(group: Any) -> Callable[[float], float]:
    """The value of the first rank, for all: counts differ where buffers, such as running statistics, differ between ranks."""
    from torch import distributed

    def agree(value: float) -> float:
        held = [value]
        distributed.broadcast_object_list(held, src=distributed.get_global_rank(group, 0), group=group)
        return float(held[0])

    return agree


def _sum_over(group: Any) -> Callable[[Tensor], None]:
    from torch import distributed

    def add(value: Tensor) -> None:
        distributed.all_reduce(value, group=group)

    return add
