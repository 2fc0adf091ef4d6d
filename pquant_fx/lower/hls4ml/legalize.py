"""Rewrites that only hls4ml needs, made on the importer's copy: other toolchains get the clean QONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.lower.hls4ml.expand import expand
from pquant_fx.lower.hls4ml.net import (
    Affine,
    Concat,
    Conv,
    Copy,
    Dense,
    Ints,
    Lookup,
    Merge,
    Net,
    Op,
    Pool,
    Quantize,
    Relu,
    Select,
    Shape,
    Upsample,
    View,
    uses,
)
from pquant_fx.lower.hls4ml.tables import joined_index

__all__ = ["legalize"]


def legalize(net: Net, io_type: str) -> tuple[Net, list[Problem]]:
    """The same function out of operations that hls4ml has; problems: nodes for which there are none."""
    for step in (_join_rounding, _join_bias, _join_selects, _fold_padding, _join_index):
        net = step(net)
    problems: list[Problem] = []
    ops: list[Op] = []
    shapes: dict[str, Shape] = {}
    nonnegative: set[str] = set()
    for op in net:
        shapes[op.output] = op.shape
        if _never_negative(op, nonnegative):
            nonnegative.add(op.output)
        try:
            ops += expand(op, io_type, shapes, nonnegative)
        except LoweringError as error:
            problems += error.problems
    return net.with_ops(ops), problems


def _never_negative(op: Op, known: set[str]) -> bool:
    """Whether the output is at least 0 because of what the operation is."""
    if isinstance(op, Quantize):
        return bool((op.k == 0).all()) or op.inputs[0] in known
    if isinstance(op, View | Pool | Concat | Select | Copy | Upsample) or (isinstance(op, Merge) and op.operation in ("add", "multiply")):
        return all(tensor in known for tensor in op.inputs)
    return isinstance(op, Relu) or (isinstance(op, Lookup) and bool((op.entries >= 0).all()))


def _rewritten(net: Net, rewrite: Callable[[Op, dict[str, Op]], Op]) -> Net:
    """Each operation through `rewrite(op, single)`; single: makers of tensors that nobody else reads."""
    count = uses(net)
    single: dict[str, Op] = {}
    ops: list[Op] = []
    for op in net:
        made = rewrite(op, single)
        ops.append(made)
        if count[made.output] == 1:
            single[made.output] = made
    return net.with_ops(ops)


def _join_rounding(net: Net) -> Net:
    """floor(x + lsb/2) -> RND, with the guard quantizer in front of it if the file has one (onto half an lsb, by TRN)."""

    def rewrite(op: Op, single: dict[str, Op]) -> Op:
        if not isinstance(op, Quantize):
            return op
        half = single.get(op.inputs[0])
        if op.rounding == "TRN" and isinstance(half, Affine) and _adds_half(half, op):
            op = replace(op, inputs=half.inputs, rounding="RND")
            return _without_guard(op, single.get(op.inputs[0]), "TRN")
        return _without_guard(op, half, "TRN_ZERO") if op.rounding == "RND_INF" else op

    return _rewritten(net, rewrite)


def _adds_half(affine: Affine, op: Quantize) -> bool:
    return bool((affine.scale == 1).all() and (affine.bias == np.ldexp(1.0, -op.f - 1)).all())


def _without_guard(op: Quantize, guard: Op | None, rounding: str) -> Quantize:
    """q after a quantizer with the same range, one more fraction bit and `rounding` sees enough of x to round it as if alone."""
    if not isinstance(guard, Quantize) or guard.rounding != rounding or guard.overflow != "SAT" or op.overflow not in ("SAT", "SAT_SYM"):
        return op
    same = (guard.k == op.k).all() and (guard.i == op.i).all() and (guard.f == op.f + 1).all()
    return replace(op, inputs=guard.inputs) if same else op


def _join_bias(net: Net) -> Net:
    """Dense or Conv, then a constant per output channel -> its bias."""

    def rewrite(op: Op, single: dict[str, Op]) -> Op:
        if not isinstance(op, Affine) or not (op.scale == 1).all():
            return op
        source = single.get(op.inputs[0])
        if isinstance(source, Dense) and (op.bias == op.bias.reshape(-1, op.shape[-1])[:1]).all():
            return replace(source, name=op.name, output=op.output, bias=source.bias + op.bias.reshape(-1, op.shape[-1])[0])
        if (
            isinstance(source, Conv)
            and (op.bias == op.bias.reshape(op.shape[0], -1)[:, :1].reshape((-1,) + (1,) * (len(op.shape) - 1))).all()
        ):
            return replace(source, name=op.name, output=op.output, bias=source.bias + op.bias.reshape(op.shape[0], -1)[:, 0])
        return op

    return _rewritten(net, rewrite)


def _join_selects(net: Net) -> Net:
    """A slice of a slice, a pad of a slice (the option-A shortcut of a ResNet) -> one selection."""

    def rewrite(op: Op, single: dict[str, Op]) -> Op:
        source = single.get(op.inputs[0]) if isinstance(op, Select) else None
        if not isinstance(op, Select) or not isinstance(source, Select):
            return op
        maps = tuple(np.where(outer >= 0, inner[np.maximum(outer, 0)], -1) for outer, inner in zip(op.maps, source.maps, strict=True))
        return replace(op, inputs=source.inputs, maps=maps)

    return _rewritten(net, rewrite)


def _fold_padding(net: Net) -> Net:
    """Spatial zero padding right before a convolution -> its own padding."""

    def rewrite(op: Op, single: dict[str, Op]) -> Op:
        source = single.get(op.inputs[0]) if isinstance(op, Conv) else None
        if not isinstance(op, Conv) or not isinstance(source, Select) or (source.maps[0] != np.arange(source.maps[0].size)).any():
            return op
        widths = [_padding(m) for m in source.maps[1:]]
        if any(w is None for w in widths) or source.maps[0].size != op.weight.shape[1]:
            return op
        begins, ends = ([w[side] for w in widths if w is not None] for side in (0, 1))
        return replace(op, inputs=source.inputs, pads=tuple(int(a + b) for a, b in zip(op.pads, [*begins, *ends], strict=True)))

    return _rewritten(net, rewrite)


def _join_index(net: Net) -> Net:
    """Cast(x * scale - first) as the index of a table -> a table of x."""
    return _rewritten(net, joined_index)


def _padding(rows: Ints) -> tuple[int, int] | None:
    """(begin, end) if the rows are a whole axis with zeros around it."""
    kept = np.flatnonzero(rows >= 0)
    if kept.size == 0 or (rows[kept] != np.arange(kept.size)).any() or (np.diff(kept) != 1).any():
        return None
    return int(kept[0]), int(rows.size - 1 - kept[-1])
