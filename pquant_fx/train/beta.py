"""How much one effective bit operation adds to the loss: beta, by a schedule or by a controller, one value an epoch.

Epochs are those of the training stage, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pquant_fx.config import BetaController, BetaPoint
from pquant_fx.train.events import EpochStart, Event
from pquant_fx.train.resources import ResourceTerms

__all__ = ["Beta", "ConstantBeta", "ControlledBeta", "PiecewiseBeta", "ScheduledBeta", "beta_of"]

Count = Callable[[], float]
"""Exact EBOPs of one sample, counted when asked."""


class Beta(Protocol):
    """Where beta comes from."""

    def at(self, epoch: int, count: Count) -> float:
        """Beta of the epoch that begins; asked once an epoch, in order."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def beta_of(setting: float | Sequence[BetaPoint] | BetaController) -> Beta:
    """The source that a configuration's `hgq_beta` asks for: a number, points, or a controller."""
    if isinstance(setting, BetaController):
        return ControlledBeta(setting)
    return ConstantBeta(setting) if isinstance(setting, int | float) else PiecewiseBeta(setting)


class _Stateless:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to load."""


class ConstantBeta(_Stateless):
    """The same beta in every epoch."""

    def __init__(self, beta: float) -> None:
        self._beta = float(beta)

    def at(self, epoch: int, count: Count) -> float:
        return self._beta


class PiecewiseBeta(_Stateless):
    """Beta through the points (epoch, beta, interp); `interp` describes the segment after its point, the last beta stays.

    linear: beta0 + (beta1 - beta0) t; log: beta0 (beta1 / beta0)^t with t = (e - e0) / (e1 - e0); constant: beta0.
    """

    def __init__(self, points: Sequence[BetaPoint]) -> None:
        self._points = tuple(points)

    def at(self, epoch: int, count: Count) -> float:
        after = next((n for n, point in enumerate(self._points) if point.epoch > epoch), len(self._points))
        begin = self._points[max(after - 1, 0)]
        if after in (0, len(self._points)) or begin.interp == "constant":
            return float(begin.beta)
        end = self._points[after]
        t = (epoch - begin.epoch) / (end.epoch - begin.epoch)
        if begin.interp == "log":
            return float(begin.beta * (end.beta / begin.beta) ** t)
        return float(begin.beta + (end.beta - begin.beta) * t)


class ControlledBeta:
    """A PI(D) controller that steers log10(beta) by the error log10(EBOPs / target), or EBOPs / target - 1, as HGQ2's BetaPID does.

    Beta is `init_beta` for the warm-up, and starts from there: the integral is chosen so. While beta is at a bound the integral
    stands still, so that it need not unwind. No EBOPs at all give the smallest beta.
    """

    def __init__(self, settings: BetaController) -> None:
        self._settings = settings
        self._integral: float | None = None
        self._previous: float | None = None

    def at(self, epoch: int, count: Count) -> float:
        s = self._settings
        if epoch < s.warmup_epochs:
            return s.init_beta
        ebops = count()
        if ebops <= 0:
            return s.beta_min
        error = math.log10(ebops / s.target_ebops) if s.error == "log" else ebops / s.target_ebops - 1
        if self._integral is None:
            self._integral = (math.log10(s.init_beta) - s.p * error) / s.i - error
        change = 0.0 if self._previous is None else error - self._previous
        integral = self._integral + error
        wanted = _power(s.p * error + s.i * integral + s.d * change) * (1 - s.damp if ebops < s.target_ebops else 1)
        beta = min(max(wanted, s.beta_min), math.inf if s.beta_max is None else s.beta_max)
        self._integral = integral if beta == wanted else self._integral
        self._previous = error
        return beta

    def state_dict(self) -> dict[str, Any]:
        return {"integral": self._integral, "previous": self._previous}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._integral, self._previous = state["integral"], state["previous"]


class ScheduledBeta:
    """Gives the resource terms the beta of each epoch of the training stage; in fine-tuning the last one stays."""

    def __init__(self, terms: ResourceTerms, source: Beta) -> None:
        self._terms, self._source = terms, source

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochStart) and event.stage == "training":
            self._terms.beta = self._source.at(event.epoch, self._terms.count)

    def state_dict(self) -> dict[str, Any]:
        return {"beta": self._terms.beta, "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._terms.beta = state["beta"]
        self._source.load_state_dict(state["source"])


def _power(exponent: float) -> float:
    """10^exponent, the largest float where there is none so large."""
    return float(10.0 ** min(exponent, 308.0))
