"""A quantizer as standard ONNX operators: scale, round, overflow, scale back, each step exact.

    s = x 2^f;   RND: ceil(floor(2s)/2);   RND_MIN_INF: floor(ceil(2s)/2);   RND_INF, RND_ZERO: sign(s) times that of |s|
    WRAP: r = n - floor(n / 2^W) 2^W, minus 2^W above the largest code;   WRAP_SM: the triangle wave of period 2^(W+1)

Doubling, halving and scaling by 2^f are exact in floating point, adding 1/2 would not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.fx import Node

from pquant_fx.graph.dialect import Quantizer
from pquant_fx.lower.onnx.emission import Emission
from pquant_fx.lower.onnx.formats import QuantizerFormat, compact, format_of
from pquant_fx.lower.onnx.graph import Dtype, Value
from pquant_fx.lower.onnx.precision import FLOAT32_BITS

__all__ = ["data_quantizer", "rounded"]


@dataclass(frozen=True)
class _Writer:
    """Writes the steps of one quantizer; `shape` is that of its value."""

    e: Emission
    node: Node
    dtype: Dtype

    def __call__(self, what: str, operator: str, *inputs: Value | npt.ArrayLike) -> Value:
        given = [v if isinstance(v, Value) else self.constant(f"{what}_{n}", v) for n, v in enumerate(inputs)]
        return self.e.step(self.node, what, operator, given, self.e.shape(self.node))

    def constant(self, what: str, array: npt.ArrayLike) -> Value:
        return self.e.constant(self.node, what, compact(array), self.dtype)


def data_quantizer(e: Emission, node: Node, quantizer: Quantizer, x: Value) -> Value:
    """The value of a data quantizer, in float32 wherever its codes fit."""
    spec = format_of(quantizer)
    # wrapping passes through codes of two bits more than the format has
    dtype: Dtype = "float64" if spec.width.max() + 2 > FLOAT32_BITS else e.compute(node)
    write = _Writer(e, node, dtype)
    if spec.zero.all():
        return e.result(node, "Mul", [e.cast(x, dtype), write.constant("zero", 0.0)])
    scaled = write("scaled", "Mul", e.cast(x, dtype), np.exp2(spec.f))
    codes = _overflow(write, _rounded(write, scaled, spec.rounding), spec)
    if spec.zero.any() and spec.overflow not in ("SAT", "SAT_SYM"):
        alive = e.constant(node, "alive", (~spec.zero).astype(np.float32), dtype)
        codes = write("kept", "Mul", codes, alive)
    return e.result(node, "Mul", [codes, write.constant("lsb", np.exp2(-spec.f))])


def rounded(e: Emission, node: Node, spec: QuantizerFormat, x: Value) -> Value:
    """x on the grid of `spec` by its rounding mode, not yet within its range; in x's type."""
    write = _Writer(e, node, x.dtype)
    codes = _rounded(write, write("scaled", "Mul", x, np.exp2(spec.f)), spec.rounding)
    return write("rounded", "Mul", codes, np.exp2(-spec.f))


def _rounded(write: _Writer, s: Value, rounding: str) -> Value:
    match rounding:
        case "TRN":
            return write("round", "Floor", s)
        case "RND_CONV":
            return write("round", "Round", s)
        case "RND":
            return _nearest(write, s, ("Floor", "Ceil"))
        case "RND_MIN_INF":
            return _nearest(write, s, ("Ceil", "Floor"))
    size, sign = write("size", "Abs", s), write("sign", "Sign", s)
    if rounding == "TRN_ZERO":
        whole = write("whole", "Floor", size)
    else:
        whole = _nearest(write, size, ("Floor", "Ceil") if rounding == "RND_INF" else ("Ceil", "Floor"))
    return write("round", "Mul", sign, whole)


def _nearest(write: _Writer, s: Value, order: Sequence[str]) -> Value:
    """To the nearest integer: halves are found with one operator and resolved with the opposite one."""
    halves = write("halves", order[0], write("doubled", "Mul", s, 2.0))
    return write("nearest", order[1], write("halved", "Mul", halves, 0.5))


def _overflow(write: _Writer, n: Value, spec: QuantizerFormat) -> Value:
    if spec.overflow in ("SAT", "SAT_SYM"):
        return _clipped(write, n, spec)
    if spec.overflow == "SAT_ZERO":
        over = _choose(write, "over", n, spec.high, write.constant("nothing", 0.0), n)
        under = write("opposite", "Neg", over)
        return _choose(write, "under", under, -spec.low, write.constant("nothing_2", 0.0), over)
    size = np.exp2(np.maximum(spec.i + spec.f, 0))
    period = size * (1 + spec.k) if spec.overflow == "WRAP" else 4 * size
    turns = write("turns", "Floor", write("periods", "Mul", n, 1 / period))
    rest = write("rest", "Sub", n, write("whole_turns", "Mul", turns, period))
    if spec.overflow == "WRAP":
        return _choose(write, "wrapped", rest, size - 1, write("negative", "Sub", rest, period), rest)
    falling = write("falling", "Sub", 2 * size - 1, rest)
    rising = write("rising", "Sub", rest, period)
    return _choose(write, "wave", rest, size - 1, _choose(write, "tail", rest, 3 * size - 1, rising, falling), rest)


def _clipped(write: _Writer, n: Value, spec: QuantizerFormat) -> Value:
    low, high = compact(spec.low), compact(spec.high)
    if low.ndim == high.ndim == 0:
        return write("clip", "Clip", n, low, high)
    return write("clip", "Min", write("above", "Max", n, low), high)


def _like(write: _Writer, what: str) -> Value:
    e, node = write.e, write.node
    return Value(e.graph.unique(f"{e.name(node)}/{what}"), e.shape(node), write.dtype)


def _choose(write: _Writer, what: str, tested: Value, limit: npt.ArrayLike, above: Value, below: Value) -> Value:
    """`above` where `tested` exceeds the limit, else `below`."""
    e, node = write.e, write.node
    test = [tested, write.constant(f"{what}_limit", limit)]
    exceeds = e.graph.node("Greater", test, Value(e.graph.unique(f"{e.name(node)}/{what}_exceeds"), e.shape(node), "bool"))
    return e.graph.node("Where", [exceeds, above, below], _like(write, what))
