"""Collects hls4ml layer dictionaries with an explicit type for everything, and keeps track of layout.

hls4ml stores images channels-last, (H, W, C). A value remembers which element of the file's layout (C, H, W) each stored
element is, so that flattening, permuting and reshaping cost nothing until a layer needs a certain order; a dense layer
takes any order by permuting its rows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pquant_fx.formats import FixedFormat
from pquant_fx.lower.hls4ml.net import Array, Ints, Op, Quantize, Shape, refusal
from pquant_fx.lower.hls4ml.ports import Port
from pquant_fx.lower.hls4ml.ranges import Range, fraction_bits

__all__ = ["COPIES", "Builder", "Plan", "Stored", "channels_last", "constant_type", "hls_type", "quantizer_type"]


COPIES = "PQuantCopies"
"""The layer of `copies`: any order of values, which is wiring in io_parallel."""


def hls_type(format: FixedFormat, rounding: str = "TRN", overflow: str = "WRAP") -> str:
    """`fixed<W,I,...>`; a format without bits is written as one unsigned bit, since HLS has no empty type."""
    if format.width == 0:
        return "ufixed<1,1,TRN,WRAP>"
    return f"{'' if format.k else 'u'}fixed<{format.width},{format.k + format.i},{rounding},{overflow}>"


def constant_type(values: Array) -> str:
    """The smallest HLS type that holds these constants.

    hls4ml has one type for a layer's weights, however many bits each of them needs. Nothing is lost by it: the values are the
    same, and in unrolled circuits synthesis sees constants, of which only the set bits cost anything.
    """
    f = fraction_bits(values)
    codes = np.ldexp(values, f)
    return hls_type(FixedFormat.for_codes(int(codes.min()), int(codes.max()), f))


def channels_last(shape: Shape) -> tuple[Shape, Ints]:
    """(stored shape, order) of a sample in hls4ml's layout: the channels, first in the file, come last."""
    axes = (*range(1, len(shape)), 0)
    order = np.arange(int(np.prod(shape))).reshape(shape).transpose(axes)
    return order.shape, order.reshape(-1)


@dataclass(frozen=True, eq=False)
class Stored:
    """A value in hls4ml: `order[n]` is the file's element (C order over `shape`) stored at place n of `layer`'s output.

    exclusive: nobody but this value reads the layer, so that a quantizer may become its result type.
    """

    layer: str
    stored: Shape
    order: Ints
    shape: Shape
    range: Range
    exclusive: bool = True


@dataclass
class Plan:
    """What hls4ml is given, and how the host talks to it. types: layer -> {result, accum, weight, bias, scale};
    sources: layer -> the ONNX node that it comes from.
    """

    layers: list[dict[str, Any]] = field(default_factory=list)
    types: dict[str, dict[str, str]] = field(default_factory=dict)
    inputs: list[tuple[str, str, Shape, Ints]] = field(default_factory=list)
    ports: dict[str, Port] = field(default_factory=dict)
    outputs: list[tuple[str, Stored]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


class Builder:
    """Adds layers to a plan. `values`: tensor -> where it is stored; `reads`: how often each tensor is read."""

    def __init__(self, reads: Mapping[str, int], io_type: str) -> None:
        self.plan = Plan()
        self.values: dict[str, Stored] = {}
        self.reads = reads
        self.stream = io_type == "io_stream"
        self._names: set[str] = set()

    def layer(
        self, op: Op, class_name: str, inputs: list[Stored], result: Range | str, /, *,
        part: str = "", types: Mapping[str, str] | None = None, **attributes: Any,
    ) -> str:  # fmt: skip
        """Append a layer named after the operation's node (and `part`); returns the name."""
        name = self._unique(op.name + part)
        given = {"inputs": [value.layer for value in inputs]} if inputs else {}
        self.plan.sources[name] = op.name
        self.plan.layers.append({"name": name, "class_name": class_name, **given, **attributes})
        self.plan.types[name] = {"result": result if isinstance(result, str) else hls_type(result.format), **(types or {})}
        return name

    def _unique(self, wanted: str) -> str:
        """A C++ identifier that differs from all others also when case is ignored."""
        base = re.sub(r"\W+", "_", wanted, flags=re.ASCII).strip("_").lower() or "layer"
        base = f"n_{base}" if base[0].isdigit() or base == "input" else base
        name = next(n for n in itertools.chain([base], (f"{base}_{i}" for i in itertools.count(2))) if n not in self._names)
        self._names.add(name)
        return name

    def put(self, op: Op, layer: str, stored: Shape, order: Ints, range: Range) -> None:
        """The output of `op` is what `layer` stores, in that order."""
        self.values[op.output] = Stored(layer, stored, order, op.shape, range)

    def alias(self, op: Op, order: Ints, range: Range) -> None:
        """The output of `op` is its input, seen differently."""
        source = self.values[op.inputs[0]]
        exclusive = source.exclusive and self.reads[op.inputs[0]] == 1
        self.values[op.output] = replace(source, order=order, shape=op.shape, range=range, exclusive=exclusive)

    def fuse(self, op: Quantize, range: Range) -> bool:
        """Make the quantizer the result type of the layer before it, if it alone reads that layer."""
        source = self.values[op.inputs[0]]
        fusible = source.exclusive and self.reads[op.inputs[0]] == 1
        if fusible:
            self.plan.types[source.layer]["result"] = quantizer_type(op)
            self.alias(op, source.order, range)
            self.values[op.output] = replace(self.values[op.output], exclusive=False)
        return fusible

    def arranged(self, op: Op, value: Stored, stored: Shape, order: Ints) -> Stored:
        """`value` in the wanted layout: as it is, reshaped, transposed when a permutation of axes does it, else copied.

        Raises LoweringError (PQ202) when io_stream can not repack it.
        """
        if (value.order == order).all():
            return value if value.stored == stored else self._reshaped(op, value, stored)
        places = np.argsort(value.order)[order]
        for shape in dict.fromkeys((value.stored, value.shape, *_splits(value.shape))):
            for axes in itertools.permutations(range(len(shape))):
                moved = np.arange(places.size).reshape(shape).transpose(axes)
                if len(axes) > 1 and (moved.reshape(-1) == places).all():
                    source = value if value.stored == shape else self._reshaped(op, value, shape)
                    name = self.layer(
                        op, "Transpose", [source], self.plan.types[source.layer]["result"], part="/transpose", perm=list(axes)
                    )
                    result = replace(value, layer=name, stored=moved.shape, order=order)
                    return result if moved.shape == stored else self._reshaped(op, result, stored)
        name = self.copied(op, value, places, stored, self.plan.types[value.layer]["result"], "/order")
        return replace(value, layer=name, stored=stored, order=order)

    def copied(self, op: Op, source: Stored, taken: Ints, stored: Shape, result: str, part: str = "") -> str:
        """A layer that stores in place n what `source` stores in taken[n], 0 where that is -1; returns its name."""
        lanes = (source.stored[-1], stored[-1]) if self.stream else None
        size = source.order.size
        return self.layer(op, COPIES, [source], result, part=part, taken=taken.tolist(), lanes=lanes, held=size, target_shape=list(stored))

    def _reshaped(self, op: Op, value: Stored, stored: Shape) -> Stored:
        if (
            self.stream
            and value.stored[-1] != stored[-1]
            and len(stored) > 1
            and (value.stored[-1] % stored[-1] and stored[-1] % value.stored[-1])
        ):
            raise refusal("PQ202", f"io_stream can not repack {value.stored} as {stored}", "use io_type='io_parallel'", op.name)
        name = self.layer(op, "Reshape", [value], self.plan.types[value.layer]["result"], part="/reshape", target_shape=list(stored))
        return replace(value, layer=name, stored=stored)

    def image(self, op: Op, value: Stored) -> Stored:
        """`value` channels-last."""
        return self.arranged(op, value, *channels_last(value.shape))


def quantizer_type(op: Quantize) -> str:
    """The HLS type of a quantizer with one format."""
    return hls_type(op.format, op.rounding, op.overflow)


def _splits(shape: Shape) -> list[Shape]:
    """A flat value as a matrix, for a transpose that undoes a flattening."""
    size = int(np.prod(shape))
    return [(n, size // n) for n in range(2, size) if size % n == 0] if size <= 4096 else []
