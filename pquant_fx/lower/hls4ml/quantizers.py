"""Quantizers as hls4ml sees them: the result type of the layer before, a cast of their own, or one cast per element."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pquant_fx.lower.hls4ml.builder import Builder, Stored, constant_type, quantizer_type
from pquant_fx.lower.hls4ml.casts import LAYER, element_casts
from pquant_fx.lower.hls4ml.net import Array, Op, Quantize, refusal
from pquant_fx.lower.hls4ml.ranges import Range, quantized_range

__all__ = ["affine_layer", "quantize"]

T = TypeVar("T", bound=np.generic)
_MODES = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF")


def quantize(builder: Builder, op: Quantize) -> None:
    """Nothing where the input lies on the grid and in range already; else fused, cast, or element by element."""
    if op.rounding not in _MODES:
        raise refusal("PQ207", f"rounding mode {op.rounding} has no ap_fixed counterpart", f"use one of {', '.join(_MODES)}", op.name)
    source = builder.values[op.inputs[0]]
    result, inside = quantized_range(op, source.range)
    rounds = _rounds(op, source.range)
    op = replace(op, rounding=op.rounding if rounds else "TRN", overflow="SAT" if inside and op.overflow == "WRAP_SM" else op.overflow)
    if inside and not rounds:
        builder.alias(op, source.order, source.range)
    elif not (result.low.any() or result.high.any()):
        affine_layer(builder, op, np.zeros(op.shape), np.zeros(op.shape), result)
    elif not op.scalar or op.overflow == "WRAP_SM":
        _per_element(builder, op, source, result)
    elif not builder.fuse(op, result):
        name = builder.layer(op, "Activation", [source], quantizer_type(op), activation="linear")
        builder.values[op.output] = Stored(name, source.stored, source.order, op.shape, result, exclusive=False)


def _rounds(op: Quantize, x: Range) -> bool:
    """Whether some element may lie off the quantizer's grid, or a dead element is not 0 already."""
    live = np.broadcast_to(~op.zero_width, op.shape)
    dead = ~live & ((x.low != 0) | (x.high != 0))
    return bool((live & (np.broadcast_to(op.f, op.shape) < x.f) & ((x.low != 0) | (x.high != 0))).any() or dead.any())


def _per_element(builder: Builder, op: Quantize, source: Stored, result: Range) -> None:
    """A cast for each element, 0 where no value but 0 can come out.

    The second part is not only cheaper: ap_fixed's rounding reads beyond the source's bits (an assertion ends the C simulation)
    when the coarser lsb lies above them, and then all its results are 0.
    """
    if op.overflow == "WRAP_SM" and op.rounding != "TRN":
        what = "AP_WRAP_SM decides by a bit that rounding may still change"
        raise refusal("PQ207", what, "use TRN with WRAP_SM, or SAT, SAT_SYM, SAT_ZERO, WRAP", op.name)
    k, i, f = (_in_stored_order(np.where(op.zero_width, 0, t), op, source) for t in (op.k, op.i, op.f))
    zero = _in_stored_order((result.low == 0) & (result.high == 0), op, source)
    reads = None
    if builder.stream:
        lanes, reads = source.stored[-1], source.order.size // source.stored[-1]
        if any((t.reshape(-1, lanes) != t[:lanes]).any() for t in (k, i, f)):
            builder.values[op.output] = replace(source, range=result)  # so that what lies behind is judged as well
            remedy = "share formats over the spatial axes (data_granularity: per_channel), or use io_type='io_parallel'"
            raise refusal("PQ205", "formats that differ between pixels: io_stream sends all pixels through one circuit", remedy, op.name)
        k, i, f, zero = k[:lanes], i[:lanes], f[:lanes], np.logical_and.reduce(zero.reshape(-1, lanes))
    casts = element_casts(k, i, f, zero, op.rounding, op.overflow)
    name = builder.layer(op, LAYER, [source], result, part="/per_element", casts=casts, reads=reads)
    builder.values[op.output] = Stored(name, source.stored, source.order, op.shape, result, exclusive=False)


def _in_stored_order(values: NDArray[T], op: Op, source: Stored) -> NDArray[T]:
    return np.broadcast_to(values, op.shape).reshape(-1)[source.order]


def affine_layer(builder: Builder, op: Op, scale: Array, bias: Array, result: Range) -> None:
    """x * scale + bias as hls4ml's BatchNormalization, whose product and sum keep all bits until the result type."""
    source = builder.values[op.inputs[0]]
    scale, bias = (_in_stored_order(t, op, source).reshape(source.stored) for t in (scale, bias))
    channels = source.stored[-1]
    rows = [t.reshape(-1, channels) for t in (scale, bias)]
    shared = len(source.stored) > 1 and all((t == t[:1]).all() for t in rows)
    scale_data, bias_data = (np.ascontiguousarray(t[0] if shared else t.reshape(-1)) for t in rows)
    name = builder.layer(
        op, "BatchNormalization", [source], result, types={"scale": constant_type(scale), "bias": constant_type(bias)},
        n_in=scale.size, n_filt=channels if shared else -1, scale_data=scale_data, bias_data=bias_data,
    )  # fmt: skip
    builder.put(op, name, source.stored, source.order, result)
