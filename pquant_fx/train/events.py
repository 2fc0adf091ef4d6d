"""What happens during training, as frozen records: the session tells each of its listeners one after the other.

A compression method is a listener: a callable that looks at the events it knows and ignores the rest. It may add to the
loss (`AddsLoss`), say what the network costs now (`Measures`) and keep a state across checkpoints (`Stateful`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

__all__ = [
    "STAGES",
    "AddsLoss",
    "EpochEnd",
    "EpochStart",
    "Event",
    "Listener",
    "Measures",
    "RoundEnd",
    "Stage",
    "StageEnd",
    "StageStart",
    "Stateful",
    "StepEnd",
]

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
    """An epoch begins, told before its first step. epoch: 0-based, of the `epochs` of its round; round: 0-based (0 outside training)."""

    stage: Stage
    round: int
    epoch: int
    epochs: int


@dataclass(frozen=True)
class StepEnd:
    """An optimizer step was made. step: steps made in this stage, this one included, of `steps` in all; `last` of its epoch, which
    is counted as in `EpochStart`.
    """

    stage: Stage
    round: int
    step: int
    steps: int
    last: bool = False
    epoch: int = 0
    epochs: int = 1


@dataclass(frozen=True)
class RoundEnd:
    """A round of the training stage is over, told after its last step; `last` of all."""

    round: int
    last: bool


@dataclass(frozen=True)
class StageEnd:
    """A stage is over; told once per stage in order, also for a stage of 0 epochs."""

    stage: Stage


@dataclass(frozen=True)
class EpochEnd:
    """A finished epoch: one row of the history, and what callbacks receive.

    epoch: 1-based over the whole training; loss: mean training loss per sample (None in an own loop); metrics: measured on
    the validation data, `validation_loss` included; sparsity: fraction of maskable weights that the masks remove (0 without
    masks); seconds: wall time of the epoch; ebops: exact effective bit operations of one sample after the epoch; beta: what one
    of them adds to the loss (both None where no bits are learned).
    """

    epoch: int
    stage: Stage
    round: int
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sparsity: float = 0.0
    seconds: float = 0.0
    ebops: float | None = None
    beta: float | None = None


Event = StageStart | EpochStart | StepEnd | RoundEnd | StageEnd | EpochEnd
Listener = Callable[[Event], None]


@runtime_checkable
class AddsLoss(Protocol):
    """A listener that asks for a term beside the task's loss."""

    def loss(self) -> Tensor | None:
        """A 0-d tensor on the model's device for the step that runs, without waiting for the device; None for nothing."""
        ...


@runtime_checkable
class Measures(Protocol):
    """A listener that knows what the network costs: asked once an epoch, after its last step."""

    def measure(self) -> Mapping[str, float]:
        """Values of the fields `ebops` and `beta` of `EpochEnd`; empty when there is nothing to say."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A listener that continues identically from a checkpoint. States are plain numbers, tensors and dicts of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
