"""What happens during training, as frozen records: the session tells each of its listeners one after the other.

A compression method is a listener: a callable that looks at the events it knows and ignores the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["STAGES", "EpochEnd", "EpochStart", "Event", "Listener", "Stage", "StageEnd", "StageStart", "StepEnd"]

Stage = Literal["pretraining", "training", "fine_tuning"]
STAGES: tuple[Stage, ...] = ("pretraining", "training", "fine_tuning")


@dataclass(frozen=True)
class StageStart:
    """A stage begins; told once per stage in order, also for a stage of 0 epochs."""

    stage: Stage
    epochs: int
    steps: int


@dataclass(frozen=True)
class EpochStart:
    """epoch: 0-based inside the stage, `round` 0-based (always 0 outside training)."""

    stage: Stage
    round: int
    epoch: int


@dataclass(frozen=True)
class StepEnd:
    """An optimizer step was made. step: steps made in this stage, this one included, of `steps` in all."""

    stage: Stage
    round: int
    step: int
    steps: int


@dataclass(frozen=True)
class StageEnd:
    """A stage is over; told once per stage in order, also for a stage of 0 epochs."""

    stage: Stage


@dataclass(frozen=True)
class EpochEnd:
    """A finished epoch: one row of the history, and what callbacks receive.

    epoch: 1-based over the whole training; loss: mean training loss per sample (None in an own loop); metrics: measured on
    the validation data, `validation_loss` included; sparsity: fraction of maskable weights that the masks remove (0 without
    masks); seconds: wall time of the epoch.
    """

    epoch: int
    stage: Stage
    round: int
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sparsity: float = 0.0
    seconds: float = 0.0


Event = StageStart | EpochStart | StepEnd | StageEnd | EpochEnd
Listener = Callable[[Event], None]
