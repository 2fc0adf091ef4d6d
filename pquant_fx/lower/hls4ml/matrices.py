"""Products of two matrices: by a constant as a dense layer, of two values as hls4ml's Einsum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pquant_fx.lower.hls4ml.builder import Builder, hls_type
from pquant_fx.lower.hls4ml.net import Dense, MatMul, Op, Shape, View, refusal
from pquant_fx.lower.hls4ml.ranges import Range
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.shapes import view

__all__ = ["MATRIX_READERS", "matmul"]


def _matmul(node: Node) -> list[Op]:
    if node.is_constant(1):
        return _by_constant(node)
    if node.is_constant(0):
        return _of_constant(node)
    a, b = node.shape(0), node.shape(1)
    if not 2 <= len(a) == len(b) or a[:-2] != b[:-2] or a[-1] != b[-2]:
        raise node.refuse("PQ202", f"MatMul of {a} and {b}", "give both operands the same leading axes")
    lead = (int(np.prod(a[:-2])),) if len(a) > 3 else a[:-2]
    ops: list[Op] = []
    inputs = []
    for at, shape in enumerate((a, b)):
        flat = (*lead, *shape[-2:])
        made = view(node, node.inputs[at], shape, np.arange(int(np.prod(shape))), flat)
        ops.append(replace(made, name=f"{node.name}/operand{at}", output=f"{node.output}/operand{at}"))
        inputs.append(ops[-1].output)
    shape = (*lead, a[-2], b[-1])
    product = MatMul(name=node.name, inputs=tuple(inputs), output=f"{node.output}/product", shape=shape)
    return [*ops, product, view(node, product.output, shape, np.arange(int(np.prod(shape))), (*a[:-1], b[-1]))]


def _by_constant(node: Node) -> list[Op]:
    weight, shape = node.reals(1, "weight"), node.shape(0)
    if weight.ndim != 2 or weight.shape[0] != shape[-1]:
        raise node.refuse("PQ202", f"MatMul of {shape} with a weight of shape {weight.shape}", "use a matrix of shape (in, out)")
    bias = np.zeros(weight.shape[1])
    out = (*shape[:-1], weight.shape[1])
    return [Dense(name=node.name, inputs=(node.inputs[0],), output=node.output, shape=out, weight=weight, bias=bias)]


def _of_constant(node: Node) -> list[Op]:
    """W x = (x' W')' with the last two axes of x exchanged."""
    weight, shape = node.reals(0, "weight"), node.shape(1)
    weight = weight[0] if weight.ndim == 3 and weight.shape[0] == 1 else weight
    if weight.ndim != 2 or len(shape) < 2 or weight.shape[1] != shape[-2]:
        raise node.refuse("PQ202", f"MatMul of a weight of shape {weight.shape} with {shape}", "use a matrix of shape (out, in)")
    turned, count = (*shape[:-2], shape[-1], shape[-2]), weight.shape[0]
    made = (*turned[:-1], count)
    first = _exchanged(node, node.inputs[1], shape, "/turned")
    dense = Dense(
        name=node.name, inputs=(first.output,), output=f"{node.output}/product", shape=made, weight=weight.T, bias=np.zeros(count)
    )
    return [first, dense, replace(_exchanged(node, dense.output, made, ""), output=node.output)]


def _exchanged(node: Node, source: str, shape: Shape, part: str) -> View:
    """`source` with its last two axes exchanged."""
    index = np.arange(int(np.prod(shape))).reshape(shape).swapaxes(-1, -2)
    return replace(view(node, source, shape, index, index.shape), name=node.name + part, output=node.output + part)


MATRIX_READERS: dict[str, Reader] = {"MatMul": _matmul}


def matmul(builder: Builder, op: MatMul) -> None:
    """One product for every pair of a row and a column, summed with all bits."""
    if builder.stream:
        remedy = "use io_type='io_parallel', or keep attention-like products out of models for io_stream"
        raise refusal("PQ202", "a product of two computed matrices in io_stream", remedy, op.name)
    values = [builder.values[tensor] for tensor in op.inputs]
    a, b = (builder.arranged(op, value, value.shape, np.arange(value.order.size)) for value in values)
    rows, columns = ((v.range.low, v.range.high) for v in (a, b))
    products = [p[..., :, :, None] * q[..., None, :, :] for p in rows for q in columns]
    low, high = np.minimum.reduce(products).sum(axis=-2), np.maximum.reduce(products).sum(axis=-2)
    result = Range(a.range.f + b.range.f, low, high).checked(op)
    equation = "ij,jk->ik" if len(op.shape) == 2 else "bij,bjk->bik"
    name = builder.layer(
        op, "Einsum", [a, b], result, types={"accum": hls_type(result.format)},
        equation=equation, inp0_shape=a.stored, inp1_shape=b.stored, out_shape=op.shape,
    )  # fmt: skip
    builder.put(op, name, op.shape, np.arange(int(np.prod(op.shape))), result)
