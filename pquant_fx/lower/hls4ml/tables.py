"""Tables: `Gather(entries, Cast(x * scale - first))` of the file becomes hls4ml's `UnaryLUT`, which is indexed by the bits of x."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pquant_fx.formats import FixedFormat
from pquant_fx.lower.hls4ml.builder import Builder, Stored, constant_type, hls_type
from pquant_fx.lower.hls4ml.net import Affine, Array, Embed, Lookup, Op, Truncate, refusal
from pquant_fx.lower.hls4ml.ranges import Range, fraction_bits
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.shapes import view

__all__ = ["TABLE_READERS", "joined_index", "lookup", "truncate"]

_WIDEST = 16
_REALS, _INTEGERS = (1, 11), (6, 7)  # TensorProto: FLOAT, DOUBLE; INT32, INT64


def _cast(node: Node) -> list[Op]:
    to, shape = int(node.attribute("to", 0)), node.shape(0)
    if to in _REALS:
        return [view(node, node.inputs[0], shape, np.arange(int(np.prod(shape))), shape)]
    if to not in _INTEGERS:
        raise node.refuse("PQ202", f"Cast to the element type {to}", "cast to float, or to int64 for the index of a Gather")
    return [Truncate(name=node.name, inputs=(node.inputs[0],), output=node.output, shape=shape)]


def _gather(node: Node) -> list[Op]:
    if node.is_constant(1):
        raise node.refuse("PQ202", "Gather with constant indices", "use Slice, or a permutation by Transpose and Reshape")
    entries = node.reals(0, "table")
    if entries.ndim == 2 and int(node.attribute("axis", 0)) == 0 and entries.size:
        shape = (*node.shape(1), entries.shape[1])
        return [Embed(name=node.name, inputs=(node.inputs[1],), output=node.output, shape=shape, table=entries)]
    if entries.ndim != 1 or int(node.attribute("axis", 0)) != 0 or not entries.size:
        raise node.refuse("PQ202", f"Gather from a table of shape {entries.shape}", "gather from one row of numbers")
    return [Lookup(name=node.name, inputs=(node.inputs[1],), output=node.output, shape=node.shape(1), entries=entries)]


TABLE_READERS: dict[str, Reader] = {"Cast": _cast, "Gather": _gather}


def joined_index(op: Op, single: dict[str, Op]) -> Op:
    """What computes the index goes into the table: it costs nothing where the bits of x are the index."""
    if isinstance(op, Embed) and isinstance(source := single.get(op.inputs[0]), Truncate):
        return replace(op, inputs=source.inputs)
    while isinstance(op, Lookup):
        source = single.get(op.inputs[0])
        if isinstance(source, Truncate) and op.scale == 1 and op.offset == 0:
            op = replace(op, inputs=source.inputs)
        elif isinstance(source, Affine) and _is_one_shift(source):
            scale, bias = float(source.scale.flat[0]), float(source.bias.flat[0])
            op = replace(op, inputs=source.inputs, scale=op.scale * scale, offset=op.offset + op.scale * bias)
        else:
            return op
    return op


def _is_one_shift(affine: Affine) -> bool:
    """A power of two and a whole number, the same for all elements: then nothing rounds when two of them are joined."""
    scale, bias = affine.scale.flat[0], affine.bias.flat[0]
    return bool((affine.scale == scale).all() and (affine.bias == bias).all() and np.frexp(abs(scale))[0] == 0.5 and bias == np.floor(bias))


def truncate(builder: Builder, op: Truncate) -> None:
    """An index that several tables share."""
    source = builder.values[op.inputs[0]]
    if source.range.f > 0:
        raise refusal("PQ202", "Cast to an integer cuts off fraction bits", "round with a Quant node before it", op.name)
    builder.alias(op, source.order, source.range)


def lookup(builder: Builder, op: Lookup) -> None:
    """hls4ml's UnaryLUT: one entry for every pattern of bits of its input's type, those of negative codes last."""
    source, held = _narrow(builder, op, builder.values[op.inputs[0]])
    raw = np.arange(2**held.width)
    codes = np.where(raw < 2**held.magnitude_bits, raw, raw - 2**held.width)
    table = _entries(op, np.ldexp(codes.astype(np.float64), -held.f))
    met = _entries(op, np.ldexp(np.arange(source.range.low.min(), source.range.high.max() + 1), -source.range.f))
    f = fraction_bits(op.entries)
    low, high = (np.full(op.shape, np.ldexp(end, f)) for end in (met.min(), met.max()))
    result = Range(f, low, high)
    name = builder.layer(
        op, "UnaryLUT", [source], result, types={"table": constant_type(op.entries)}, table_data=table, activation="unary_lut"
    )
    builder.put(op, name, source.stored, source.order, result)


def _entries(op: Lookup, x: Array) -> Array:
    """The table at x; beyond its ends, where no value of the net lies, its first or last entry."""
    index = np.trunc(x * op.scale + op.offset)
    return op.entries[np.clip(index, 0, op.entries.size - 1).astype(np.int64)]


def _narrow(builder: Builder, op: Lookup, source: Stored) -> tuple[Stored, FixedFormat]:
    """The source in a type that a table can have as index, and that type."""
    held = FixedFormat.parse(builder.plan.types[source.layer]["result"])[0]
    if held.width <= _WIDEST:
        return source, held
    held = source.range.format
    if held.width > _WIDEST:
        what = f"a table of 2^{held.width} entries"
        raise refusal("PQ303", what, f"quantize its input to at most {_WIDEST} bits", op.name)
    cast = builder.layer(op, "Activation", [source], hls_type(held), part="/index", activation="linear")
    return replace(source, layer=cast), FixedFormat.parse(hls_type(held))[0]
