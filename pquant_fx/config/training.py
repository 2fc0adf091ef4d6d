"""Section `training_parameters`: the stages of training. The only section that keeps keys of the user's own."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from pquant_fx.config.section import Amount, Section, Whole, later

__all__ = ["TrainingParameters"]


class TrainingParameters(Section):
    """Table 4 of the PQuantML paper, plus `batch_size` and `learning_rate`.

    Epochs count passes over the training data. Other keys are the user's own: kept, written back, and found under
    `model_extra`. `likely_typos` lists those that look like a misspelt key.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue]

    epochs: Annotated[Whole, Field(ge=0)] = 200
    fine_tuning_epochs: Annotated[Whole, Field(ge=0)] = 0
    pretraining_epochs: Annotated[Whole, Field(ge=0)] = 50
    rewind: Annotated[
        Literal["never", "every-round", "post-training-stage"],
        later("never", "leave rewind at 'never', or load the checkpoint to go back to yourself"),
    ] = "never"
    rounds: Annotated[Whole, Field(ge=1), later(1, "leave rounds at 1, or call fit once per round")] = 1
    save_weights_epoch: Annotated[Whole, Field(ge=-1), later(-1, "leave it at -1, which only rewinding needs")] = -1
    pruning_first: Annotated[bool, later(True, "leave it at true: masks come before quantization, with which they commute")] = True
    batch_size: Annotated[Whole, Field(ge=1)] = 128
    learning_rate: Annotated[Amount, Field(gt=0)] = 1e-3

    def likely_typos(self) -> dict[str, str]:
        """The user's own keys that are close to a known key, with that key."""
        known = list(type(self).model_fields)
        near = {key: difflib.get_close_matches(key.lower(), known, 1, 0.8) for key in self.model_extra or {}}
        return {key: found[0] for key, found in near.items() if found}
