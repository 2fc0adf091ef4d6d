"""`layer_specific`: static formats of one layer, in the paper's shape."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from pquant_fx.config.section import Section, Whole, refuse
from pquant_fx.formats import FixedFormat

__all__ = ["DataPlace", "LayerSpecific", "StaticFormat"]

_TOO_FEW = ("PQ407", "fractional_bits", "the format stores no bits", "give integer_bits + fractional_bits of at least 1")


class StaticFormat(Section):
    """A format as the paper writes it: k (`keep_negatives`), i and f. Bits may be negative, their sum may not."""

    keep_negatives: bool = True
    integer_bits: Whole
    fractional_bits: Whole

    @model_validator(mode="after")
    def _stores_bits(self) -> Self:
        if self.format.width < 1:
            raise refuse(_TOO_FEW)
        return self

    @property
    def format(self) -> FixedFormat:
        return FixedFormat(int(self.keep_negatives), self.integer_bits, self.fractional_bits)


class DataPlace(Section):
    """What a layer takes, or makes: whether it is quantized there (`quantize`, left out: as everywhere), and its format."""

    quantize: bool | None = None
    keep_negatives: bool | None = None
    integer_bits: Whole | None = None
    fractional_bits: Whole | None = None

    @model_validator(mode="after")
    def _whole_format(self) -> Self:
        bits = {"integer_bits": self.integer_bits, "fractional_bits": self.fractional_bits}
        missing = [key for key, value in bits.items() if value is None]
        if len(missing) == 1 or (missing and self.keep_negatives is not None):
            raise refuse(("PQ407", missing[0], "is missing", "a static format needs integer_bits and fractional_bits"))
        if self.format is not None and self.format.width < 1:
            raise refuse(_TOO_FEW)
        return self

    @property
    def format(self) -> FixedFormat | None:
        """The static format; None where only `quantize` was given."""
        if self.integer_bits is None or self.fractional_bits is None:
            return None
        return FixedFormat(int(self.keep_negatives is not False), self.integer_bits, self.fractional_bits)


class LayerSpecific(Section):
    """The formats of one layer's weight and bias, of the values that it takes (`input`) and of its result (`output`).

    What a layer asks of its input wins over what the layer before says of its output: both name one value.
    """

    weight: StaticFormat | None = None
    bias: StaticFormat | None = None
    input: DataPlace | None = None
    output: DataPlace | None = None
