"""The table ONNX operator -> operations of the importer. An operator that is not here has no exact hls4ml layer."""

from __future__ import annotations

import numpy as np

from pquant_fx.lower.hls4ml.elements import ELEMENT_READERS, affine
from pquant_fx.lower.hls4ml.matrices import MATRIX_READERS
from pquant_fx.lower.hls4ml.net import Array, Dense, Op, Quantize, Shape
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.reductions import REDUCTION_READERS
from pquant_fx.lower.hls4ml.shapes import SHAPE_READERS
from pquant_fx.lower.hls4ml.tables import TABLE_READERS
from pquant_fx.lower.hls4ml.transposed import TRANSPOSED_READERS
from pquant_fx.lower.hls4ml.upsampling import UPSAMPLING_READERS
from pquant_fx.lower.hls4ml.windows import WINDOW_READERS

__all__ = ["READERS", "quantizer"]

_ROUNDING = {"ROUND": "RND_CONV", "FLOOR": "TRN", "HALF_UP": "RND_INF", "HALF_DOWN": "RND_ZERO", "DOWN": "TRN_ZERO"}
_ALIASES = {"S_RND": "RND", "S_RND_CONV": "RND_CONV", "RN_ZERO": "RND_ZERO"}
_ZERO = np.zeros(())
_POWERS = "use power-of-two scales (Brevitas: Int8WeightPerTensorFixedPoint, Int8ActPerTensorFixedPoint, restrict_scaling_type)"


def quantizer(node: Node, shape: Shape | None) -> Quantize:
    """A `Quant` or `FixedPoint` node. shape: of the data; None for a constant, whose k, i, f keep all their axes."""
    format, rounding, overflow = _fixed_point(node) if node.proto.op_type == "FixedPoint" else _quant(node)
    if shape is None:
        shape = np.broadcast_shapes(node.reals(0, "value").shape, *(t.shape for t in format))
    else:
        format = [t[0] if t.ndim == len(shape) + 1 and t.shape[0] == 1 else t for t in format]
    try:
        k, i, f = (np.broadcast_to(t, shape).astype(np.int64) for t in format)
    except ValueError as error:
        what, remedy = "the quantizer's format does not broadcast to its input", "give it one value or one per channel"
        raise node.refuse("PQ202", what, remedy) from error
    return Quantize(
        name=node.name, inputs=(node.inputs[0],), output=node.output, shape=shape, k=k, i=i, f=f, rounding=rounding, overflow=overflow
    )


def _quant(node: Node) -> tuple[list[Array], str, str]:
    scale, zero, bits = node.reals(1, "scale"), node.reals(2, "zero point"), node.reals(3, "bit width")
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    mantissa, exponent = np.frexp(scale)
    if not (mantissa == 0.5).all():
        raise node.refuse("PQ202", "the quantizer's scale is no power of two", _POWERS)
    if zero.any():
        raise node.refuse("PQ202", "the quantizer has a zero point", "use symmetric or unsigned quantization without zero point")
    if (bits != np.floor(bits)).any() or (bits < 1).any():
        raise node.refuse("PQ202", f"the quantizer's bit width is {bits.tolist()}", "use whole numbers of bits, at least 1")
    if (narrow and not signed) or (signed and (bits < 2).any()):
        raise node.refuse("PQ207", "a narrow unsigned or a signed one-bit Quant has no fixed-point type", "use 2 bits, or narrow=0")
    mode = str(node.attribute("rounding_mode", "ROUND")).upper()
    if mode not in _ROUNDING:
        raise node.refuse("PQ207", f"rounding mode {mode} has no ap_fixed counterpart", f"use one of {', '.join(_ROUNDING)}")
    k = np.full((), float(signed))
    f = (1 - exponent).astype(np.float64)
    return [k, bits - k - f, f], _ROUNDING[mode], "SAT_SYM" if narrow else "SAT"


def _fixed_point(node: Node) -> tuple[list[Array], str, str]:
    format = [node.reals(n, what) for n, what in ((1, "k"), (2, "i"), (3, "f"))]
    rounding = str(node.attribute("rounding", "RND"))
    return format, _ALIASES.get(rounding, rounding), str(node.attribute("overflow", "SAT"))


def _quantize(node: Node) -> list[Op]:
    made = quantizer(node, node.shape(0))
    if bool(made.zero_width.all()):
        return [affine(node, node.inputs[0], node.output, node.shape(0), _ZERO, _ZERO)]
    return [made]


def _gemm(node: Node) -> list[Op]:
    weight = node.reals(1, "weight")
    weight = weight.T if node.attribute("transB", 0) else weight
    plain = node.attribute("alpha", 1.0) == 1.0 and node.attribute("beta", 1.0) == 1.0 and not node.attribute("transA", 0)
    if not plain or len(node.shape(0)) != 1 or weight.shape[0] != node.shape(0)[0]:
        raise node.refuse("PQ202", "Gemm with alpha, beta, transA or a wrong shape", "write it as MatMul and Add")
    bias = np.broadcast_to(node.reals(2, "bias") if node.has(2) else _ZERO, (1, weight.shape[1]))[0]
    return [Dense(name=node.name, inputs=(node.inputs[0],), output=node.output, shape=(weight.shape[1],), weight=weight, bias=bias)]


_FAMILIES = (
    ELEMENT_READERS,
    WINDOW_READERS,
    TRANSPOSED_READERS,
    UPSAMPLING_READERS,
    REDUCTION_READERS,
    SHAPE_READERS,
    TABLE_READERS,
    MATRIX_READERS,
)
READERS: dict[tuple[str, str], Reader] = {
    ("qonnx", "Quant"): _quantize,
    ("qonnx", "IntQuant"): _quantize,
    ("pquant_fx.lower.qonnx_ops", "FixedPoint"): _quantize,
    ("", "Gemm"): _gemm,
    **{("", name): reader for readers in _FAMILIES for name, reader in readers.items()},
}
