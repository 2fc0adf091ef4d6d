"""Pruning methods that rank weights by a score and remove the lowest."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pquant_fx.config.pruning_section import CHANGES_VALUES, PatternText, PruningSection, Sparsity, WithoutThreshold, pattern_of
from pquant_fx.config.section import Amount, Fraction, Whole, refuse

__all__ = ["ActivationPruning", "MagnitudePruning", "PDPPruning", "WandaPruning"]


class MagnitudePruning(PruningSection):
    """Magnitude pruning on a cubic schedule (Zhu & Gupta 2017): sparsity(t) = s_f + (s_i - s_f) (1 - progress)^3.

    sparsity: final share of zeros; granularity: single weights, whole outputs (`structured`), or `nm`, where of every M weights
    along the inputs N stay (`nm: "2:4"`); scope: `layer` prunes each layer to it, `global` all layers together; regrow: pruned
    weights keep receiving gradient, and `decay_pruned` times themselves (SR-STE); start_fraction, end_fraction: where the
    schedule begins and ends, as fractions of the training steps after pre-training; interval: steps between two updates of
    the masks.
    """

    pruning_method: Literal["magnitude"] = "magnitude"
    sparsity: Sparsity = 0.8
    initial_sparsity: Sparsity = 0.0
    granularity: Literal["unstructured", "structured", "nm"] = "unstructured"
    nm: PatternText = "2:4"
    scope: Literal["layer", "global"] = "layer"
    regrow: bool = False
    decay_pruned: Amount = 0.0
    start_fraction: Fraction = 0.0
    end_fraction: Fraction = 0.75
    interval: Annotated[Whole, Field(ge=1)] = 100

    @property
    def pattern(self) -> tuple[int, int]:
        """(N, M): N of every M weights along the inputs are kept."""
        return pattern_of(self.nm)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = []
        if self.initial_sparsity > self.sparsity:
            what = f"{self.initial_sparsity} is above the final sparsity {self.sparsity}"
            found.append(("PQ407", "initial_sparsity", what, "begin at or below 'sparsity'"))
        if self.start_fraction >= self.end_fraction:
            what = f"{self.start_fraction} is not before end_fraction {self.end_fraction}"
            found.append(("PQ407", "start_fraction", what, "let the schedule begin before it ends"))
        if self.enable_pruning and self.threshold_decay != 0:
            what = f"{self.threshold_decay} belongs to a method that learns thresholds"
            found.append(("PQ407", "threshold_decay", what, "leave it at 0: magnitude pruning has no threshold to decay"))
        if self.scope == "global" and self.granularity != "unstructured":
            what = f"global, but granularity is {self.granularity}: only single weights of different layers can be compared"
            found.append(("PQ407", "scope", what, "use scope: layer"))
        if not self.regrow and self.decay_pruned != 0:
            found.append(("PQ407", "decay_pruned", "is given together with regrow: false", "keep one of the two"))
        if found:
            raise refuse(*found)
        return self


class ActivationPruning(WithoutThreshold):
    """Activation Pruning (after Golkar et al. 2019): units that seldom fire go, with their biases.

    A unit is an output of a layer that a ReLU follows directly. From batch `t_start_collecting_batch` of the training stage on,
    every `t_delta` batches are one window; a batch is an optimizer step. At the end of an epoch those units go whose criterion
    in the last window was at most `threshold`: the fraction of samples and positions where they are positive
    (`active_fraction`), or the mean of what the ReLU gives (`mean_activation`). At one time not more than `max_removed` of the
    units that are left go, the least active first (but one may always go), and never the last one. Removed units do not come back.
    l1: adds l1 times the sum of |weights| to the loss, as the original does, under which more units fall silent.
    """

    latent_because: ClassVar[str] = "it decides by activations"
    gentler: ClassVar[str] = "a lower threshold"
    pruning_method: Literal["activation_pruning"] = "activation_pruning"
    threshold: Amount = 0.3
    t_delta: Annotated[Whole, Field(ge=1)] = 50
    t_start_collecting_batch: Annotated[Whole, Field(ge=0)] = 50
    criterion: Literal["active_fraction", "mean_activation"] = "active_fraction"
    max_removed: Annotated[Fraction, Field(gt=0)] = 0.2
    l1: Amount = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.criterion == "active_fraction" and self.threshold >= 1:
            what = f"{self.threshold} is at or above 1, and no unit fires more often than always"
            raise refuse(("PQ407", "threshold", what, "give a fraction below 1, or use criterion: mean_activation"))
        return self


class PDPPruning(WithoutThreshold):
    """Parameter-free Differentiable Pruning (Cho et al. 2023): W sigmoid((W^2 - t^2) / tau).

    sparsity: final share of zeros, of all layers together (`scope: global`: each layer gets the share of its weights that lie
    below one common magnitude when training begins), or of each layer (`scope: layer`). epsilon: how much of it every epoch
    adds; where the epochs of the first round are too few, 1.5 / epochs, so that two thirds of them reach it. temperature: tau in
    units of W^2; with `relative_temperature` tau = temperature * t^2. structured_pruning: whole outputs by their L2 norm, with
    their biases. nm: of every M weights along the inputs N stay (`nm: "2:4"`), whatever `sparsity` says.
    """

    latent_because: ClassVar[str] = CHANGES_VALUES
    pruning_method: Literal["pdp"] = "pdp"
    epsilon: Annotated[Amount, Field(gt=0)] = 0.015
    sparsity: Sparsity = 0.8
    temperature: Annotated[Amount, Field(gt=0)] = 1.0e-05
    structured_pruning: bool = False
    nm: PatternText | None = None
    scope: Literal["global", "layer"] = "global"
    relative_temperature: bool = False

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(N, M): N of every M weights along the inputs are kept; None where single weights or outputs are pruned."""
        return None if self.nm is None else pattern_of(self.nm)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nm is not None and self.structured_pruning:
            raise refuse(("PQ407", "nm", f"'{self.nm}' is given together with structured_pruning", "keep one of the two"))
        return self


class WandaPruning(WithoutThreshold):
    """Pruning by weights and activations (Sun et al. 2024): of each output's weights those of least |W| ||x|| go, once.

    sparsity: share of zeros; with `calculate_pruning_budget` of all layers together (each gets the share of its weights that
    lie below one common magnitude when training begins), else of each layer. N, M: of every M weights along the inputs the N
    lowest are pruned, whatever `sparsity` says. From batch `t_start_collecting_batch` of the training stage on, each layer in
    turn looks at its inputs for `t_delta` batches and is pruned, so that later layers see what pruned ones give; a batch is an
    optimizer step. iterations: so often every layer gets its turn, and more of its share goes each time, by the cubic schedule of
    Zhu & Gupta (2017); 1, all at once, as published. Where the last turn would not end after 3/4 of the steps, batch numbers
    shrink. comparison_group: within what scores are compared, each `output`, or the `layer`: for image classifiers the paper
    sees no gain from the former. exact_sparsity: of outputs, as many as a layer's share needs lose one weight more than
    floor(share * inputs), which is what the paper removes.
    """

    pruning_method: Literal["wanda"] = "wanda"
    M: Annotated[Whole, Field(ge=1)] | None = None
    N: Annotated[Whole, Field(ge=1)] | None = None
    sparsity: Sparsity = 0.9
    t_delta: Annotated[Whole, Field(ge=1)] = 100
    t_start_collecting_batch: Annotated[Whole, Field(ge=0)] = 100
    calculate_pruning_budget: bool = True
    iterations: Annotated[Whole, Field(ge=1)] = 1
    comparison_group: Literal["output", "layer"] = "output"
    exact_sparsity: bool = True

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(kept, M): how many of every M weights along the inputs are kept; None for single weights."""
        return None if self.N is None or self.M is None else (self.M - self.N, self.M)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.N is None) != (self.M is None):
            missing, given = ("N", "M") if self.N is None else ("M", "N")
            raise refuse(("PQ407", given, f"is given without {missing}", f"give both: {_NM}"))
        if self.N is not None and self.M is not None and self.N >= self.M:
            raise refuse(("PQ407", "N", f"{self.N} of every {self.M} leaves nothing", f"{_NM}, N below M"))
        return self


_NM = "N of every M weights are pruned"
