"""Section `quantization_parameters`: how values and parameters become fixed point."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from pquant_fx.config.section import Amount, Bits, Finding, Overflow, Rounding, Section, Whole, later, not_yet, refuse
from pquant_fx.formats import FixedFormat

__all__ = ["Granularity", "LayerSpecific", "QuantizationParameters", "StaticFormat", "WeightGranularity"]

Granularity = Literal["per_tensor", "per_channel", "per_weight"]

WeightGranularity = Annotated[Granularity, not_yet("per_weight", remedy="use 'per_channel' or 'per_tensor'")]


class StaticFormat(Section):
    """A format as the paper writes it: k (`keep_negatives`), i and f. Bits may be negative, their sum may not."""

    keep_negatives: bool = True
    integer_bits: Whole
    fractional_bits: Whole
    quantize: Annotated[bool, later(True, "leave it out, or use layers: {name: {quantize: false}}")] = True

    @model_validator(mode="after")
    def _stores_bits(self) -> Self:
        if self.format.width < 1:
            raise refuse(("PQ407", "fractional_bits", "the format stores no bits", "give integer_bits + fractional_bits of at least 1"))
        return self

    @property
    def format(self) -> FixedFormat:
        return FixedFormat(int(self.keep_negatives), self.integer_bits, self.fractional_bits)


_PRODUCER = "a value is quantized once, where it is made: give the format as 'output' of the layer that makes it, or under 'inputs'"


class LayerSpecific(Section):
    """Static formats of one layer, in the paper's shape."""

    weight: StaticFormat | None = None
    bias: StaticFormat | None = None
    input: Annotated[StaticFormat | None, later(None, _PRODUCER)] = None
    output: StaticFormat | None = None


_ONCE = "leave it at false: a value is quantized once, after its activation; a format for the network's result goes under 'outputs'"


class QuantizationParameters(Section):
    """Table 5 of the PQuantML paper, plus widths.

    `default_data_bits` and `default_weight_bits` ask for a width W = k + i + f; the binary point comes from the data
    (calibration) or follows the weights. The paper's integer and fractional bits, given together, ask for one static format
    instead; k is 1 unless `..._keep_negatives` says otherwise. A width and a static format exclude each other.

    Each value is quantized once: inputs, results of activations, and sums where something multiplies them. This is what
    `quantize_input: true` and `quantize_output: false` say; the result of the network stays exact unless `outputs` says more.
    """

    default_data_bits: Bits | None = None
    default_data_keep_negatives: bool | None = None
    default_data_integer_bits: Whole | None = None
    default_data_fractional_bits: Whole | None = None
    default_weight_bits: Bits | None = None
    default_weight_keep_negatives: bool | None = None
    default_weight_integer_bits: Whole | None = None
    default_weight_fractional_bits: Whole | None = None
    granularity: WeightGranularity = "per_channel"
    quantize_input: Annotated[bool, later(True, "leave it at true: a circuit needs a format for what comes in, see 'inputs'")] = True
    quantize_output: Annotated[bool, later(False, _ONCE)] = False
    enable_quantization: bool = True
    hgq_beta: Amount = 0.0
    hgq_gamma: Amount = 1e-8
    hgq_heterogeneous: bool = True
    layer_specific: dict[str, LayerSpecific] = {}
    use_high_granularity_quantization: Annotated[bool, later(False, "leave it at false and give widths with default_..._bits")] = False
    use_real_tanh: Annotated[bool, later(False, "leave it at false, or replace tanh in the network")] = False
    overflow_mode_data: Overflow = "SAT"
    overflow_mode_parameters: Overflow = "SAT"
    round_mode: Rounding = "RND"
    use_relu_multiplier: Annotated[bool, later(False, "leave it at false: calibrated formats need no multiplier")] = False
    dynamic_data_quantization: Annotated[bool, later(False, "leave it at false: data formats are calibrated, see 'calibration'")] = False

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, data: Any) -> Any:
        """Read `use_hgq` as the paper's `use_high_granularity_quantization`, and fill in the width of 8."""
        if not isinstance(data, dict):
            return data
        made = dict(data)
        if "use_hgq" in made:
            short = made.pop("use_hgq")
            if made.setdefault("use_high_granularity_quantization", short) != short:
                what = "contradicts use_high_granularity_quantization"
                raise refuse(("PQ407", "use_hgq", what, "they are two names of one switch: keep one"))
        for what in ("data", "weight"):
            if all(made.get(f"default_{what}_{part}") is None for part in ("bits", "integer_bits", "fractional_bits", "keep_negatives")):
                made[f"default_{what}_bits"] = 8
        return made

    @model_validator(mode="after")
    def _width_or_format(self) -> Self:
        found = [*self._conflicts("data"), *self._conflicts("weight")]
        if found:
            raise refuse(*found)
        return self

    def _conflicts(self, what: str) -> list[Finding]:
        prefix = f"default_{what}_"
        parts = [getattr(self, prefix + part) for part in ("integer_bits", "fractional_bits")]
        given = [part for part in ("keep_negatives", "integer_bits", "fractional_bits") if getattr(self, prefix + part) is not None]
        if not given:
            return []
        if getattr(self, prefix + "bits") is not None:
            remedy = f"keep {prefix}bits for a calibrated format, or integer_bits and fractional_bits for a static one"
            return [("PQ407", prefix + "bits", f"is given together with {', '.join(prefix + part for part in given)}", remedy)]
        if None in parts:
            missing = prefix + ("fractional_bits" if parts[0] is not None else "integer_bits")
            return [("PQ407", missing, f"is missing beside {', '.join(prefix + part for part in given)}", "a static format needs both")]
        made = self.data_format if what == "data" else self.weight_format
        if made is not None and made.width < 1:
            return [("PQ407", prefix + "fractional_bits", "the format stores no bits", "give integer_bits + fractional_bits of at least 1")]
        return []

    @property
    def use_hgq(self) -> bool:
        return self.use_high_granularity_quantization

    @property
    def data_bits(self) -> int:
        """The default width of data, also of a static format."""
        made = self.data_format
        return made.width if made is not None else self.default_data_bits or 8

    @property
    def weight_bits(self) -> int:
        """The default width of weights, also of a static format."""
        made = self.weight_format
        return made.width if made is not None else self.default_weight_bits or 8

    @property
    def data_format(self) -> FixedFormat | None:
        """The static default format of data; None when formats are calibrated."""
        return _static(self.default_data_keep_negatives, self.default_data_integer_bits, self.default_data_fractional_bits)

    @property
    def weight_format(self) -> FixedFormat | None:
        """The static default format of weights; None when formats follow the weights."""
        return _static(self.default_weight_keep_negatives, self.default_weight_integer_bits, self.default_weight_fractional_bits)


def _static(keep_negatives: bool | None, integer: int | None, fractional: int | None) -> FixedFormat | None:
    if integer is None or fractional is None:
        return None
    return FixedFormat(0 if keep_negatives is False else 1, integer, fractional)
