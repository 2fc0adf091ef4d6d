"""Activations that hardware reads from a table: tanh, sigmoid, GELU, exp and the like.

    compiled   Tabulated(q(x)) -> q'                 training: torch's function; evaluation: fl32(f(x)), f computed in float64
    frozen     lookup(q(x), entries, f, low)         entries[n] = q'(fl32(f((low + n) 2^-f))) for every code of the input in order

The entries are what the activation means, in every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MAX_ENTRIES", "TABLE_FUNCTIONS", "TableFunction", "Tabulated", "exp_neg", "inverse_root", "inverse_sum", "lookup"]

MAX_ENTRIES = 1 << 16
"""The largest table that is made: an input of 16 bits."""


def exp_neg(x: Tensor) -> Tensor:
    """e^-x for x >= 0: the exponential of a softmax, whose argument max - x needs no sign bit."""
    return torch.exp(-x)


def inverse_sum(x: Tensor) -> Tensor:
    """1 / max(x, 1) for the sum of a softmax, which the largest share keeps at 1: no code of its format may divide by zero."""
    return torch.reciprocal(x.clamp(min=1.0))


def inverse_root(x: Tensor, scale: float = 1.0, offset: float = 1.0) -> Tensor:
    """1 / sqrt(x scale + offset) for x >= 0 and offset > 0: what a norm divides by, of a sum of squares."""
    return torch.rsqrt(x * scale + offset)


def lookup(x: Tensor, entries: Tensor, f: int, low: int) -> Tensor:
    """entries[x 2^f - low], of x's shape and the type of `entries` (1-D); x lies on the grid 2^-f, its smallest code is `low`."""
    return entries[(x * 2.0**f).long() - low]


class TableFunction(NamedTuple):
    """non_negative: whether f(x) >= 0 for every x; None: for every x >= 0. bounds: what f(x) can not leave."""

    name: str
    non_negative: bool | None = None
    bounds: tuple[float, float] | None = None


_ODD, _SHARE = (-1.0, 1.0), (0.0, 1.0)
TABLE_FUNCTIONS: Mapping[Callable[..., Any], TableFunction] = {
    torch.tanh: TableFunction("tanh", bounds=_ODD),
    torch.sigmoid: TableFunction("sigmoid", True, _SHARE),
    F.gelu: TableFunction("gelu"),
    F.silu: TableFunction("silu"),
    F.elu: TableFunction("elu"),
    F.selu: TableFunction("selu"),
    F.celu: TableFunction("celu"),
    F.mish: TableFunction("mish"),
    F.softplus: TableFunction("softplus", True),
    F.softsign: TableFunction("softsign", bounds=_ODD),
    F.logsigmoid: TableFunction("logsigmoid", False),
    F.hardsigmoid: TableFunction("hardsigmoid", True, _SHARE),
    F.hardswish: TableFunction("hardswish"),
    torch.exp: TableFunction("exp", True),
    exp_neg: TableFunction("exp_neg", True, (0.0, 2.0)),  # room for 1 itself: saturated, it would stop the gradient of tied logits
    inverse_sum: TableFunction("inverse_sum", True, _SHARE),
    inverse_root: TableFunction("inverse_root", True),
    torch.erf: TableFunction("erf", bounds=_ODD),
    torch.reciprocal: TableFunction("reciprocal"),
}
_BY_NAME = {entry.name: function for function, entry in TABLE_FUNCTIONS.items()}


class Tabulated(nn.Module):
    """f(x; *args, **kwargs) of the `TABLE_FUNCTIONS` entry `name`, of x's shape and dtype.

    Training computes it as torch does. Evaluation computes it in float64 and rounds to float32, whatever the type of x: the
    entry that a table has for the code of x, before its quantizer.
    """

    def __init__(self, name: str, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.name, self.arguments, self.keywords = name, tuple(args), dict(kwargs or {})

    @property
    def function(self) -> Callable[..., Any]:
        return _BY_NAME[self.name]

    def precisely(self, x: Tensor) -> Tensor:
        """fl32(f(x)) with f computed in float64, as float32. Codes know no negative zero, of which 1 / x would make -inf."""
        made: Tensor = self.function(x.double() + 0.0, *self.arguments, **self.keywords)
        return made.float()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            made: Tensor = self.function(x, *self.arguments, **self.keywords)
            return made
        return self.precisely(x).to(x.dtype)

    def extra_repr(self) -> str:
        options = [*map(repr, self.arguments), *(f"{k}={v!r}" for k, v in self.keywords.items())]
        return ", ".join([self.name, *options])
