"""Operation -> hls4ml layer dictionary, one function per operation, all types exact (Vivado/Vitis HLS `ap_fixed`, AMD UG1399)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pquant_fx.errors import LoweringError, Place, Problem
from pquant_fx.lower.hls4ml.builder import Builder, Plan, Stored, channels_last, hls_type
from pquant_fx.lower.hls4ml.copies import copy
from pquant_fx.lower.hls4ml.embedding import embed
from pquant_fx.lower.hls4ml.matrices import matmul
from pquant_fx.lower.hls4ml.net import (
    Affine,
    Concat,
    Conv,
    Copy,
    Dense,
    Embed,
    Input,
    Lookup,
    MatMul,
    Merge,
    Net,
    Op,
    Pool,
    Quantize,
    Relu,
    Shape,
    Truncate,
    Upsample,
    View,
    refusal,
    uses,
)
from pquant_fx.lower.hls4ml.ports import port_of, quantizer_port
from pquant_fx.lower.hls4ml.quantizers import affine_layer, quantize
from pquant_fx.lower.hls4ml.ranges import Range, affine_range
from pquant_fx.lower.hls4ml.tables import lookup, truncate
from pquant_fx.lower.hls4ml.upsampling import upsample
from pquant_fx.lower.hls4ml.weighted import conv, dense, pool

__all__ = ["plan_layers"]

_STREAM_COPIES = 7  # of one stream, the most that hls4ml's clone_stream writes


def plan_layers(net: Net, io_type: str) -> tuple[Plan, list[Problem]]:
    """Every operation as layers; nodes behind a problem are left out."""
    builder = Builder(uses(net), io_type)
    problems: list[Problem] = []
    for op in net:
        if not all(tensor in builder.values for tensor in op.inputs):
            continue
        try:
            if isinstance(op, Input):
                _input(builder, op, net)
            else:
                _EMITTERS[type(op)](builder, op)
        except LoweringError as error:
            problems += error.problems
    for name, tensor in net.outputs:
        if tensor in builder.values:
            builder.plan.outputs.append((name, _output(builder, name, builder.values[tensor])))
    return builder.plan, problems + (_fan_out(builder.plan) if builder.stream else [])


def _fan_out(plan: Plan) -> list[Problem]:
    """A stream can be read once, so hls4ml copies it for its readers, and only so often."""
    readers = [name for layer in plan.layers for name in layer.get("inputs", ())]
    readers += dict.fromkeys(output.layer for _, output in plan.outputs)
    many = [name for name, count in Counter(readers).items() if count > _STREAM_COPIES]
    what = f"the value feeds more than {_STREAM_COPIES} streams"
    return [Problem("PQ202", what, "use io_type='io_parallel'", Place(node=name)) for name in many]


def _input(builder: Builder, op: Input, net: Net) -> None:
    stored, order = channels_last(op.shape)
    readers = [reader for reader in net if op.output in reader.inputs]
    alone = readers[0] if len(readers) == 1 and builder.reads[op.output] == 1 else None
    plain = isinstance(alone, Quantize) and alone.scalar and not alone.zero_width.any() and alone.overflow != "WRAP_SM"
    port = quantizer_port(alone) if isinstance(alone, Quantize) and plain else port_of(net, op)
    rounding, overflow = ("RND" if port.rounding == "ODD" else port.rounding), port.overflow
    name = builder.layer(op, "InputLayer", [], hls_type(port.format, rounding, overflow), part="_in", input_shape=list(stored))
    builder.plan.inputs.append((op.name, name, op.shape, order))
    builder.plan.ports[name] = port
    builder.put(op, name, stored, order, port.range(op.shape))


def _output(builder: Builder, name: str, value: Stored) -> Stored:
    """A graph output needs a layer of its own; a port or a value with per-element formats gets a copy."""
    if not any(value.layer == layer for _, layer, _, _ in builder.plan.inputs):
        return value
    op = Relu(name=name, inputs=(), output=name, shape=value.shape)
    copy = builder.layer(op, "Activation", [value], _distinct(builder, value), part="_copy", activation="linear")
    return replace(value, layer=copy)


def _distinct(builder: Builder, value: Stored) -> str:
    """A type that holds the value and differs from its port's, so that hls4ml keeps the copy."""
    wider = value.range.format
    made = hls_type(wider)
    return made if made != builder.plan.types[value.layer]["result"] else hls_type(replace(wider, i=wider.i + 1))


def _affine(builder: Builder, op: Affine) -> None:
    source = builder.values[op.inputs[0]]
    result = affine_range(op, source.range, op.scale, op.bias)
    if (op.scale == 1).all() and (op.bias == 0).all():
        builder.alias(op, source.order, source.range)
    else:
        affine_layer(builder, op, op.scale, op.bias, result)


def _relu(builder: Builder, op: Relu) -> None:
    source = builder.values[op.inputs[0]]
    result = Range(source.range.f, np.maximum(source.range.low, 0), np.maximum(source.range.high, 0))
    name = builder.layer(op, "Activation", [source], result, activation="relu")
    builder.put(op, name, source.stored, source.order, result)


def _merge(builder: Builder, op: Merge) -> None:
    first, second = (builder.values[tensor] for tensor in op.inputs)
    second = builder.arranged(op, second, first.stored, first.order)
    f = max(first.range.f, second.range.f)
    a, b = first.range.at(f), second.range.at(f)
    match op.operation:
        case "add":
            result = Range(f, a.low + b.low, a.high + b.high)
        case "subtract":
            result = Range(f, a.low - b.high, a.high - b.low)
        case "maximum":
            result = Range(f, np.maximum(a.low, b.low), np.maximum(a.high, b.high))
        case "minimum":
            result = Range(f, np.minimum(a.low, b.low), np.minimum(a.high, b.high))
        case "multiply":
            x, y = first.range, second.range
            ends = [u * v for u in (x.low, x.high) for v in (y.low, y.high)]
            result = Range(x.f + y.f, np.minimum.reduce(ends), np.maximum.reduce(ends))
    name = builder.layer(op, "Merge", [first, second], result.checked(op), op=op.operation)
    builder.put(op, name, first.stored, first.order, result)


def _concat(builder: Builder, op: Concat) -> None:
    values = [builder.values[tensor] for tensor in op.inputs]
    stored: Shape
    if len(op.shape) == 1:
        values = [v if len(v.stored) == 1 else _flat(builder, op, v) for v in values]
        stored, order = op.shape, np.concatenate([values[0].order, values[1].order + values[0].order.size])
    else:
        values = [builder.image(op, value) for value in values]
        stored, order = channels_last(op.shape)
    f = max(value.range.f for value in values)
    low, high = (np.concatenate([getattr(v.range.at(f), end) for v in values], axis=op.axis) for end in ("low", "high"))
    axis = -1 if op.axis == 0 else op.axis
    name = builder.layer(op, "Concatenate", values, Range(f, low, high), op=f"concatenate{len(stored)}d", axis=axis)
    builder.put(op, name, stored, order, Range(f, low, high))


def _flat(builder: Builder, op: Op, value: Stored) -> Stored:
    """An image as a vector. A stream delivers it pixel by pixel, which only dense layers accept."""
    if builder.stream and value.stored[-1] != value.order.size:
        raise refusal("PQ202", "a flattened image joins other values in io_stream", "join before flattening, or use io_parallel", op.name)
    return builder.arranged(op, value, (value.order.size,), value.order)


def _view(builder: Builder, op: View) -> None:
    source = builder.values[op.inputs[0]]
    order = np.argsort(op.index)[source.order]
    low, high = (bound.reshape(-1)[op.index].reshape(op.shape) for bound in (source.range.low, source.range.high))
    builder.alias(op, order, Range(source.range.f, low, high))


_EMITTERS: dict[type[Op], Callable[[Builder, Any], None]] = {
    Quantize: quantize,
    Dense: dense,
    Embed: embed,
    Upsample: upsample,
    Conv: conv,
    Copy: copy,
    MatMul: matmul,
    Pool: pool,
    Affine: _affine,
    Relu: _relu,
    Lookup: lookup,
    Truncate: truncate,
    Merge: _merge,
    Concat: _concat,
    View: _view,
}
