"""Dense layers, convolutions and pools as hls4ml layer dictionaries, with exact accumulator types."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pquant_fx.lower.hls4ml_builder import Builder, Stored, channels_last, constant_type, hls_type
from pquant_fx.lower.hls4ml_net import Array, Conv, Dense, Op, Pool, refusal
from pquant_fx.lower.hls4ml_ranges import Range, conv_range, dense_range, mean_range, window_maximum

__all__ = ["conv", "dense", "pool"]


def _constants(weight: Array, bias: Array) -> dict[str, str]:
    return {"weight": constant_type(weight), "bias": constant_type(bias)}


def dense(builder: Builder, op: Dense) -> None:
    source = builder.values[op.inputs[0]]
    result = dense_range(op, source.range, op.weight, op.bias)
    types = {**_constants(op.weight, op.bias), "accum": hls_type(result.format)}
    count, out = op.weight.shape
    if len(source.shape) == 1:
        flat = source if source.stored == (count,) else builder.arranged(op, source, (count,), source.order)
        name = builder.layer(op, "Dense", [flat], result, types=types, weight_data=op.weight[source.order], bias_data=op.bias,
                             use_bias=True, n_in=count, n_out=out)  # fmt: skip
        builder.put(op, name, (out,), np.arange(out), result)
        return
    if len(source.shape) > 3:
        raise refusal("PQ202", f"a linear layer on the shape {source.shape}", "flatten its leading axes", op.name)
    rows = builder.arranged(op, source, source.shape, np.arange(source.order.size))
    kernel = op.weight.reshape((1,) * (len(op.shape) - 1) + op.weight.shape)
    name = _convolution(
        builder, op, rows, result, kernel, op.bias, (1,) * (len(op.shape) - 1), (0,) * 2 * (len(op.shape) - 1), op.shape, types
    )
    builder.put(op, name, op.shape, np.arange(int(np.prod(op.shape))), result)


def conv(builder: Builder, op: Conv) -> None:
    source = builder.image(op, builder.values[op.inputs[0]])
    result = conv_range(op, source.range)
    types = {**_constants(op.weight, op.bias), "accum": hls_type(result.format)}
    kernel = np.moveaxis(op.weight, (0, 1), (-1, -2))
    stored, order = channels_last(op.shape)
    name = _convolution(builder, op, source, result, kernel, op.bias, op.strides, op.pads, stored, types)
    builder.put(op, name, stored, order, result)


def _convolution(
    builder: Builder, op: Op, source: Stored, result: Range, kernel: Array, bias: Array,
    strides: tuple[int, ...], pads: tuple[int, ...], out: tuple[int, ...], types: dict[str, str],
) -> str:  # fmt: skip
    """Conv1D or Conv2D on a channels-last value; kernel (*window, C, O)."""
    half = len(strides)
    return builder.layer(
        op, f"Conv{half}D", [source], result, types=types, data_format="channels_last", weight_data=np.ascontiguousarray(kernel), bias_data=bias,
        use_bias=True, n_chan=kernel.shape[-2], n_filt=kernel.shape[-1], **_spatial(source.stored[:-1], out[:-1], pads),
        **dict(zip(_NAMES["filt"][half], kernel.shape[:half], strict=True)), **dict(zip(_NAMES["stride"][half], strides, strict=True)),
    )  # fmt: skip


_NAMES: dict[str, dict[int, tuple[str, ...]]] = {
    what: {1: (f"{what}_width",), 2: (f"{what}_height", f"{what}_width")} for what in ("in", "out", "filt", "stride", "pool")
}


def _spatial(before: tuple[int, ...], after: tuple[int, ...], pads: tuple[int, ...]) -> dict[str, int]:
    half = len(before)
    sides = {1: ("pad_left", "pad_right"), 2: ("pad_top", "pad_left", "pad_bottom", "pad_right")}[half]
    made = {**dict(zip(_NAMES["in"][half], before, strict=True)), **dict(zip(_NAMES["out"][half], after, strict=True))}
    return {**made, **dict(zip(sides, pads, strict=True))}


def pool(builder: Builder, op: Pool) -> None:
    source = builder.image(op, builder.values[op.inputs[0]])
    if op.mode == "Average":
        total, result = mean_range(op, source.range)
        accumulator = replace(total.format, f=result.f)
    else:
        result = Range(source.range.f, window_maximum(op, source.range.low), window_maximum(op, source.range.high))
        accumulator = source.range.format
        if any(op.pads) and not builder.plan.types[source.layer]["result"].startswith("fixed"):
            raise refusal("PQ202", "MaxPool with padding of a value that hls4ml stores unsigned", "pad with zeros before it", op.name)
    half, (stored, order) = len(op.kernel), channels_last(op.shape)
    sizes = {"n_in": source.stored[0], "n_out": stored[0]} if half == 1 else {}
    name = builder.layer(
        op, f"{op.mode}Pooling{half}D", [source], result, types={"accum": hls_type(accumulator)}, data_format="channels_last",
        n_filt=op.shape[0], count_pad=True, **sizes, **_spatial(source.stored[:-1], stored[:-1], op.pads),
        **dict(zip(_NAMES["pool"][half], op.kernel, strict=True)), **dict(zip(_NAMES["stride"][half], op.strides, strict=True)),
    )  # fmt: skip
    builder.put(op, name, stored, order, result)
