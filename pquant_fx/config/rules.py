"""Section `layers`: rules per place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pquant_fx.config.kinds import DataGranularity, DataQuantizer, Granularity, WeightQuantizer, WeightRange
from pquant_fx.config.layer_specific import DataPlace, LayerSpecific
from pquant_fx.config.pruning import PruningParameters
from pquant_fx.config.section import (
    Bits,
    Finding,
    FormatText,
    Fraction,
    Overflow,
    Rounding,
    Section,
    Whole,
    refuse,
    wrapping_problems,
)
from pquant_fx.formats import FixedFormat

__all__ = ["LayerRule", "Update", "format_update", "specific_update"]

Update = Mapping[str, Any]
"""Fields of `LayerSettings` that a rule sets."""


_SWITCHED = (("prune", "sparsity"), ("prune", "pruning"), ("quantize_input", "input_bits"), ("quantize_input", "input_format"))
"""Switches that, turned off, contradict a key."""


class LayerRule(Section):
    """Settings for the places that a pattern matches, the fields of `LayerSettings`; what is left out stays as it was."""

    weight_bits: Bits | None = None
    weight_format: FormatText | None = None
    bias_format: FormatText | None = None
    data_bits: Bits | None = None
    data_format: FormatText | None = None
    weight_rounding: Rounding | None = None
    weight_overflow: Overflow | None = None
    data_rounding: Rounding | None = None
    data_overflow: Overflow | None = None
    granularity: Granularity | None = None
    quantize: bool | None = None
    prune: bool | None = None
    sparsity: Annotated[Fraction, Field(lt=1)] | None = None
    pruning: PruningParameters | None = None
    weight_quantizer: WeightQuantizer | None = None
    data_quantizer: DataQuantizer | None = None
    data_granularity: DataGranularity | None = None
    weight_range: WeightRange | None = None
    input_bits: Bits | None = None
    input_format: FormatText | None = None
    quantize_input: bool | None = None
    quantize_output: bool | None = None
    n_parallel: Annotated[Whole, Field(ge=1)] | None = None
    relu_multiplier: bool | None = None
    real_tanh: bool | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = [finding for what in ("weight", "data", "input", "bias") for finding in self._beside_format(what)]
        for what in ("weight", "data"):
            rounding, overflow = getattr(self, f"{what}_rounding"), getattr(self, f"{what}_overflow")
            if rounding is not None and overflow is not None:
                found += wrapping_problems(rounding, overflow, f"{what}_overflow")
        for switch, key in _SWITCHED:
            if getattr(self, switch) is False and getattr(self, key) is not None:
                found.append(("PQ407", key, f"is given together with {switch}: false", "keep one of the two"))
        if found:
            raise refuse(*found)
        return self

    def _beside_format(self, what: str) -> list[Finding]:
        """What contradicts the static format of `what`."""
        text = getattr(self, f"{what}_format")
        if text is None:
            return []
        modes = {f"{what}_rounding", f"{what}_overflow"}
        rivals = [f"{what}_bits", f"{what}_quantizer"]
        found = [("PQ407", key, f"is given together with {what}_format", "keep one of the two") for key in rivals if self._gives(key)]
        if what in ("bias", "input") and text.count(",") > 1:
            keys = {"bias": "weight_rounding and weight_overflow", "input": "data_rounding and data_overflow"}[what]
            remedy = f"leave the modes out of {what}_format: {keys} hold" + (" for biases too" if what == "bias" else "")
            return [*found, ("PQ407", f"{what}_format", "holds modes of its own", remedy)]
        doubled = sorted(key for key in format_update(what, text).keys() & modes if self._gives(key))
        return found + [("PQ407", key, f"is given together with the mode in {what}_format", "keep one of the two") for key in doubled]

    def _gives(self, key: str) -> bool:
        return getattr(self, key, None) is not None

    def update(self) -> Update:
        """The fields of `LayerSettings` that this rule sets."""
        made: dict[str, Any] = {name: value for name, value in self if value is not None and not name.endswith("_format")}
        for what in ("weight", "data", "input"):
            text = getattr(self, f"{what}_format")
            if text is not None:
                made |= format_update(what, text)
            elif f"{what}_bits" in made or f"{what}_quantizer" in made:
                made[f"{what}_format"] = None
        if self.bias_format is not None:
            made["bias_format"] = FixedFormat.parse(self.bias_format)[0]
        if self.sparsity is not None or self.pruning is not None:
            made["prune"] = True
        if self.pruning is not None and self.sparsity is None:
            made["sparsity"] = None  # a goal given by an earlier rule belongs to another method
        return made


def format_update(what: str, text: str) -> Update:
    """A static format for `weight`, `data` or `input`, with those modes that the text names."""
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
    return found | _place_update("input", "input", rule.input) | _place_update("output", "data", rule.output)


def _place_update(key: str, what: str, place: DataPlace | None) -> dict[str, Any]:
    if place is None:
        return {}
    found: dict[str, Any] = {} if place.quantize is None else {f"quantize_{key}": place.quantize}
    if place.format is not None and place.quantize is not False:
        found |= {f"{what}_format": place.format, f"{what}_bits": place.format.width}
    return found
