"""Sections of ours around the network: its inputs and outputs, joins, calibration and budget."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pquant_fx.config.section import Amount, FormatText, Fraction, Number, Section, Whole, later, refuse

__all__ = ["Budget", "Calibration", "InputSettings", "JoinPolicy", "Joins", "OutputSettings"]

JoinPolicy = Literal["align", "shared", "requant"]
CalibrationMethod = Literal["minmax", "ema", "percentile", "mse", "kl"]
Size = Annotated[Whole, Field(ge=1)]


class InputSettings(Section):
    """One input of `forward`: shape without batch, and the format that its neighbour delivers (`fixed<16,6>`)."""

    shape: tuple[Size, ...] | None = None
    format: FormatText | None = None


class OutputSettings(Section):
    """One output, by name or by index from 0: the format that its neighbour expects."""

    format: FormatText | None = None


class Joins(Section):
    """Where branches meet. `align`: branches keep their formats; `shared`: one quantizer for all inputs of the join;
    `requant`: only the result is quantized. `layers`: policy per pattern, last match wins.
    """

    policy: JoinPolicy = "align"
    layers: dict[str, JoinPolicy] = {}


class Calibration(Section):
    """How data formats come from observed values. `batches`: how many are observed; `percentile`: per cent of the values
    that stay inside (method `percentile`); `safety_bits`: integer bits on top, by default 1 for WRAP modes and 0 otherwise.
    """

    method: CalibrationMethod = "minmax"
    batches: Size = 32
    percentile: Annotated[Number, Field(gt=50, le=100)] = 99.99
    safety_bits: Annotated[Whole, Field(ge=0, le=8)] | None = None

    def safety(self, overflow: str) -> int:
        """Integer bits to add to a calibrated format with this overflow mode."""
        if self.safety_bits is not None:
            return self.safety_bits
        return int(overflow.startswith("WRAP"))


_BUDGET = "leave it out and give 'ebops'"


class Budget(Section):
    """What the finished design may cost: effective bit operations, adder cost, LUTs.

    `ebops` is a hard limit on the exact count, held by a multiplier that takes the place of a beta;
    bits have to be learned for it. The result should lie within `tolerance` under the limit. start_fraction, end_fraction:
    between these shares of the training stage the limit comes down from what the network costs to `ebops`. rate: the
    multiplier's step; damping: what the squared violation weighs.
    """

    ebops: Annotated[Amount, Field(gt=0)] | None = None
    tolerance: Annotated[Fraction, Field(gt=0, lt=1)] = 0.05
    start_fraction: Fraction = 0.0
    end_fraction: Fraction = 0.6
    rate: Annotated[Amount, Field(gt=0)] = 1.0
    damping: Amount = 1.0
    cost: Annotated[Amount | None, later(None, _BUDGET)] = None
    lut: Annotated[Amount | None, later(None, _BUDGET)] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start_fraction >= self.end_fraction:
            what = f"{self.start_fraction} is not before end_fraction {self.end_fraction}"
            raise refuse(("PQ407", "start_fraction", what, "let the limit come down before it has to hold"))
        return self
