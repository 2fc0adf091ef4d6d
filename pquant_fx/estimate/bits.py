"""Bits of values, and the sums that EBOPs are made of.

Bit tensors belong to one sample: batch axis 1 for data, the parameter's shape for parameters. They have the rank of their
value and size 1 along every axis that shares its bits, and are never expanded to the value: sums multiply by the size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.fx import Node

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.info import place
from pquant_fx.graph.interval_codes import trailing_zeros

__all__ = [
    "NOTHING",
    "Bits",
    "Format",
    "Shape",
    "Sign",
    "Uncountable",
    "aligned",
    "check_sign",
    "constant_format",
    "counts_sign",
    "product_sum",
    "total",
]

Shape: TypeAlias = tuple[int, ...]
Sign = Literal["hgq2", "weights_unsigned", "always"]
"""Who counts a sign bit: saturating quantizers (HGQ2); data but not parameters (HGQ 1, the default); everybody (PQuantML)."""

NOTHING = -4096.0
"""i and f of what is always 0: below any format, so that the union with one is that one."""


class Bits(NamedTuple):
    """Bits of each element of a value. magnitude: without sign; sign: 0 or 1, None where no sign is counted."""

    magnitude: Tensor
    sign: Tensor | None = None

    @property
    def total(self) -> Tensor:
        return self.magnitude if self.sign is None else self.magnitude + self.sign


class Format(NamedTuple):
    """k, i, f of each element of a value; k = 0, i = f = NOTHING where it is always 0."""

    k: Tensor
    i: Tensor
    f: Tensor

    @classmethod
    def of(cls, k: Tensor, i: Tensor, f: Tensor, kept: Tensor | None = None) -> Format:
        """From a quantizer's k, i, f; kept: 0 where the value is always 0 for another reason."""
        stores = (i + f >= 0) & (k + i + f > 0)
        if kept is not None:
            stores = stores & (kept != 0)
        return cls(torch.where(stores, k, 0.0), torch.where(stores, i, NOTHING), torch.where(stores, f, NOTHING))

    @property
    def bits(self) -> Bits:
        return Bits((self.i + self.f).clamp(min=0), self.k)


class Uncountable(Exception):
    """Why the bits of `node` are not known: an opaque operator, a value that no quantizer rounded."""

    def __init__(self, node: Node, what: str, remedy: str = "put a quantizer on it") -> None:
        super().__init__(what)
        self.node, self.what, self.remedy = node, what, remedy

    @property
    def problem(self) -> Problem:
        return Problem("PQ202", f"no EBOPs: {self.what}", self.remedy, place(self.node))


def check_sign(sign: str) -> Sign:
    """The sign convention of that name. Raises ConfigError (PQ405)."""
    known = get_args(Sign)
    if sign not in known:
        raise ConfigError(Problem("PQ405", f"there is no sign convention '{sign}'", f"use one of {', '.join(known)}"))
    return sign  # type: ignore[return-value]


def counts_sign(sign: Sign, quantizer: Quantizer, data: bool = False) -> bool:
    """Whether that convention counts the sign of what `quantizer` rounds, data or a parameter."""
    return sign == "always" or (data if sign == "weights_unsigned" else quantizer.overflow.startswith("SAT"))


def aligned(bits: Tensor, rank: int) -> Tensor:
    """The same bits with `rank` axes, new ones in front."""
    return bits if bits.dim() == rank else bits.reshape((1,) * (rank - bits.dim()) + tuple(bits.shape))


def total(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The sum over all elements of a value of that shape."""
    repeats = math.prod(shape) // max(1, bits.numel())
    return bits.sum() * repeats if repeats != 1 else bits.sum()


def product_sum(a: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """The sum of a * b over all indices of `shape`, with whose rank both are given; neither is expanded."""
    only_a: list[int] = []
    only_b: list[int] = []
    repeats = 1
    for axis, (m, n, size) in enumerate(zip(a.shape, b.shape, shape)):
        if m == n:
            repeats *= size if n == 1 else 1
        else:
            (only_a if n == 1 else only_b).append(axis)
    if only_a:
        a = a.sum(only_a)
    if only_b:
        b = b.sum(only_b)
    summed = torch.dot(a.flatten(), b.flatten())
    return summed * repeats if repeats != 1 else summed


def constant_format(values: ArrayLike) -> tuple[Tensor, Format]:
    """Of known real numbers, each by itself: enclosed bits (12 = 0b1100 -> 2, 0 -> 0) and the smallest format, in float64."""
    real = np.asarray(values, dtype=np.float64)
    mantissa, exponent = np.frexp(np.abs(real))
    used = real != 0
    bits = np.where(used, 53 - trailing_zeros(np.ldexp(mantissa, 53).astype(np.int64)), 0)
    parts: tuple[Any, ...] = (used & (real < 0), np.where(used, exponent, NOTHING), np.where(used, bits - exponent, NOTHING))
    return _tensor(bits), Format(*(_tensor(p) for p in parts))


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64))
