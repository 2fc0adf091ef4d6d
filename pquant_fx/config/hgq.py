"""What `hgq_beta` can be: a number, a schedule over epochs, or a controller that steers towards a target."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from pquant_fx.config.section import Amount, Number, Section, Whole, refuse

__all__ = ["BETA_SHAPES", "Beta", "BetaController", "BetaPoint"]

BETA_SHAPES = ("number", "schedule", "controller")
_AS_IN = "write it as [[0, 5e-7, log], [100, 1e-4]]"
Positive = Annotated[Amount, Field(gt=0)]


class BetaPoint(NamedTuple):
    """beta from `epoch` on, and the segment that follows: a line, a line in log(beta), or constant.

    Epochs count from the start of the training stage; in pre-training nothing presses on the bits. After the last point beta
    stays.
    """

    epoch: Annotated[Whole, Field(ge=0)]
    beta: Amount
    interp: Literal["linear", "log", "constant"] = "constant"


class BetaController(Section):
    """A PI(D) controller in the log domain that steers beta towards `target_ebops` (HGQ2's BetaPID has the same law).

    err = log10(EBOPs / target) once per epoch; log10(beta) = p err + i sum(err) + d (change of err); beta is multiplied by
    1 - damp under the target and kept in [beta_min, beta_max]. For `warmup_epochs` beta is `init_beta`. With error `linear`
    err = EBOPs / target - 1, which weighs an excess more.
    """

    target_ebops: Positive
    init_beta: Positive = 1e-6
    p: Number = 1.0
    i: Positive = 2e-3
    d: Number = 0.0
    damp: Annotated[Amount, Field(lt=1)] = 0.0
    warmup_epochs: Annotated[Whole, Field(ge=0)] = 10
    beta_min: Amount = 0.0
    beta_max: Amount | None = None
    error: Literal["log", "linear"] = "log"

    @model_validator(mode="after")
    def _in_bounds(self) -> Self:
        if self.beta_max is not None and self.beta_max < self.beta_min:
            raise refuse(("PQ407", "beta_max", f"{self.beta_max} is below beta_min {self.beta_min}", "let beta_max be the larger one"))
        if self.init_beta < self.beta_min or (self.beta_max is not None and self.init_beta > self.beta_max):
            raise refuse(("PQ407", "init_beta", f"{self.init_beta} lies outside [beta_min, beta_max]", "begin between the two"))
        return self


def _shape(value: Any) -> str:
    if isinstance(value, (Mapping, BetaController)):
        return "controller"
    return "schedule" if isinstance(value, (list, tuple)) else "number"


def _points(value: Any) -> Any:
    for point in value:
        if not isinstance(point, (list, tuple)) or not 2 <= len(point) <= 3:
            what = "a schedule is a list of [epoch, beta, interp], and {point} is none"
            raise PydanticCustomError("text", what, {"point": repr(point), "remedy": _AS_IN})
    return value


def _schedule(points: tuple[BetaPoint, ...]) -> tuple[BetaPoint, ...]:
    if not points or points[0].epoch != 0:
        raise PydanticCustomError("text", "a schedule begins at epoch 0", {"remedy": _AS_IN})
    for here, following in pairwise(points):
        if following.epoch <= here.epoch:
            raise PydanticCustomError("text", "epoch {b} does not follow {a}", {"a": here.epoch, "b": following.epoch, "remedy": _AS_IN})
        if here.interp == "log" and 0 in (here.beta, following.beta):
            what = "a 'log' segment can not begin or end at 0"
            raise PydanticCustomError("text", what, {"remedy": "begin at a small number such as 1e-7, or use 'linear'"})
    return points


Beta = Annotated[
    Annotated[Amount, Tag("number")]
    | Annotated[tuple[BetaPoint, ...], BeforeValidator(_points), AfterValidator(_schedule), Tag("schedule")]
    | Annotated[BetaController, Tag("controller")],
    Discriminator(_shape),
]
