"""A frozen graph as a QCDQ file: QuantizeLinear, Clip, DequantizeLinear around standard operators, for runtimes that know nothing else.

    inputs, sums and moves by RND_CONV     QuantizeLinear -> Clip of the integers -> DequantizeLinear
    any other rounding                     Mul, Floor or Ceil, Mul in front: QuantizeLinear itself rounds half to even
    behind products with weights           Mul, Round, Mul in front, too
    weights of at most 7 bits              int8 -> DequantizeLinear, one scale an output channel
    wider weights, biases                  float32

Runtimes fuse what stands between DequantizeLinear and QuantizeLinear into integer kernels. That the bits survive it is why wide
weights are no int8 (x86 kernels without VNNI saturate sums of two 8-bit products), biases no int32 (a kernel reads them at the
product's scale, whatever their own says), and no QuantizeLinear stands right behind a layer: onnxruntime 1.31 would quantize the
layer's weights and bias by itself, and round them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch.fx import GraphModule, Node

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Quantizer, module_of, op_of
from pquant_fx.lower.extras import require
from pquant_fx.lower.fixed_point_numpy import Array
from pquant_fx.lower.onnx.emission import Emission, Layout, Target
from pquant_fx.lower.onnx.formats import QuantizerFormat, compact, format_of
from pquant_fx.lower.onnx.graph import IR_VERSION, OPSET, Dtype, Value, Version, write_model
from pquant_fx.lower.onnx.names import parameter_name
from pquant_fx.lower.onnx.plain import PLAIN_TABLE
from pquant_fx.lower.onnx.quant import data_quantizer as plain_quantizer
from pquant_fx.lower.onnx.quant import rounded

if TYPE_CHECKING:
    import onnx

__all__ = ["qcdq_emission", "to_qcdq"]

_FUSED_BITS = 7
"""Two products of 8 bits times so many stay within 16 bits."""


def to_qcdq(
    gm: GraphModule,
    path: str | os.PathLike[str] | None = None,
    *,
    batch: int | None = None,
    formats: FormatMap | None = None,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> onnx.ModelProto:
    """Write the frozen graph `gm` with a symbolic batch `N`, or a fixed one; layout as in torch. 0 differences, or refused.

    Raises LoweringError with all problems at once: PQ205 for data of more than 8 bits (16 from opset 21 on) or of several widths,
    PQ207 for overflow other than SAT and SAT_SYM, and whatever `to_onnx` finds; ConfigError (PQ407); OutputError (PQ505);
    ExtraMissingError (PQ503) without the package onnx.
    """
    return write_model(qcdq_emission(gm, batch, formats, Version(opset, ir_version)).run(), path)


def qcdq_emission(gm: GraphModule, batch: int | None = None, formats: FormatMap | None = None, version: Version | None = None) -> Emission:
    """The export behind `to_qcdq`, not yet run."""
    require("onnx")
    target = Target("QCDQ", PLAIN_TABLE, _data_quantizer, _parameter, doubles=True)
    return Emission(gm, target, batch, formats, version)


def _data_quantizer(e: Emission, node: Node, quantizer: Quantizer, x: Value) -> Value:
    spec = format_of(quantizer)
    if spec.zero.all():
        return plain_quantizer(e, node, quantizer, x)
    facts = e.formats.facts.get(node)
    explicit = _behind_weights(node) or ((facts is None or not facts.never_rounds) and spec.rounding != "RND_CONV")
    if facts is not None and facts.never_overflows and spec.overflow not in ("SAT", "SAT_SYM"):
        spec = replace(spec, overflow="SAT")
    axis, scale = _scale(spec.f)
    if not _accepted(e, node, spec, axis):
        return x
    width, signed = int(spec.width.max()), bool(spec.k.max())
    dtype: Dtype = ("int8" if signed else "uint8") if width <= 8 else "int16" if signed else "uint16"
    if explicit or x.dtype == "float64":
        x = e.cast(rounded(e, node, spec, x), "float32")
    x = e.cast(x, "float32")
    full = 8 if width <= 8 else 16
    narrow = width < full or (spec.overflow == "SAT_SYM" and signed)
    if narrow and full == 16:  # onnxruntime has no Clip of 16-bit integers; the bounds lie on the grid, so the order does not matter
        low, high = (e.constant(node, what, compact(limit * np.exp2(-spec.f))) for what, limit in (("low", spec.low), ("high", spec.high)))
        x = e.step(node, "clip", "Min", [e.step(node, "above", "Max", [x, low], e.shape(node)), high], e.shape(node))
    parts = [e.constant(node, "scale", scale), e.constant(node, "zero", np.zeros_like(scale), dtype)]
    given: dict[str, Any] = {"axis": axis} if scale.ndim else {}
    codes = _made(e, node, "codes", "QuantizeLinear", [x, *parts], dtype, **given)
    if narrow and full == 8:
        limits = [e.constant(node, what, limit.max(), dtype) for what, limit in (("low", spec.low), ("high", spec.high))]
        codes = _made(e, node, "clip", "Clip", [codes, *limits], dtype)
    return e.final(node, "DequantizeLinear", [codes, *parts], **given)


def _behind_weights(node: Node) -> bool:
    """Whether what is quantized comes from a product with weights, through operators that a runtime fuses with it."""
    source = node.all_input_nodes[0]
    op = op_of(source)
    while op is not None and op.kind in ("activation", "grid", "pool") and source.all_input_nodes:
        source = source.all_input_nodes[0]
        op = op_of(source)
    return op is not None and (op.kind == "weighted" or op.name == "matmul")


def _accepted(e: Emission, node: Node, spec: QuantizerFormat, axis: int | None) -> bool:
    """Whether the quantizer is one QuantizeLinear; says why where it is not."""
    width = int(spec.width.max())
    most = 16 if e.graph.version.opset >= 21 else 8
    before = len(e.problems)
    if len(np.unique(spec.width)) > 1 or len(np.unique(spec.k)) > 1:
        e.refuse(node, "PQ205", "its elements have several widths or signs, a QuantizeLinear has one", "give it one width, or use to_onnx")
    elif width > most:
        remedy = "use at most 8 bits, or opset=21 for 16" if width <= 16 else "use at most 16 bits and opset=21, or to_onnx"
        e.refuse(node, "PQ205", f"it has {width} bits, a QuantizeLinear of opset {e.graph.version.opset} has at most {most}", remedy)
    elif axis is None:
        e.refuse(node, "PQ205", "its scale varies over several axes, that of a QuantizeLinear over one", "use per_channel, or to_onnx")
    if spec.overflow not in ("SAT", "SAT_SYM"):
        what = f"overflow mode {spec.overflow} may take effect here and a QuantizeLinear saturates"
        e.refuse(node, "PQ207", what, "use SAT or SAT_SYM, or to_onnx")
    return len(e.problems) == before


def _scale(f: Array) -> tuple[int | None, npt.NDArray[np.float64]]:
    """(axis, scale): a number, or one entry for each position on the only axis along which it varies; axis None for several."""
    scale = compact(np.exp2(-f))
    if scale.ndim == 0:
        return 0, scale
    axes = [n for n, size in enumerate(scale.shape) if size > 1]
    return (axes[0], scale.reshape(-1)) if len(axes) == 1 else (None, scale)


def _parameter(e: Emission, node: Node, layout: Layout) -> Value:
    values = e.formats.constants[node].detach().cpu().double().numpy()
    suffix, axis = (".T", values.ndim - 1) if layout == "transposed" else ("", 0)
    values = values.T if suffix else values
    name = f"{parameter_name(node)}{suffix}"
    interval = e.formats.intervals.get(node)
    coded = _codes(values, axis) if isinstance(module_of(e.gm, node), Quantizer) and values.ndim > 1 and interval is not None else None
    if coded is None:
        exact = bool((values.astype(np.float32) == values).all())
        return e.graph.constant(name, values, "float32" if exact else "float64")
    codes, scale = coded
    held = e.graph.constant(name, codes, "int8")
    output = Value(e.graph.unique(e.name(node)), held.shape)
    return e.graph.node("DequantizeLinear", [held, e.graph.constant(f"{name}.scale", scale)], output, attributes={"axis": axis})


def _codes(values: Array, axis: int) -> tuple[Array, Array] | None:
    """(codes, scales): a power of two for each position on `axis`, as coarse as its values allow; None beyond 7 bits."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    mantissa, exponent = np.frexp(rows)
    whole = np.ldexp(mantissa, 24)
    lowest = np.where(
        whole != 0, exponent - 24 + np.log2(np.maximum(np.bitwise_and(whole.astype(np.int64), -whole.astype(np.int64)), 1)), np.inf
    )
    finest = lowest.min(axis=1)
    finest = np.where(np.isfinite(finest), finest, 0.0)
    shape = [1] * values.ndim
    shape[axis] = -1
    codes = values / np.exp2(finest).reshape(shape)
    if (codes != np.round(codes)).any() or np.abs(codes + 0.5).max(initial=0) > 2 ** (_FUSED_BITS - 1):
        return None
    return codes, np.exp2(finest)


def _made(e: Emission, node: Node, what: str, operator: str, inputs: list[Value], dtype: Dtype, **attributes: Any) -> Value:
    output = Value(e.graph.unique(f"{e.name(node)}/{what}"), e.shape(node), dtype)
    return e.graph.node(operator, inputs, output, attributes=attributes)
