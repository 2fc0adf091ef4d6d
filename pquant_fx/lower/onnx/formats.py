"""A quantizer's formats as arrays, in the form that the ONNX files need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pquant_fx.formats import OverflowMode, RoundingMode, evaluation_mode
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.lower.fixed_point_numpy import Array, holds_only_zero

__all__ = ["QuantizerFormat", "compact", "format_of"]


@dataclass(frozen=True)
class QuantizerFormat:
    """k, i, f of one broadcast shape; zero: where nothing but 0 can come out; rounding as in evaluation."""

    k: Array
    i: Array
    f: Array
    rounding: RoundingMode
    overflow: OverflowMode

    @property
    def zero(self) -> npt.NDArray[np.bool_]:
        """Where nothing but 0 can come out."""
        return holds_only_zero(self.k, self.i, self.f, self.overflow)

    @property
    def width(self) -> Array:
        """W = k + i + f, 0 where nothing but 0 can come out."""
        return np.where(self.zero, 0.0, self.k + self.i + self.f)

    @property
    def high(self) -> Array:
        """The largest code."""
        return np.where(self.zero, 0.0, np.exp2(np.maximum(self.i + self.f, 0)) - 1)

    @property
    def low(self) -> Array:
        """The smallest code."""
        size = self.high if self.overflow == "SAT_SYM" else self.high + 1
        return np.where(self.zero, 0.0, -self.k * size)

    def transposed(self) -> QuantizerFormat:
        """For the transpose of a rank-2 value."""
        k, i, f = (t.T if t.ndim == 2 else t.reshape(-1, 1) if t.ndim == 1 else t for t in (self.k, self.i, self.f))
        return QuantizerFormat(k, i, f, self.rounding, self.overflow)


def format_of(quantizer: Quantizer, value: Any = None) -> QuantizerFormat:
    """The formats of `quantizer`; `value`: the parameter, for formats that follow it."""
    with torch.no_grad():
        arrays = [np.rint(t.detach().cpu().double().numpy()) for t in quantizer.kif(value)]
    k, i, f = np.broadcast_arrays(*arrays)
    return QuantizerFormat(k, i, f, evaluation_mode(quantizer.rounding), quantizer.overflow)


def compact(array: npt.ArrayLike) -> Array:
    """A scalar when all elements are equal, else the array as it is."""
    a = np.asarray(array, dtype=np.float64)
    return a.reshape(-1)[0].reshape(()) if a.size and (a == a.reshape(-1)[0]).all() else a
