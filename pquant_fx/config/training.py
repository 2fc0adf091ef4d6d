"""Section `training_parameters`: the stages of training. The only section that keeps keys of the user's own."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from pquant_fx.config.section import Amount, Finding, Fraction, Section, Whole

__all__ = ["TrainingParameters"]


class TrainingParameters(Section):
    """Table 4 of the PQuantML paper, plus settings of ours, which come after `pruning_first`.

    Epochs count passes over the training data; `epochs` are those of one round. rewind: when the weights go back to what they
    were at the beginning of epoch `save_weights_epoch` of the first round. pruning_first: masks are chosen by the weights as they are
    learned; false: by quantized ones, where that is possible (a mask of 0 and 1 commutes with quantization, so nothing else
    changes; masks that change values always come first). batchnorm_freeze: for this share of the last stage,
    at its end, BatchNorm keeps the statistics that it has. bits_freeze: for this share of the training stage, at its end,
    learned bits and ranges stand still. fine_tune_formats: learned bits and ranges go on learning in fine-tuning. bits_rate:
    their learning rate, as a multiple of `learning_rate`. Other keys are the user's own: kept, written back, and found under
    `model_extra`. `likely_typos` lists those that look like a misspelt key.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, JsonValue]

    epochs: Annotated[Whole, Field(ge=0)] = 200
    fine_tuning_epochs: Annotated[Whole, Field(ge=0)] = 0
    pretraining_epochs: Annotated[Whole, Field(ge=0)] = 50
    rewind: Literal["never", "every-round", "post-training-stage"] = "never"
    rounds: Annotated[Whole, Field(ge=1)] = 1
    save_weights_epoch: Annotated[Whole, Field(ge=-1)] = -1
    pruning_first: bool = True
    batchnorm_freeze: Fraction = 0.1
    bits_freeze: Fraction = 0.15
    fine_tune_formats: bool = False
    batch_size: Annotated[Whole, Field(ge=1)] = 128
    learning_rate: Annotated[Amount, Field(gt=0)] = 1e-3
    bits_rate: Annotated[Amount, Field(gt=0)] = 4.0

    def unavailable(self) -> list[Finding]:
        """Files of the seed system ask for rewinding without an epoch to go back to, and load; nobody can do what they say."""
        found = super().unavailable()
        if self.rewind != "never" and not 0 <= self.save_weights_epoch < self.epochs:
            what = f"{self.save_weights_epoch} is no epoch of the training stage, but rewind is '{self.rewind}'"
            remedy = f"give the epoch (0 to {self.epochs - 1}) at whose beginning the weights are kept, or set rewind: never"
            found.append(("PQ407", "save_weights_epoch", what, remedy))
        return found

    def likely_typos(self) -> dict[str, str]:
        """The user's own keys that are close to a known key, with that key."""
        known = list(type(self).model_fields)
        near = {key: difflib.get_close_matches(key.lower(), known, 1, 0.8) for key in self.model_extra or {}}
        return {key: found[0] for key, found in near.items() if found}
