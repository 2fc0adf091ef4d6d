"""Section `pruning_parameters`: one model per method, chosen by `pruning_method`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pquant_fx.config.section import Amount, Finding, Fraction, Number, Section, Whole, refuse

__all__ = [
    "METHODS",
    "ActivationPruning",
    "AutoSparsePruning",
    "CSPruning",
    "DSTPruning",
    "FITCompressPruning",
    "MDMMPruning",
    "MagnitudePruning",
    "PDPPruning",
    "PruningParameters",
    "WandaPruning",
]

ThresholdType = Literal["layerwise", "channelwise", "weightwise"]
Sparsity = Annotated[Fraction, Field(lt=1)]


class _Shared(Section):
    """What every method has. `disable_pruning_for_layers` holds patterns like those of `layers`."""

    disable_pruning_for_layers: tuple[str, ...] = ()
    enable_pruning: bool = True
    threshold_decay: Amount = 0.0


class MagnitudePruning(_Shared):
    """Magnitude pruning on a cubic schedule (Zhu & Gupta 2017): sparsity(t) = s_f + (s_i - s_f) (1 - progress)^3.

    sparsity: final share of zeros; scope: `layer` prunes each layer to it, `global` all layers together; regrow: pruned
    weights keep receiving gradient; start_fraction, end_fraction: where the schedule begins and ends, as fractions of the
    training steps after pre-training; interval: steps between two updates of the masks.
    """

    pruning_method: Literal["magnitude"] = "magnitude"
    sparsity: Sparsity = 0.8
    initial_sparsity: Sparsity = 0.0
    scope: Literal["layer", "global"] = "layer"
    regrow: bool = True
    start_fraction: Fraction = 0.0
    end_fraction: Fraction = 0.75
    interval: Annotated[Whole, Field(ge=1)] = 100

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
            what = f"{self.threshold_decay} belongs to a method that learns thresholds, which this version does not have"
            found.append(("PQ408", "threshold_decay", what, "leave it at 0: magnitude pruning has no threshold to decay"))
        if found:
            raise refuse(*found)
        return self


class _Later(_Shared):
    """A method of the paper that this version can read but not run."""

    pruning_method: str

    def unavailable(self) -> list[Finding]:
        if not self.enable_pruning:
            return []
        what = f"'{self.pruning_method}' is a method that this version does not have"
        return [("PQ408", "pruning_method", what, "use 'magnitude', or set enable_pruning: false")]


class CSPruning(_Later):
    """Continuous Sparsification (Savarese et al. 2020)."""

    pruning_method: Literal["cs"] = "cs"
    final_temp: Amount = 200.0
    threshold_init: Number = 0.0


class DSTPruning(_Later):
    """Dynamic Sparse Training (Liu et al. 2020)."""

    pruning_method: Literal["dst"] = "dst"
    alpha: Amount = 5.0e-06
    max_pruning_pct: Fraction = 0.99
    threshold_init: Number = 0.0
    threshold_type: ThresholdType = "channelwise"


class PDPPruning(_Later):
    """Parameter-free Differentiable Pruning (Cho et al. 2023)."""

    pruning_method: Literal["pdp"] = "pdp"
    epsilon: Amount = 0.015
    sparsity: Fraction = 0.8
    temperature: Amount = 1.0e-05
    structured_pruning: bool = False


class WandaPruning(_Later):
    """Pruning by weights and activations (Sun et al. 2024). N of every M weights are pruned, when given."""

    pruning_method: Literal["wanda"] = "wanda"
    M: Annotated[Whole, Field(ge=1)] | None = None
    N: Annotated[Whole, Field(ge=1)] | None = None
    sparsity: Fraction = 0.9
    t_delta: Annotated[Whole, Field(ge=1)] = 100
    t_start_collecting_batch: Annotated[Whole, Field(ge=0)] = 100
    calculate_pruning_budget: bool = True


class AutoSparsePruning(_Later):
    """AutoSparse (Kundu et al. 2023)."""

    pruning_method: Literal["autosparse"] = "autosparse"
    alpha: Amount = 0.5
    alpha_reset_epoch: Annotated[Whole, Field(ge=0)] = 90
    autotune_epochs: Annotated[Whole, Field(ge=0)] = 10
    backward_sparsity: bool = False
    threshold_init: Number = -5.0
    threshold_type: ThresholdType = "channelwise"


class ActivationPruning(_Later):
    """Activation Pruning (after Golkar et al. 2019)."""

    pruning_method: Literal["activation_pruning"] = "activation_pruning"
    threshold: Fraction = 0.3
    t_delta: Annotated[Whole, Field(ge=1)] = 50
    t_start_collecting_batch: Annotated[Whole, Field(ge=0)] = 50


class MDMMPruning(_Later):
    """Constrained pruning by the modified differential method of multipliers (Platt & Barr 1988)."""

    pruning_method: Literal["mdmm"] = "mdmm"
    constraint_type: Literal["Equality", "LessThanOrEqual", "GreaterThanOrEqual"] = "Equality"
    target_value: Number = 0.0
    metric_type: Literal["UnstructuredSparsity", "StructuredSparsity"] = "UnstructuredSparsity"
    target_sparsity: Fraction = 0.9
    rf: Annotated[Whole, Field(ge=1)] = 1
    epsilon: Amount = 1.0e-03
    scale: Amount = 10.0
    damping: Amount = 1.0
    use_grad: bool = False
    l0_mode: Literal["coarse", "smooth"] = "coarse"
    scale_mode: Literal["mean", "sum"] = "mean"
    constraint_lr: Amount = 1.0e-03


class FITCompressPruning(_Later):
    """Masks found by FITCompress (Zandonati et al. 2023)."""

    pruning_method: Literal["fitcompress"] = "fitcompress"
    min_frac_bits: Number = 2.0


PruningParameters = Annotated[
    MagnitudePruning
    | CSPruning
    | DSTPruning
    | PDPPruning
    | WandaPruning
    | AutoSparsePruning
    | ActivationPruning
    | MDMMPruning
    | FITCompressPruning,
    Field(discriminator="pruning_method"),
]
METHODS: dict[str, type[Section]] = {
    "magnitude": MagnitudePruning,
    "cs": CSPruning,
    "dst": DSTPruning,
    "pdp": PDPPruning,
    "wanda": WandaPruning,
    "autosparse": AutoSparsePruning,
    "activation_pruning": ActivationPruning,
    "mdmm": MDMMPruning,
    "fitcompress": FITCompressPruning,
}
