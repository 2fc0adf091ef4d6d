"""Pruning methods that learn what to remove: thresholds, logits."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from pquant_fx.config.pruning_section import CHANGES_VALUES, PruningSection, ThresholdType
from pquant_fx.config.section import Amount, Fraction, Number, Whole, refuse

__all__ = ["AutoSparsePruning", "CSPruning", "DSTPruning"]

_LOWEST_LOGIT: Final = -10.0  # 1 / sigmoid of it is 22,000


def _switch_or_share(value: Any) -> bool | float:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and 0 <= value < 1:
        return float(value)
    remedy = "give true (a half), false, or a share from 0 up to but not including 1"
    raise PydanticCustomError("text", "{what}", {"what": f"{value!r} is neither a switch nor a share", "remedy": remedy})


class CSPruning(PruningSection):
    """Continuous Sparsification (Savarese et al. 2020): a mask sigmoid(beta s) hardens while the logits s are learned.

    final_temp: beta at the end of each round, from 1; threshold_init: the logits at first, s0: lower ones prune more;
    threshold_decay: the factor (lambda) of the sum of the mask in the loss: more of it prunes more, none hardly prunes. The mask
    jumps to 0 and 1 when fine-tuning begins, which therefore should have epochs.
    """

    latent_because: ClassVar[str] = CHANGES_VALUES
    gentler: ClassVar[str] = "a higher threshold_init or a lower threshold_decay"
    pruning_method: Literal["cs"] = "cs"
    final_temp: Amount = 200.0
    threshold_init: Number = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = []
        if self.final_temp < 1:
            what = f"{self.final_temp} is below 1, where the temperature begins"
            found.append(("PQ407", "final_temp", what, "give at least 1; 200 is usual"))
        if self.threshold_init < _LOWEST_LOGIT:
            what = f"{self.threshold_init} multiplies surviving weights by 1 / sigmoid of it"
            found.append(("PQ407", "threshold_init", what, f"give at least {_LOWEST_LOGIT:g}; -0.1 to 0 is usual"))
        if found:
            raise refuse(*found)
        return self


class DSTPruning(PruningSection):
    """Dynamic Sparse Training (Liu et al. 2020): weights below a learned threshold are 0.

    alpha: the factor of sum exp(-threshold) in the loss, which presses thresholds up: more of it prunes more; threshold_type: one
    threshold a layer, an output or a weight (the press on a layer grows with their number); threshold_init: where they begin;
    max_pruning_pct: a layer of which this share is gone gets its thresholds back at 0; scale_by_std: how many standard deviations
    of the layer's weights the distance to the threshold is measured in, 0: absolute as published, where in large layers of small
    weights all are near it; threshold_decay: adds threshold_decay / 2 * sum threshold^2 to the loss, which pulls them to 0.
    """

    gentler: ClassVar[str] = "a lower alpha or max_pruning_pct"
    pruning_method: Literal["dst"] = "dst"
    alpha: Amount = 5.0e-06
    max_pruning_pct: Annotated[Fraction, Field(gt=0)] = 0.99
    threshold_init: Number = 0.0
    threshold_type: ThresholdType = "channelwise"
    scale_by_std: Amount = 0.0


class AutoSparsePruning(PruningSection):
    """AutoSparse (Kundu et al. 2023): weights are shrunk by sigmoid(T), T learned; those that get to 0 learn at a rate that falls.

    alpha: that rate at first, as a factor of the gradient: it falls to 0 over the epochs of a round, and is 0 from epoch
    `alpha_reset_epoch` (0-based) on; threshold_type: one T a layer, an output or a weight; threshold_init: T at first, a logit;
    threshold_decay: adds threshold_decay / 2 * sum T^2 to the loss, which pulls sigmoid(T) to 1/2: from below it prunes more.
    backward_sparsity: the share of the weights' gradients that is set to 0, those of smallest |W| - sigmoid(T); true: 0.5.
    autotune_epochs: in these first epochs of training, whenever the mean training loss of an epoch is above the least one before
    it, those of pre-training included, alpha is lowered by `autotune_factor`; 1 (the default) leaves it as it is. An own loop
    tells losses by `epoch_end(loss)`.
    """

    latent_because: ClassVar[str] = CHANGES_VALUES
    gentler: ClassVar[str] = "a lower threshold_init"
    pruning_method: Literal["autosparse"] = "autosparse"
    alpha: Fraction = 0.5
    alpha_reset_epoch: Annotated[Whole, Field(ge=0)] = 90
    autotune_epochs: Annotated[Whole, Field(ge=0)] = 10
    autotune_factor: Fraction = 1.0
    backward_sparsity: Annotated[bool | float, BeforeValidator(_switch_or_share)] = False
    threshold_init: Number = -5.0
    threshold_type: ThresholdType = "channelwise"

    @property
    def backward_zeros(self) -> float:
        """The share of the weights' gradients that is set to 0."""
        return 0.5 * self.backward_sparsity if isinstance(self.backward_sparsity, bool) else self.backward_sparsity
