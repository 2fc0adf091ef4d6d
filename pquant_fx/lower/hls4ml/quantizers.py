"""Quantizers as hls4ml sees them: the result type of the layer before, a cast of their own, or one cast per element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pquant_fx.formats import FixedFormat
from pquant_fx.lower.hls4ml.builder import Builder, Stored, constant_type, hls_type, quantizer_type
from pquant_fx.lower.hls4ml.net import Array, Op, Quantize, refusal
from pquant_fx.lower.hls4ml.ranges import Range, affine_range, quantized_range

__all__ = ["affine_layer", "quantize"]

_MODES = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF")


def quantize(builder: Builder, op: Quantize) -> None:
    """Nothing where the input lies on the grid and in range already; else fused, cast, or element by element."""
    if op.rounding not in _MODES:
        raise refusal("PQ207", f"rounding mode {op.rounding} has no ap_fixed counterpart", f"use one of {', '.join(_MODES)}", op.name)
    source = builder.values[op.inputs[0]]
    result, inside = quantized_range(op, source.range)
    if op.overflow == "WRAP_SM" and not inside:
        raise refusal("PQ207", "hls4ml does not know the overflow mode WRAP_SM", "use SAT, SAT_SYM, SAT_ZERO or WRAP", op.name)
    op = replace(op, overflow="SAT") if op.overflow == "WRAP_SM" else op
    if inside and not _rounds(op, source.range):
        builder.alias(op, source.order, source.range)
    elif op.zero_width.all():
        affine_layer(builder, op, np.zeros(op.shape), np.zeros(op.shape), result)
    elif op.scalar:
        if not builder.fuse(op, result):
            name = builder.layer(op, "Activation", [source], quantizer_type(op), activation="linear")
            builder.values[op.output] = Stored(name, source.stored, source.order, op.shape, result, exclusive=False)
    else:
        _per_element(builder, op, source, result)


def _rounds(op: Quantize, x: Range) -> bool:
    """Whether some element may lie off the quantizer's grid, or a dead element is not 0 already."""
    live = np.broadcast_to(~op.zero_width, op.shape)
    dead = ~live & ((x.low != 0) | (x.high != 0))
    return bool((live & (np.broadcast_to(op.f, op.shape) < x.f) & ((x.low != 0) | (x.high != 0))).any() or dead.any())


def _per_element(builder: Builder, op: Quantize, source: Stored, result: Range) -> None:
    """hls4ml's FixedPointQuantizer: one cast per element, io_parallel only. A stream has one type, so it takes equal widths only."""
    if builder.stream:
        if (op.k == op.k.flat[0]).all() and (op.i + op.f == (op.i + op.f).flat[0]).all() and not op.zero_width.any():
            _scaled(builder, op, source, result)
            return
        remedy = "use one format per tensor (granularity per_tensor), or io_type='io_parallel'"
        raise refusal("PQ205", "a quantizer with several formats; io_stream has one type per stream", remedy, op.name)
    k, i, f = (np.broadcast_to(t, op.shape).reshape(-1)[source.order].reshape(1, *source.stored) for t in (op.k, op.i, op.f))
    empty = np.broadcast_to(op.zero_width, op.shape).reshape(-1)[source.order].reshape(1, *source.stored)
    mask = tuple(np.where(empty, 0, t).astype(np.int16) for t in (k, k + i + f, k + i))
    widest = FixedFormat(int(mask[0].max()), int(np.where(empty, -99, i).max()), int(np.where(empty, -99, f).max()))
    name = builder.layer(
        op, "FixedPointQuantizer", [source], hls_type(widest), part="/per_element",
        mask_kbi=mask, RND=op.rounding, SAT=op.overflow, fusible=None, overrides={},
    )  # fmt: skip
    builder.values[op.output] = Stored(name, source.stored, source.order, op.shape, result, exclusive=False)


def _scaled(builder: Builder, op: Quantize, source: Stored, result: Range) -> None:
    """Equal widths: x * 2^f is quantized to integers of that width, then the binary points move back. Powers of two cost no logic."""
    up, down = np.ldexp(1.0, op.f), np.ldexp(1.0, -op.f)
    none = np.zeros(op.shape)
    codes = Quantize(
        name=op.name, inputs=op.inputs, output=f"{op.output}/codes", shape=op.shape,
        k=op.k, i=op.i + op.f, f=np.zeros_like(op.f), rounding=op.rounding, overflow=op.overflow,
    )  # fmt: skip
    scaled = affine_range(op, source.range, up, none)
    affine_layer(builder, codes, up, none, scaled)
    layer = builder.values[codes.output].layer
    builder.plan.types[layer]["result"] = quantizer_type(codes)
    builder.values[op.inputs[0] + "/codes"] = replace(builder.values.pop(codes.output), range=quantized_range(codes, scaled)[0])
    back = replace(op, inputs=(op.inputs[0] + "/codes",), name=f"{op.name}/back")
    affine_layer(builder, back, down, none, result)


def affine_layer(builder: Builder, op: Op, scale: Array, bias: Array, result: Range) -> None:
    """x * scale + bias as hls4ml's BatchNormalization, whose product and sum keep all bits until the result type."""
    source = builder.values[op.inputs[0]]
    scale, bias = (np.broadcast_to(t, op.shape).reshape(-1)[source.order].reshape(source.stored) for t in (scale, bias))
    channels = source.stored[-1]
    rows = [t.reshape(-1, channels) for t in (scale, bias)]
    shared = len(source.stored) > 1 and all((t == t[:1]).all() for t in rows)
    scale_data, bias_data = (np.ascontiguousarray(t[0] if shared else t.reshape(-1)) for t in rows)
    name = builder.layer(
        op, "BatchNormalization", [source], result, types={"scale": constant_type(scale), "bias": constant_type(bias)},
        n_in=scale.size, n_filt=channels if shared else -1, scale_data=scale_data, bias_data=bias_data,
    )  # fmt: skip
    builder.put(op, name, source.stored, source.order, result)
