"""What the rules resolve to at one place of the network."""

from __future__ import annotations

from dataclasses import dataclass

from pquant_fx.config.kinds import DataGranularity, DataQuantizer, Granularity, WeightQuantizer, WeightRange
from pquant_fx.config.pruning_section import PruningSection
from pquant_fx.config.section import wrapping_problems
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.formats import FixedFormat, OverflowMode, RoundingMode

__all__ = ["LayerSettings"]


@dataclass(frozen=True)
class LayerSettings:
    """What holds for one place in the network, after all rules.

    weight_format: the static format of the weights; None when only the width `weight_bits` is given and the binary point
    follows the weights or is learned, per `granularity` group. data_format: likewise of the value that the place produces; None when the
    format of width `data_bits` is calibrated. Beside a static format the width is that of the format. bias_format: None for
    the accumulator's grid. quantize: False when neither weights nor result are quantized. prune: whether the weights get a
    mask; sparsity: the place's own goal, None for the method's; pruning: the method.

    weight_quantizer, data_quantizer: how a format comes about where none is given (`hgq`: bits are learned, from the width
    given). granularity and data_granularity: who shares a format; see `data_granularity_for`. weight_range: what the range of
    a group covers. input_bits, input_format: what the
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
    granularity: Granularity = "per_channel"
    quantize: bool = True
    prune: bool = False
    sparsity: float | None = None
    pruning: PruningSection | None = None
    weight_quantizer: WeightQuantizer = "dynamic"
    data_quantizer: DataQuantizer = "calibrated"
    data_granularity: DataGranularity | None = None
    weight_range: WeightRange = "minmax"
    input_bits: int | None = None
    input_format: FixedFormat | None = None
    quantize_input: bool = True
    quantize_output: bool = False
    n_parallel: int | None = None
    relu_multiplier: bool = False
    real_tanh: bool = True

    def __post_init__(self) -> None:
        for what in ("weight", "data"):
            for code, _, text, remedy in wrapping_problems(getattr(self, f"{what}_rounding"), getattr(self, f"{what}_overflow"), ""):
                raise ConfigError(Problem(code, f"rules together ask of {what} for {text}", remedy))

    def data_granularity_for(self, rank: int) -> DataGranularity:
        """Who shares a format in a value of `rank` axes, batch included; the batch axis always does.

        Where nothing was asked for: everything, but for learned bits as the weights do it, with spatial axes shared, because
        a streamed layer sees its positions one after the other.
        """
        if self.data_granularity is not None:
            return self.data_granularity
        if self.data_quantizer != "hgq" or self.granularity == "per_tensor":
            return "per_tensor"
        return "per_element" if self.granularity == "per_weight" and rank == 2 else "per_channel"
