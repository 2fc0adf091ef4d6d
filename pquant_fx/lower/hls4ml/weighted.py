"""Dense layers, convolutions and pools as hls4ml layer dictionaries, with exact accumulator types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pquant_fx.lower.hls4ml.builder import Builder, Stored, channels_last, constant_type, hls_type
from pquant_fx.lower.hls4ml.net import Array, Conv, Dense, Op, Pool, Shape, refusal
from pquant_fx.lower.hls4ml.ranges import Range, conv_range, dense_range, mean_range, window_maximum

__all__ = ["conv", "dense", "pool"]


def dense(builder: Builder, op: Dense) -> None:
    """x @ weight + bias; on more than one axis it is a convolution with a window of one."""
    source = builder.values[op.inputs[0]]
    result = dense_range(op, source.range, op.weight, op.bias)
    types, (count, out) = _types(op.weight, op.bias, result), op.weight.shape
    if len(source.shape) == 1:
        flat = source if source.stored == (count,) else builder.arranged(op, source, (count,), source.order)
        name = builder.layer(
            op, "Dense", [flat], result, types=types,
            weight_data=op.weight[source.order], bias_data=op.bias, use_bias=True, n_in=count, n_out=out,
        )  # fmt: skip
        builder.put(op, name, (out,), np.arange(out), result)
        return
    half = len(source.shape) - 1
    if half > 2:
        raise refusal("PQ202", f"a linear layer on the shape {source.shape}", "flatten its leading axes", op.name)
    rows = builder.arranged(op, source, source.shape, np.arange(source.order.size))
    kernel = op.weight.reshape((1,) * half + op.weight.shape)
    window = {"bias": op.bias, "strides": (1,) * half, "pads": (0,) * 2 * half, "out": op.shape[:-1]}
    name = _convolution(builder, op, rows, result, kernel, types, **window)
    builder.put(op, name, op.shape, np.arange(int(np.prod(op.shape))), result)


def conv(builder: Builder, op: Conv) -> None:
    """A convolution, channels last."""
    source = builder.image(op, builder.values[op.inputs[0]])
    result = conv_range(op, source.range)
    kernel = np.moveaxis(op.weight, (0, 1), (-1, -2))
    stored, order = channels_last(op.shape)
    window = {"bias": op.bias, "strides": op.strides, "pads": op.pads, "out": stored[:-1]}
    name = _convolution(builder, op, source, result, kernel, _types(op.weight, op.bias, result), **window)
    builder.put(op, name, stored, order, result)


def _types(weight: Array, bias: Array, result: Range) -> dict[str, str]:
    """The sum wraps until the last addend, so the accumulator needs the bits of the final value only (modular arithmetic)."""
    return {"weight": constant_type(weight), "bias": constant_type(bias), "accum": hls_type(result.format)}


def _convolution(builder: Builder, op: Op, source: Stored, result: Range, kernel: Array, types: Mapping[str, str], **window: Any) -> str:
    """Conv1D or Conv2D on a channels-last value; kernel (*window, C, O)."""
    sizes = _spatial(source.stored[:-1], window["out"], window["pads"], "filt", kernel.shape[:-2], window["strides"])
    return builder.layer(
        op, f"Conv{kernel.ndim - 2}D", [source], result, types=types,
        data_format="channels_last", weight_data=np.ascontiguousarray(kernel), bias_data=window["bias"], use_bias=True,
        n_chan=kernel.shape[-2], n_filt=kernel.shape[-1], **sizes,
    )  # fmt: skip


def _spatial(before: Shape, after: Shape, pads: Shape, window: str, kernel: Shape, strides: Shape) -> dict[str, Any]:
    """hls4ml's names for the sizes of a window layer, in one or two dimensions."""
    axes = ("width",) if len(before) == 1 else ("height", "width")
    sides = ("left", "right") if len(before) == 1 else ("top", "left", "bottom", "right")
    made: dict[str, Any] = {f"pad_{side}": pad for side, pad in zip(sides, pads, strict=True)}
    for what, sizes in (("in", before), ("out", after), (window, kernel), ("stride", strides)):
        made |= {f"{what}_{axis}": size for axis, size in zip(axes, sizes, strict=True)}
    return made


def pool(builder: Builder, op: Pool) -> None:
    """Maximum: the type of the input. Mean over 2^m elements: the accumulator holds the sum and m more fraction bits."""
    source = builder.image(op, builder.values[op.inputs[0]])
    if op.mode == "Average":
        total, result = mean_range(op, source.range)
        accumulator = replace(total.format, f=result.f)
    else:
        result = Range(source.range.f, window_maximum(op, source.range.low), window_maximum(op, source.range.high))
        accumulator = source.range.format
        if any(op.pads) and not builder.plan.types[source.layer]["result"].startswith("fixed"):
            raise refusal("PQ202", "MaxPool with padding of a value that hls4ml stores unsigned", "pad with zeros before it", op.name)
    stored, order = channels_last(op.shape)
    sizes = _spatial(source.stored[:-1], stored[:-1], op.pads, "pool", op.kernel, op.strides)
    sizes |= {"n_in": source.stored[0], "n_out": stored[0]} if len(op.kernel) == 1 else {}
    name = builder.layer(
        op, f"{op.mode}Pooling{len(op.kernel)}D", [source], result, types={"accum": hls_type(accumulator)},
        data_format="channels_last", n_filt=op.shape[0], count_pad=True, **sizes,
    )  # fmt: skip
    builder.put(op, name, stored, order, result)
