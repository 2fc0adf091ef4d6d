"""Which epoch belongs to which stage: pre-training, `rounds` x training, fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from pquant_fx.errors import Problem, TrainingError
from pquant_fx.train.events import STAGES, Stage, StepEnd

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Epochs of each stage and optimizer steps per epoch. `training` counts all rounds together."""

    pretraining: int
    training: int
    fine_tuning: int
    steps_per_epoch: int
    rounds: int = 1

    @classmethod
    def of_length(cls, epochs: int, steps_per_epoch: int, *, pretraining: int, fine_tuning: int, rounds: int = 1) -> Plan:
        """A plan of `epochs` epochs in all: what pre-training and fine-tuning leave is training.

        Raises TrainingError (PQ412) when a count is no positive integer or the two stages leave nothing.
        """
        problems = [
            Problem("PQ412", f"`{name}` is {value!r}", "give a whole number of at least 1")
            for name, value in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch))
            if isinstance(value, bool) or not isinstance(value, int) or value < 1
        ]
        if problems:
            raise TrainingError(problems)
        training = epochs - pretraining - fine_tuning
        if 0 < training < rounds:
            what = f"{rounds} rounds do not fit into {training} epochs of training"
            raise TrainingError(Problem("PQ412", what, "train longer, or lower rounds in training_parameters"))
        if training < 0 or (training == 0 and pretraining + fine_tuning == 0):
            what = f"{epochs} epochs are fewer than {pretraining} of pre-training and {fine_tuning} of fine-tuning"
            raise TrainingError(
                Problem("PQ412", what, "train longer, or lower pretraining_epochs and fine_tuning_epochs in training_parameters")
            )
        return cls(pretraining, training, fine_tuning, steps_per_epoch, rounds)

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return self.pretraining + self.training + self.fine_tuning

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def epochs_of(self, stage: Stage) -> int:
        """Epochs of one stage; of all rounds together for training."""
        return {"pretraining": self.pretraining, "training": self.training, "fine_tuning": self.fine_tuning}[stage]

    def steps_of(self, stage: Stage) -> int:
        """Optimizer steps of one stage."""
        return self.epochs_of(stage) * self.steps_per_epoch

    def is_last(self, done: StepEnd) -> bool:
        """Whether this was the last step of the whole training."""
        after = STAGES[STAGES.index(done.stage) + 1 :]
        return done.step == done.steps and not any(map(self.epochs_of, after))

    def stage_at(self, epoch: int) -> tuple[Stage, int]:
        """Stage of the 0-based `epoch` of the whole training, and its 0-based number inside that stage."""
        for stage in STAGES:
            if epoch < self.epochs_of(stage):
                return stage, epoch
            epoch -= self.epochs_of(stage)
        raise IndexError(epoch)

    def round_at(self, stage: Stage, epoch: int) -> int:
        """The 0-based round of an epoch of the training stage; rounds differ by at most one epoch in length."""
        return epoch * self.rounds // self.training if stage == "training" else 0

    def cycle_at(self, epoch: int) -> tuple[int, int]:
        """First and one past the last of the epochs, of the whole training, over which a learning rate falls once: one cycle a round,
        to the first of which pre-training belongs, to the last fine-tuning.
        """
        stage, inside = self.stage_at(epoch)
        this = {"pretraining": 0, "fine_tuning": self.rounds - 1}.get(stage, self.round_at(stage, inside))
        first, after = (self.pretraining - (-r * self.training // self.rounds) for r in (this, this + 1))
        return 0 if this == 0 else first, self.epochs if this == self.rounds - 1 else after

    def in_round(self, stage: Stage, epoch: int) -> tuple[int, int]:
        """The 0-based number of an epoch of a stage inside its round, and how many epochs that round has."""
        if stage != "training":
            return epoch, self.epochs_of(stage)
        this = self.round_at(stage, epoch)
        first, after = (-(-r * self.training // self.rounds) for r in (this, this + 1))
        return epoch - first, after - first
