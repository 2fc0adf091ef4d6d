"""Pruning as a constrained optimisation: a metric of the weights is held at a value while the task is learned."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pquant_fx.config.pruning_section import PatternText, PruningSection, Sparsity, pattern_of
from pquant_fx.config.section import Amount, Bits, Finding, Fraction, Number, Whole, refuse

__all__ = ["MDMMPruning"]

_COUNTED = ("UnstructuredSparsity", "StructuredSparsity")


class MDMMPruning(PruningSection):
    """Constrained pruning by the modified differential method of multipliers (Platt & Barr 1988).

    What goes: `metric_type` with `target_sparsity`, the share of it that is removed
        UnstructuredSparsity   single weights
        StructuredSparsity     outputs with their biases (rf: 1), or blocks of `rf` consecutive weights of an output
        NMSparsity             of every M weights along the inputs N stay (`nm: "2:4"`, which replaces target_sparsity)
        PACAPatternSparsity    each kernel keeps the positions of one of at most `num_patterns_to_keep` patterns (Wang et al. 2022),
                               the fewest that cover the share `beta` of all kernels after `selection_fraction` of the steps;
                               `distance_metric` finds the pattern nearest to a kernel
        FPGAAwareSparsity      what one DSP or BRAM holds (Ramhorst et al. 2023): `target_resource`, for weights of `precision`
                               bits, reuse factor `rf`, memories of `bram_width` bits; what is kept is worth most, by `value`: the
                               l2 or l1 norm, |w gradient| or w^2 gradient^2 (saliency), as a share of the layer's largest
    scope: who shares the share: `layer` alone, or `global` all layers together (single weights and FPGA resources).
    ramp_fraction: the share of the training steps over which the share that goes rises (cubic) from 0; 0 asks for all at once.
    interval: steps between two choices of what goes; it is chosen anew at the start of each epoch and at the end, too.

    The metric: `measure`, given or found from l0_mode
        tail    share of the layer's magnitude (sum of |w|, or of the norms of groups) in what goes: 0 when the target is reached
        count   (target_sparsity^2 - zeros^2) times the mean magnitude, PQuantML's: 0 when as many as wanted are zero. zeros is
                counted by l0_mode: `coarse` those up to `epsilon`, `smooth` by a bell exp(-u^2 / 2 sigma^2) whose sigma
                shrinks from half the root mean square to `epsilon`; that of outputs and blocks goes by their norms
    None is `count` for l0_mode: smooth, else `tail`. scale_mode: `sum` takes the metric times the number of weights.

    The constraint: the metric is held equal to, at or below, or at or above `target_value`, or between it and `upper_value`
    (Bounds), by the term scale * (multiplier * g + damping / 2 * g^2) of the loss, g = metric - target_value; `slack` learns the
    slack of an inequality. After each step the multiplier moves by constraint_lr * scale * g. With `use_grad` it is a parameter
    that the optimizer moves, up along its gradient. group_lasso: adds group_lasso times the sum of |w|, or of the norms of
    groups, to the loss. epsilon: a violation that is not followed (tail), the largest zero (count).
    """

    gentler: ClassVar[str] = "a lower target_sparsity"
    pruning_method: Literal["mdmm"] = "mdmm"
    constraint_type: Literal["Equality", "LessThanOrEqual", "GreaterThanOrEqual", "Bounds"] = "Equality"
    target_value: Number = 0.0
    upper_value: Number | None = None
    slack: bool = False
    metric_type: Literal["UnstructuredSparsity", "StructuredSparsity", "NMSparsity", "PACAPatternSparsity", "FPGAAwareSparsity"] = (
        "UnstructuredSparsity"
    )
    target_sparsity: Sparsity = 0.9
    nm: PatternText = "2:4"
    measure: Literal["tail", "count"] | None = None
    scope: Literal["layer", "global"] = "layer"
    ramp_fraction: Fraction = 0.5
    interval: Annotated[Whole, Field(ge=1)] = 10
    rf: Annotated[Whole, Field(ge=1)] = 1
    epsilon: Amount = 1.0e-03
    scale: Amount = 10.0
    damping: Amount = 1.0
    use_grad: bool = False
    l0_mode: Literal["coarse", "smooth"] = "coarse"
    scale_mode: Literal["mean", "sum"] = "mean"
    constraint_lr: Amount = 1.0e-03
    group_lasso: Amount = 0.0
    num_patterns_to_keep: Annotated[Whole, Field(ge=1)] = 16
    beta: Fraction = 0.75
    distance_metric: Literal["valued_hamming", "hamming", "cosine"] = "valued_hamming"
    selection_fraction: Fraction = 0.3
    target_resource: Literal["DSP", "BRAM", "DSP+BRAM"] = "DSP"
    precision: Bits = 16
    bram_width: Annotated[Whole, Field(ge=1)] = 36
    value: Literal["l2", "l1", "gradient", "saliency"] = "l2"

    @property
    def pattern(self) -> tuple[int, int]:
        """(N, M): N of every M weights along the inputs are kept."""
        return pattern_of(self.nm)

    @property
    def counts(self) -> bool:
        """Whether the metric counts zeros."""
        return self.l0_mode == "smooth" if self.measure is None else self.measure == "count"

    @property
    def resources(self) -> tuple[str, ...]:
        """The resources whose use is limited, of FPGAAwareSparsity."""
        return tuple(self.target_resource.split("+"))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.enable_pruning:
            return self
        found = [*self._about_constraint(), *self._about_metric()]
        if self.metric_type == "FPGAAwareSparsity":
            found += self._about_resources()
        if self.threshold_decay != 0:
            what = f"{self.threshold_decay} belongs to a method that learns thresholds"
            found.append(("PQ407", "threshold_decay", what, "leave it at 0: a constraint has no threshold to decay"))
        if found:
            raise refuse(*found)
        return self

    def _about_constraint(self) -> list[Finding]:
        found: list[Finding] = []
        if (self.constraint_type == "Bounds") != (self.upper_value is not None):
            what = "belongs to constraint_type: Bounds, which needs it"
            found.append(("PQ407", "upper_value", what, "give both, with target_value as the lower bound, or none"))
        elif self.upper_value is not None and self.upper_value < self.target_value:
            found.append(("PQ407", "upper_value", f"{self.upper_value} is below target_value {self.target_value}", "exchange them"))
        if self.slack and self.constraint_type not in ("LessThanOrEqual", "GreaterThanOrEqual"):
            found.append(("PQ407", "slack", "only one inequality has a slack", "leave it out, or ask for LessThanOrEqual"))
        if not self.counts and not 0 <= self.target_value < 1:
            what = f"{self.target_value}: a tail is a share of the magnitude, 0 to 1, so this holds for ever or never"
            found.append(("PQ407", "target_value", what, "give 0, what the target pattern has, or a little more"))
        if not self.counts and self.constraint_type == "GreaterThanOrEqual" and self.target_value == 0:
            what = "GreaterThanOrEqual 0 holds for every tail, so nothing would be pruned"
            found.append(("PQ407", "constraint_type", what, "use Equality or LessThanOrEqual"))
        if self.scale == 0:
            found.append(("PQ407", "scale", "0 switches the constraint off", "give a positive number, or set enable_pruning: false"))
        if self.constraint_lr == 0 and self.damping == 0 and not self.use_grad:
            what = "0 together with damping 0: no force would ever act on the weights"
            found.append(("PQ407", "constraint_lr", what, "give one of them"))
        return found

    def _about_metric(self) -> list[Finding]:
        found: list[Finding] = []
        if self.counts and self.metric_type not in _COUNTED:
            where = "l0_mode" if self.measure is None else "measure"
            what = f"counts are defined for {' and '.join(_COUNTED)}, not for {self.metric_type}"
            found.append(("PQ407", where, what, "use measure: tail and l0_mode: coarse"))
        if self.measure == "tail" and self.l0_mode == "smooth":
            found.append(("PQ407", "l0_mode", "smooth is a way to count, but measure is tail", "use measure: count, or l0_mode: coarse"))
        if self.l0_mode == "smooth" and self.epsilon == 0:
            found.append(("PQ407", "epsilon", "0 is no width for the smooth count to end at", "give a small positive number"))
        if self.value != "l2" and self.metric_type != "FPGAAwareSparsity":
            what = f"{self.value} says what DSPs and BRAMs are worth, but metric_type is {self.metric_type}"
            found.append(("PQ407", "value", what, "leave it out, or use FPGAAwareSparsity"))
        if self.scope == "global" and self.metric_type not in ("UnstructuredSparsity", "FPGAAwareSparsity"):
            what = f"global, but {self.metric_type} of different layers can not be compared"
            found.append(("PQ407", "scope", what, "use scope: layer"))
        return found

    def _about_resources(self) -> list[Finding]:
        found: list[Finding] = []
        if "DSP" in self.resources and self.precision < 9:
            what = f"{self.precision}: multipliers of less than 9 bits are made of LUTs, so no DSP could be saved"
            found.append(("PQ407", "precision", what, "give the width of the weights in hardware, or target_resource: BRAM"))
        if "BRAM" in self.resources and self.rf == 1:
            what = "1: without reuse the weights lie in no memory, so no BRAM could be saved"
            found.append(("PQ407", "rf", what, "give the reuse factor of the layer, or target_resource: DSP"))
        if "BRAM" in self.resources and self.bram_width < self.precision:
            found.append(("PQ407", "bram_width", f"{self.bram_width} bits hold no weight of {self.precision}", "give at least precision"))
        return found
