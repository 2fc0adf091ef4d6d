"""Nearest upsampling and transposed convolutions, which hls4ml lacks or has for streams only."""

from __future__ import annotations

import numpy as np

from pquant_fx.graph.interval_arrays import upsample as repeated
from pquant_fx.lower.hls4ml.builder import Builder, Stored, channels_last
from pquant_fx.lower.hls4ml.net import Op, Upsample
from pquant_fx.lower.hls4ml.ranges import Range
from pquant_fx.lower.hls4ml.read import Node, Reader

__all__ = ["UPSAMPLING_READERS", "upsample"]


def _resize(node: Node) -> list[Op]:
    """Resize (ONNX 11 on) with whole scales; the first two are the batch and the channels."""
    shape = node.shape(0)
    given = {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
    mode, coordinates, nearest = (node.attribute(name, default) for name, default in given.items())
    plain = mode == "nearest" and coordinates == "asymmetric" and nearest == "floor" and node.has(2) and not node.has(3)
    scales = node.reals(2, "scales") if plain else np.zeros(0)
    whole = plain and len(scales) == len(shape) + 1 and (scales[:2] == 1).all() and (scales == np.floor(scales)).all() and scales.min() >= 1
    if not whole or len(shape) not in (2, 3):
        remedy = "use mode nearest, asymmetric, floor, with whole scales of one or two spatial axes"
        raise node.refuse("PQ202", f"Resize of {shape} by {mode} ({coordinates}, {nearest}) with scales {scales.tolist()}", remedy)
    factors = tuple(int(s) for s in scales[2:])
    out = (shape[0], *(size * factor for size, factor in zip(shape[1:], factors, strict=True)))
    return [Upsample(name=node.name, inputs=(node.inputs[0],), output=node.output, shape=out, factors=factors)]


UPSAMPLING_READERS: dict[str, Reader] = {"Resize": _resize}


def upsample(builder: Builder, op: Upsample) -> None:
    """In a stream: hls4ml's Resize, which holds one row of pixels. Its output has the type of its input, so that no quantizer may
    become its result type."""
    source = builder.image(op, builder.values[op.inputs[0]])
    stored, order = channels_last(op.shape)
    (height, width), (more, wider) = (((1,) * (2 - len(sizes)) + tuple(sizes)) for sizes in (source.stored[:-1], stored[:-1]))
    name = builder.layer(
        op, "Resize", [source], builder.plan.types[source.layer]["result"],
        algorithm="nearest", align_corners=False, data_format="channels_last",
        in_height=height, in_width=width, out_height=more, out_width=wider, n_chan=op.shape[0],
    )  # fmt: skip
    low, high = (repeated(bound, op.factors) for bound in (source.range.low, source.range.high))
    builder.values[op.output] = Stored(name, stored, order, op.shape, Range(source.range.f, low, high), exclusive=False)
