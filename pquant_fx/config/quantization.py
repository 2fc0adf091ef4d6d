"""Section `quantization_parameters`: how values and parameters become fixed point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ModelWrapValidatorHandler, model_validator

from pquant_fx.config.hgq import Beta
from pquant_fx.config.kinds import DataGranularity, DataQuantizer, EbopsSign, Granularity, WeightQuantizer, WeightRange
from pquant_fx.config.layer_specific import LayerSpecific
from pquant_fx.config.section import Amount, Bits, Finding, Overflow, Rounding, Section, Whole, refuse, wrapping_problems
from pquant_fx.formats import FixedFormat

__all__ = ["QuantizationParameters"]

_STATIC = ("keep_negatives", "integer_bits", "fractional_bits")


class QuantizationParameters(Section):
    """Table 5 of the PQuantML paper, plus widths and quantizer kinds.

    `default_data_bits` and `default_weight_bits` ask for a width W = k + i + f; the binary point comes from the data
    (calibration) or follows the weights. The paper's integer and fractional bits, given together, ask for one static format
    instead; k is 1 unless `..._keep_negatives` says otherwise. A width and a static format exclude each other. Where the
    binary point moves nevertheless, they only name the width, as in the paper: weights with a `granularity` finer than
    per_tensor, `dynamic_data_quantization`, HGQ and every other quantizer kind that is named.

    granularity: who shares the format of a weight; left out it is per_channel, per_tensor beside a static format, per_weight
    with HGQ. data_granularity: likewise for data; left out it is per_tensor, and with HGQ follows `granularity`.
    weight_quantizer: `dynamic` (follows the weights), `tqt`, `lsq` (learned ranges), `hgq` (learned bits); data_quantizer:
    `calibrated`, `dynamic` (follows the batches in training), `tqt`, `lsq`, `pact`, `hgq`. use_high_granularity_quantization,
    or use_hgq, makes both `hgq`. weight_range: what the range of a dynamic format covers, everything or what `mse` finds best.

    quantize_input: whether layers ask for quantized inputs; quantize_output: whether their results are quantized too, before
    an activation and at the end of the network. A value has one format: what a consumer asks for wins.

    hgq_beta: what EBOPs weigh in the loss, a number, a schedule or a controller (see BetaPoint, BetaController); hgq_gamma:
    what each bit weighs; group_grad_norm: divide the EBOPs gradient of bits that n values share by sqrt(n) (HGQ v1);
    ebops_sign: which sign bits EBOPs count: of SAT quantizers (`hgq2`), of data alone, or all.

    use_real_tanh: tanh itself, by default, instead of hard tanh. use_relu_multiplier: a learned power of two behind a ReLU.
    """

    default_data_bits: Bits | None = None
    default_data_keep_negatives: bool | None = None
    default_data_integer_bits: Whole | None = None
    default_data_fractional_bits: Whole | None = None
    default_weight_bits: Bits | None = None
    default_weight_keep_negatives: bool | None = None
    default_weight_integer_bits: Whole | None = None
    default_weight_fractional_bits: Whole | None = None
    granularity: Granularity = "per_channel"
    data_granularity: DataGranularity | None = None
    weight_quantizer: WeightQuantizer | None = None
    data_quantizer: DataQuantizer | None = None
    weight_range: WeightRange = "minmax"
    quantize_input: bool = True
    quantize_output: bool = False
    enable_quantization: bool = True
    use_high_granularity_quantization: bool = False
    hgq_beta: Beta = 0.0
    hgq_gamma: Amount = 1e-8
    group_grad_norm: bool = False
    ebops_sign: EbopsSign = "weights_unsigned"
    layer_specific: dict[str, LayerSpecific] = {}
    use_real_tanh: bool = True
    overflow_mode_data: Overflow = "SAT"
    overflow_mode_parameters: Overflow = "SAT"
    round_mode: Rounding = "RND"
    use_relu_multiplier: bool = False
    dynamic_data_quantization: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _filled(cls, data: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Read `use_hgq` as the paper's `use_high_granularity_quantization`; fill in widths and granularity, as not given."""
        if not isinstance(data, dict):
            return build(data)
        given = _one_spelling(data)
        filled = {key: value for key, value in _defaults(given).items() if given.get(key) is None}
        made = build(given | filled)
        made.model_fields_set.difference_update(filled)
        return made

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = [*self._conflicts("data"), *self._conflicts("weight"), *self._kinds()]
        for what in ("data", "parameters"):
            found += wrapping_problems(self.round_mode, getattr(self, f"overflow_mode_{what}"), f"overflow_mode_{what}")
        if found:
            raise refuse(*found)
        return self

    def _conflicts(self, what: str) -> list[Finding]:
        prefix = f"default_{what}_"
        parts = [getattr(self, prefix + part) for part in ("integer_bits", "fractional_bits")]
        given = [part for part in _STATIC if getattr(self, prefix + part) is not None]
        if not given:
            return []
        if getattr(self, prefix + "bits") is not None:
            remedy = f"keep {prefix}bits for a calibrated format, or integer_bits and fractional_bits for a static one"
            return [("PQ407", prefix + "bits", f"is given together with {', '.join(prefix + part for part in given)}", remedy)]
        if None in parts:
            missing = prefix + ("fractional_bits" if parts[0] is not None else "integer_bits")
            return [("PQ407", missing, f"is missing beside {', '.join(prefix + part for part in given)}", "a static format needs both")]
        made = self.written_format(what)
        if made is not None and made.width < 1:
            return [("PQ407", prefix + "fractional_bits", "the format stores no bits", "give integer_bits + fractional_bits of at least 1")]
        return []

    def _kinds(self) -> list[Finding]:
        found: list[Finding] = []
        for key in ("weight_quantizer", "data_quantizer"):
            if self.use_hgq and getattr(self, key) not in (None, "hgq"):
                remedy = "leave one of the two out, or name other kinds for single layers under 'layers'"
                found.append(("PQ407", key, f"'{getattr(self, key)}' contradicts use_high_granularity_quantization", remedy))
        if self.dynamic_data_quantization and (self.use_hgq or self.data_quantizer not in (None, "dynamic")):
            other = "use_high_granularity_quantization" if self.use_hgq else f"data_quantizer '{self.data_quantizer}'"
            found.append(("PQ407", "dynamic_data_quantization", f"contradicts {other}", "keep one of the two"))
        return found

    @property
    def use_hgq(self) -> bool:
        return self.use_high_granularity_quantization

    @property
    def weight_kind(self) -> WeightQuantizer:
        """How the format of a weight comes about where no rule says otherwise."""
        return "hgq" if self.use_hgq else self.weight_quantizer or "dynamic"

    @property
    def data_kind(self) -> DataQuantizer:
        """How the format of a value comes about where no rule says otherwise."""
        return "hgq" if self.use_hgq else "dynamic" if self.dynamic_data_quantization else self.data_quantizer or "calibrated"

    @property
    def data_bits(self) -> int:
        """The default width of data, also of a static format."""
        made = self.written_format("data")
        return made.width if made is not None else self.default_data_bits or 8

    @property
    def weight_bits(self) -> int:
        """The default width of weights, also of a static format."""
        made = self.written_format("weight")
        return made.width if made is not None else self.default_weight_bits or 8

    @property
    def data_format(self) -> FixedFormat | None:
        """The static default format of data; None when formats are calibrated, dynamic or learned."""
        return self.written_format("data") if self.data_kind == "calibrated" and self.data_quantizer is None else None

    @property
    def weight_format(self) -> FixedFormat | None:
        """The static default format of weights; None when formats follow the weights or are learned."""
        moves = self.use_hgq or self.weight_quantizer is not None or self.granularity != "per_tensor"
        return None if moves else self.written_format("weight")

    def written_format(self, what: str) -> FixedFormat | None:
        """What the paper's three keys say of `data` or `weight`, whether it is a static format or names a width only."""
        negatives, integer, fractional = (getattr(self, f"default_{what}_{part}") for part in _STATIC)
        if integer is None or fractional is None:
            return None
        return FixedFormat(0 if negatives is False else 1, integer, fractional)


def _one_spelling(data: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(data)
    if "use_hgq" in given:
        short = given.pop("use_hgq")
        if given.setdefault("use_high_granularity_quantization", short) != short:
            what = "contradicts use_high_granularity_quantization"
            raise refuse(("PQ407", "use_hgq", what, "they are two names of one switch: keep one"))
    return given


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The widths and the granularity that hold where these keys are not given."""
    static = {what: any(given.get(f"default_{what}_{part}") is not None for part in _STATIC) for what in ("data", "weight")}
    learned = given.get("use_high_granularity_quantization") in (True, "true") or given.get("weight_quantizer") == "hgq"
    granularity = "per_weight" if learned else "per_tensor" if static["weight"] else "per_channel"
    return {"granularity": granularity, **{f"default_{what}_bits": 8 for what in static if not static[what]}}
