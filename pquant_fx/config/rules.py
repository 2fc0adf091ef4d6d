"""Section `layers`: rules per place, and what they resolve to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pquant_fx.config.patterns import Pattern, names
from pquant_fx.config.quantization import LayerSpecific, WeightGranularity
from pquant_fx.config.section import Bits, Finding, FormatText, Fraction, Overflow, Rounding, Section, refuse
from pquant_fx.formats import FixedFormat, OverflowMode, RoundingMode

__all__ = [
    "DataGranularity",
    "DataQuantizer",
    "LayerRule",
    "LayerSettings",
    "RuleBook",
    "Update",
    "WeightQuantizer",
    "format_update",
    "specific_update",
]

DataGranularity = Literal["per_tensor", "per_channel", "per_element"]
WeightQuantizer = Literal["dynamic", "tqt", "lsq", "hgq"]
DataQuantizer = Literal["calibrated", "dynamic", "tqt", "lsq", "pact", "hgq"]
WeightRange = Literal["minmax", "mse"]

Update = Mapping[str, Any]
"""Fields of `LayerSettings` that a rule sets."""


@dataclass(frozen=True)
class LayerSettings:
    """What holds for one place in the network, after all rules.

    weight_format: the static format of the weights; None when only the width `weight_bits` is given and the binary point
    follows the weights, per `granularity` group. data_format: likewise of the value that the place produces; None when the
    format of width `data_bits` is calibrated. Beside a static format the width is that of the format. bias_format: None for
    the accumulator's grid. quantize: False when neither weights nor result are quantized. prune: whether the weights get a
    mask; sparsity: the place's own goal, None for the method's.

    weight_quantizer, data_quantizer: how a format comes about where none is given (`hgq`: bits are learned). granularity and
    data_granularity: who shares a format. weight_range: what the range of a group covers. input_bits, input_format: what the
    place asks of the values that it takes, None when it takes them as they come; the consumer's request wins.
    quantize_input, quantize_output: whether the values it takes, or makes, get a format here. n_parallel: positions of a
    convolution computed at once, None for all. relu_multiplier: a learned power of two behind a ReLU. real_tanh: the function
    itself instead of hard tanh.
    """

    weight_bits: int = 8
    weight_format: FixedFormat | None = None
    bias_format: FixedFormat | None = None
    data_bits: int = 8
    data_format: FixedFormat | None = None
    weight_rounding: RoundingMode = "RND"
    weight_overflow: OverflowMode = "SAT"
    data_rounding: RoundingMode = "RND"
    data_overflow: OverflowMode = "SAT"
    granularity: WeightGranularity = "per_channel"
    quantize: bool = True
    prune: bool = False
    sparsity: float | None = None
    weight_quantizer: WeightQuantizer = "dynamic"
    data_quantizer: DataQuantizer = "calibrated"
    data_granularity: DataGranularity = "per_tensor"
    weight_range: WeightRange = "minmax"
    input_bits: int | None = None
    input_format: FixedFormat | None = None
    quantize_input: bool = True
    quantize_output: bool = False
    n_parallel: int | None = None
    relu_multiplier: bool = False
    real_tanh: bool = True


class LayerRule(Section):
    """Settings for the places that a pattern matches; what is left out stays as it was."""

    weight_bits: Bits | None = None
    weight_format: FormatText | None = None
    bias_format: FormatText | None = None
    data_bits: Bits | None = None
    data_format: FormatText | None = None
    weight_rounding: Rounding | None = None
    weight_overflow: Overflow | None = None
    data_rounding: Rounding | None = None
    data_overflow: Overflow | None = None
    granularity: WeightGranularity | None = None
    quantize: bool | None = None
    prune: bool | None = None
    sparsity: Annotated[Fraction, Field(lt=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found: list[Finding] = []
        for what in ("weight", "data"):
            text = getattr(self, f"{what}_format")
            if text is None:
                continue
            if getattr(self, f"{what}_bits") is not None:
                found.append(("PQ407", f"{what}_bits", f"is given together with {what}_format", "keep one of the two"))
            for mode in format_update(what, text).keys() & {f"{what}_rounding", f"{what}_overflow"}:
                if getattr(self, mode) is not None:
                    found.append(("PQ407", mode, f"is given together with the mode in {what}_format", "keep one of the two"))
        if self.bias_format is not None and self.bias_format.count(",") > 1:
            remedy = "leave the modes out of bias_format: weight_rounding and weight_overflow hold for biases too"
            found.append(("PQ407", "bias_format", "holds modes of its own", remedy))
        if self.prune is False and self.sparsity is not None:
            found.append(("PQ407", "sparsity", "is given together with prune: false", "keep one of the two"))
        if found:
            raise refuse(*found)
        return self

    def update(self) -> Update:
        """The fields of `LayerSettings` that this rule sets."""
        made: dict[str, Any] = {name: value for name, value in self if value is not None and not name.endswith("_format")}
        for what in ("weight", "data"):
            text = getattr(self, f"{what}_format")
            if text is not None:
                made |= format_update(what, text)
            elif f"{what}_bits" in made:
                made[f"{what}_format"] = None
        if self.bias_format is not None:
            made["bias_format"] = FixedFormat.parse(self.bias_format)[0]
        if self.sparsity is not None:
            made["prune"] = True
        return made


def format_update(what: str, text: str) -> Update:
    """A static format for `weight` or `data`, with those modes that the text names."""
    made, rounding, overflow = FixedFormat.parse(text)
    found: dict[str, Any] = {f"{what}_format": made, f"{what}_bits": made.width}
    if text.count(",") > 1:
        found[f"{what}_rounding"] = rounding
    if text.count(",") > 2:
        found[f"{what}_overflow"] = overflow
    return found


def specific_update(rule: LayerSpecific) -> Update:
    """What the paper's `layer_specific` entry sets."""
    found: dict[str, Any] = {}
    if rule.weight is not None:
        found |= {"weight_format": rule.weight.format, "weight_bits": rule.weight.format.width}
    if rule.bias is not None:
        found["bias_format"] = rule.bias.format
    if rule.output is not None:
        found |= {"data_format": rule.output.format, "data_bits": rule.output.format.width}
    return found


class RuleBook:
    """Rules in order, indexed by name, so that a config that names every layer costs no more per layer than a short one."""

    def __init__(self, rules: Iterable[tuple[str, Update]]) -> None:
        self._by_name: dict[str, list[tuple[int, Pattern, Update]]] = {}
        self._globs: list[tuple[int, Pattern, Update]] = []
        for order, (text, update) in enumerate(rules):
            pattern = Pattern.parse(text)
            (self._globs if pattern.glob else self._by_name.setdefault(pattern.name, [])).append((order, pattern, update))

    def apply(self, settings: LayerSettings, path: str, type_name: str, site: int) -> LayerSettings:
        """`settings` after every rule that matches, in order."""
        merged: dict[str, Any] = {}
        for update in self.matching(path, type_name, site):
            merged |= update
        return replace(settings, **merged) if merged else settings

    def matching(self, path: str, type_name: str, site: int) -> Iterator[Update]:
        """The updates of the rules that match, in order."""
        named = [entry for name in names(path, type_name) for entry in self._by_name.get(name, ())]
        hits = [entry for entry in (*named, *self._globs) if entry[1].matches(path, type_name, site)]
        return iter([update for _, _, update in sorted(hits, key=lambda entry: entry[0])])
