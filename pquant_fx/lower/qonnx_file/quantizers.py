"""`Quant`, `IntQuant`, `BipolarQuant` and our `FixedPoint`: quantizers of data, formats of parameters.

Add(x, lsb/2) -> Quant FLOOR                          RND again
Quant FLOOR at lsb/2 -> Add(lsb/2) -> Quant FLOOR     RND again, and likewise RND_INF: what `to_qonnx` writes
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch.fx import Node as FxNode

from pquant_fx.graph.dialect import Quantizer
from pquant_fx.lower.fixed_point_numpy import quantize_array
from pquant_fx.lower.hls4ml.net import Array
from pquant_fx.lower.hls4ml.nodes import quantizer
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.qonnx_file.draft import Constant, Draft, Grid

__all__ = ["half_of_the_next_floor", "quantize", "quantized_constant"]


def quantize(d: Draft, node: Node) -> None:
    """A data quantizer."""
    if node.proto.op_type == "BipolarQuant":
        raise node.refuse("PQ207", "BipolarQuant of a computed value: a sign has no fixed-point form", "use a Quant of two bits")
    made = quantizer(node, node.shape(0))
    k, i, f = (t.astype(np.float64) for t in (made.k, made.i, made.f))
    grid = Grid(k, i, f, made.rounding, made.overflow)
    source, rounding = _rounded(d, node, grid)
    d.quantize(node, source, replace(grid, rounding=rounding))


def quantized_constant(d: Draft, node: Node) -> Constant:
    """A parameter on its grid."""
    held = d.constants[node.inputs[0]]
    values = node.reals(0, "value")
    if node.proto.op_type == "BipolarQuant":
        return _bipolar(node, held, values)
    made = quantizer(node, None)
    shape = np.broadcast_shapes(values.shape, made.k.shape)
    if shape != values.shape:
        raise node.refuse("PQ202", f"the format of shape {made.k.shape} is larger than its value {values.shape}", "export the file again")
    k, i, f = (t.astype(np.float64) for t in (made.k, made.i, made.f))
    kept = quantize_array(values, k, i, f, made.rounding, made.overflow)
    return Constant(kept, held.name, Grid(k, i, f, made.rounding, made.overflow), node.name)


def half_of_the_next_floor(d: Draft, node: Node, tensor: str, nodes: Mapping[str, Node]) -> bool:
    """Whether the sum with the constant `tensor` is only there for the Quant behind it to round to nearest."""
    after = nodes.get(node.output) if d.readers.get(node.output) == 1 else None
    if after is None or after.proto.op_type not in ("Quant", "IntQuant") or str(after.attribute("rounding_mode", "")).upper() != "FLOOR":
        return False
    half, scale = (np.asarray(d.constants[t].values, dtype=np.float64) for t in (tensor, after.inputs[1]) if t in d.constants)
    return bool((half == scale / 2).all()) if _fit(half.shape, scale.shape) else False


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b)))


def _bipolar(node: Node, held: Constant, values: Array) -> Constant:
    """scale where x >= 0, else -scale: two bits hold {-1, 1}."""
    scale = node.reals(1, "scale")
    mantissa, exponent = np.frexp(scale)
    if not (mantissa == 0.5).all():
        raise node.refuse("PQ202", "the quantizer's scale is no power of two", "use a power of two, for example const 1.0")
    f = np.broadcast_to((1 - exponent).astype(np.float64), values.shape)
    one = np.ones(values.shape)
    return Constant(np.where(values >= 0, scale, -scale), held.name, Grid(one, one - f, f, "RND_CONV", "SAT_SYM"), node.name)


def _rounded(d: Draft, node: Node, grid: Grid) -> tuple[FxNode, str]:
    """What the quantizer reads and how it rounds, once the nodes that only make up for QONNX's modes are taken back."""
    tensor = node.inputs[0]
    source = d.values[tensor]
    if grid.rounding == "TRN" and d.single(tensor) is not None and source.target is operator.add:
        x, half = source.args[0], source.args[1]
        if isinstance(x, FxNode) and _is_half(d, half, grid):
            return _without_guard(d, x, grid, "TRN"), "RND"
    if grid.rounding == "RND_INF" and d.single(tensor) is not None:
        return _without_guard(d, source, grid, "TRN_ZERO"), "RND_INF"
    return source, grid.rounding


def _is_half(d: Draft, half: object, grid: Grid) -> bool:
    if isinstance(half, float | int):
        return bool(np.all(half == np.exp2(-grid.f - 1)))
    if not isinstance(half, FxNode) or half.op != "get_attr":
        return False
    values = d.numbers(half)
    values = values[0] if values.ndim == grid.f.ndim + 1 and values.shape[0] == 1 else values
    return bool((values == np.exp2(-grid.f - 1)).all()) if _fit(values.shape, grid.f.shape) else False


def _without_guard(d: Draft, x: FxNode, grid: Grid, rounding: str) -> FxNode:
    """q behind a quantizer of the same range, one more fraction bit and `rounding` sees enough of x to round it as if alone."""
    guard = d.module(x)
    if not isinstance(guard, Quantizer) or guard.rounding != rounding or guard.overflow != "SAT" or grid.overflow not in ("SAT", "SAT_SYM"):
        return x
    if d.counted(x) != 1 or not isinstance(x.args[0], FxNode):
        return x
    k, i, f = (t.numpy(force=True).astype(np.float64) for t in guard.kif())
    k, i, f = (t[0] if t.ndim == grid.f.ndim + 1 else t for t in (k, i, f))
    same = (k == grid.k).all() and (i == grid.i).all() and (f == grid.f + 1).all()
    return x.args[0] if same else x
