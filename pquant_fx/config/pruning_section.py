"""What every pruning method's section has."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from pquant_fx.config.section import Amount, Finding, Fraction, Section

__all__ = ["CHANGES_VALUES", "LaterMethod", "PatternText", "PruningSection", "Sparsity", "ThresholdType", "WithoutThreshold", "pattern_of"]

ThresholdType = Literal["layerwise", "channelwise", "weightwise"]
Sparsity = Annotated[Fraction, Field(lt=1)]
CHANGES_VALUES = "its masks change the values of weights, which would leave the grid if they were quantized before"


class PruningSection(Section):
    """What every method has. `disable_pruning_for_layers` holds patterns like those of `layers`."""

    latent_because: ClassVar[str] = ""
    """Why the method can not decide by quantized weights, which `pruning_first: false` asks for; "" where it can."""
    gentler: ClassVar[str] = "a lower sparsity"
    """The settings that let a method prune less, for those whose layer it has emptied."""
    pruning_method: str
    disable_pruning_for_layers: tuple[str, ...] = ()
    enable_pruning: bool = True
    threshold_decay: Amount = 0.0


class LaterMethod(PruningSection):
    """A method of the paper that this version can read but not run."""

    def unavailable(self) -> list[Finding]:
        if not self.enable_pruning:
            return []
        what = f"'{self.pruning_method}' is a method that this version does not have"
        return [("PQ408", "pruning_method", what, "use 'magnitude', or set enable_pruning: false")]


class WithoutThreshold(PruningSection):
    """A method that learns no thresholds: `threshold_decay` can be read, as PQuantML's files have it, but is refused by `compile`."""

    def unavailable(self) -> list[Finding]:
        found = super().unavailable()
        if self.enable_pruning and self.threshold_decay != 0:
            what = f"{self.threshold_decay} belongs to a method that learns thresholds, '{self.pruning_method}' has none to decay"
            found.append(("PQ407", "threshold_decay", what, "leave it at 0"))
        return found


def pattern_of(text: str) -> tuple[int, int]:
    """(N, M) of "N:M": of every M weights along the inputs N are kept. Raises ValueError."""
    keep, _, size = text.partition(":")
    found = int(keep), int(size)
    if not 1 <= found[0] <= found[1]:
        raise ValueError(text)
    return found


def _checked(text: str) -> str:
    try:
        pattern_of(text)
    except ValueError:
        remedy = "write N:M with 1 <= N <= M: of every M weights along the inputs N are kept, as in '2:4'"
        raise PydanticCustomError("text", "{what}", {"what": f"'{text}' is no pattern", "remedy": remedy}) from None
    return text


PatternText = Annotated[str, AfterValidator(_checked)]
