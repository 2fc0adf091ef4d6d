"""What the sections of a configuration share: strictness, checked scalars, and fields that wait for their feature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pquant_fx.errors import ConfigError
from pquant_fx.formats import FixedFormat, OverflowMode, RoundingMode, overflow_mode, rounding_mode

__all__ = [
    "Amount",
    "Bits",
    "Finding",
    "FormatText",
    "Fraction",
    "Number",
    "Overflow",
    "Pending",
    "Rounding",
    "Section",
    "Whole",
    "later",
    "not_yet",
    "refuse",
    "wrapping_problems",
]

T = TypeVar("T")
Finding = tuple[str, str, str, str]
"""code, key inside the section (with dots where it lies deeper), what is wrong, remedy"""
_NOT_HERE: Final = "belongs to a feature that this version does not have"


class Section(BaseModel):
    """A group of settings: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def unavailable(self) -> list[Finding]:
        """What the section asks for that this version does not have (PQ408): read here, refused by `compile`."""
        found: list[Finding] = []
        for key, field in type(self).model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, Pending) and getattr(self, key) != mark.inactive:
                    found.append(("PQ408", key, f"{getattr(self, key)!r} {_NOT_HERE}", mark.remedy))
        return found


@dataclass(frozen=True)
class Pending:
    """Marks a key of the paper whose feature this version does not have: any value is read, and `compile` refuses (PQ408)
    all but `inactive`."""

    inactive: Any
    remedy: str


def refuse(*findings: Finding) -> PydanticCustomError:
    """The error by which a validator of a whole section reports findings about its keys, several at once."""
    return PydanticCustomError("findings", "the section is inconsistent", {"findings": list(findings)})


def later(inactive: Any, remedy: str) -> AfterValidator:
    """Refuse (PQ408) every value but `inactive`: the key is part of the schema, its feature is not part of this version."""

    def check(value: T) -> T:
        if value != inactive:
            raise PydanticCustomError("later", _NOT_HERE, {"remedy": remedy})
        return value

    return AfterValidator(check)


def not_yet(*choices: Any, remedy: str) -> AfterValidator:
    """Refuse (PQ408) these choices of a key."""

    def check(value: T) -> T:
        if value in choices:
            raise PydanticCustomError("later", _NOT_HERE, {"remedy": remedy})
        return value

    return AfterValidator(check)


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number is needed, not {value}", {"value": str(value).lower(), "remedy": "give a number"})
    return value


def _explained(read: Callable[[str], T]) -> Callable[[Any], T]:
    """Turn the error of a reader of text into a finding about the key that held the text."""

    def check(value: Any) -> T:
        if not isinstance(value, str):
            raise PydanticCustomError("text", "text is needed", {"remedy": "put the value in quotes"})
        try:
            return read(value)
        except ConfigError as error:
            raise PydanticCustomError("text", "{what}", {"what": error.problems[0].what, "remedy": error.remedy}) from None

    return check


def wrapping_problems(rounding: str, overflow: str, key: str) -> list[Finding]:
    """A finding where no hardware does what the two modes say together."""
    if overflow != "WRAP_SM" or rounding == "TRN":
        return []
    return [("PQ407", key, f"WRAP_SM with rounding {rounding}: vendor headers decide before they round", "round with TRN, or use WRAP")]


def _format_text(text: str) -> str:
    made, rounding, overflow = FixedFormat.parse(text)
    if overflow == "WRAP_SM" and not made.k:
        raise PydanticCustomError("text", "WRAP_SM is defined for signed formats only", {"remedy": "write 'fixed<...>', or use WRAP"})
    for _, _, what, remedy in wrapping_problems(rounding, overflow, ""):
        raise PydanticCustomError("text", "{what}", {"what": what, "remedy": remedy})
    if made.width < 1:
        raise PydanticCustomError(
            "text", "'{text}' stores no bits", {"text": text, "remedy": "give a width of at least 1, as in 'fixed<8,3>'"}
        )
    return "".join(text.split())


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Number = Annotated[float, BeforeValidator(_no_truth_value)]
Amount = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Bits = Annotated[Whole, Field(ge=1, le=32)]
FormatText = Annotated[str, BeforeValidator(_explained(_format_text))]
"""`fixed<W,I>`, `ufixed<W,I,RND,SAT>` or the `ap_` spelling, checked, without blanks."""
Rounding = Annotated[RoundingMode, BeforeValidator(_explained(rounding_mode))]
Overflow = Annotated[OverflowMode, BeforeValidator(_explained(overflow_mode))]
