"""QONNX files with the structures that hls4ml gets wrong, or that the importer has to rewrite for it."""

from __future__ import annotations

import numpy as np
import onnx

from tests.hls4ml_zoo import File

__all__ = ["digits_residual", "images", "line", "mixed_grids", "modes", "per_element", "ports", "two_inputs", "vectors"]

ROUNDING = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF")
OVERFLOW = ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP")


def two_inputs() -> onnx.ModelProto:
    """An MLP with two inputs and four outputs; two casts in a row, two quantizers on one layer, a join of four."""
    g = File()
    x = g.half_up(g.input("x", 8), "x.quantizer", 4, 8, guard=True)
    z = g.quant(g.input("z", 4), "z.quantizer", 3, 7, mode="ROUND")
    a = g.half_up(g.node("Relu", [g.linear(x, "fc1", 8, 6)], "relu"), "relu.quantizer", 4, 8, signed=0)
    coarse = g.quant(a, "cast1", 2, 6, signed=0)
    coarser = g.quant(coarse, "cast2", 1, 4, signed=0, mode="ROUND")
    b = g.linear(z, "fc2", 4, 6)
    total = g.node("Add", [a, b], "total")
    first, second = g.quant(b, "b.first", 3, 8), g.quant(b, "b.second", 5, 10, mode="HALF_UP")
    joined = g.quant(g.node("Concat", [coarser, first, second, total], "cat", axis=1), "cat.quantizer", 4, 9)
    return g.model(g.linear(joined, "out", 24, 3), "total", "b.second", "cast2")


def digits_residual() -> onnx.ModelProto:
    """A ResNet in small: identity, option-A and 1x1 shortcuts, a crop, a mean, a linear head."""
    g = File()
    x = g.half_up(g.input("x", 2, 6, 6), "x.quantizer", 3, 8, guard=True)

    def activated(value: str, name: str) -> str:
        return g.half_up(g.node("Relu", [value], name), f"{name}.quantizer", 3, 8, signed=0)

    y = activated(g.conv(x, "conv1", 2, 4, 3, 3, pad=1), "relu1")
    y = activated(g.node("Add", [g.conv(y, "block1.conv", 4, 4, 3, 3, pad=1), y], "block1.add"), "block1.relu")
    short = g.node("Slice", [y, *(g.constant(v, np.int64) for v in ([0, 0], [99, 99], [2, 3], [2, 2]))], "block2.slice")
    short = g.node("Pad", [short, g.constant([0, 1, 0, 0, 0, 1, 0, 0], np.int64)], "block2.pad")
    y = activated(g.node("Add", [g.conv(y, "block2.conv", 4, 6, 3, 3, pad=1, stride=2), short], "block2.add"), "block2.relu")
    y = activated(
        g.node("Add", [g.conv(y, "block3.conv", 6, 8, 3, 3, pad=1), g.conv(y, "block3.short", 6, 8, 1, 1)], "block3.add"), "block3.relu"
    )
    y = g.node("Slice", [y, *(g.constant(v, np.int64) for v in ([0, 0], [2, 2], [2, 3], [1, 1]))], "crop")
    y = g.reshape(g.pool(y, "pool/mean", "AveragePool", 2, 2), "pool", 8)
    return g.model(g.linear(y, "fc", 8, 5))


def images(padded_maximum: bool = True) -> onnx.ModelProto:
    """Depthwise, grouped and dilated convolutions, pools, pads, joins, per-channel affine maps, flattening."""
    g = File()
    x = g.half_up(g.input("x", 4, 8, 8), "x.quantizer", 3, 8, guard=True)
    d = g.half_up(g.node("Relu", [g.conv(x, "depthwise", 4, 4, 3, 3, pad=1, group=4)], "relu"), "relu.quantizer", 3, 7, signed=0)
    e = g.half_up(g.conv(x, "dilated", 4, 6, 3, 3, pad=2, dilation=2, group=2), "dilated.quantizer", 2, 7)
    c = g.node("Concat", [d, e, x], "cat", axis=1)
    m = g.pool(c, "maximum", "MaxPool", 2, 2)
    outputs = [g.pool(c, "mean", "AveragePool", 4, 4), g.pool(d, "border", "AveragePool", 2, 2, stride=1, pad=1)]
    outputs += [g.pool(d, "padded", "MaxPool", 2, 2, pad=1)] if padded_maximum else []
    pad = g.node("Pad", [m, g.constant([0, 0, 1, 0, 0, 0, 0, 2], np.int64)], "pad")
    outputs.append(g.node("Concat", [pad, pad], "rows", axis=2))
    scaled = g.node("Mul", [m, g.constant(g.codes(14, 1, 1))], "affine/mul")
    moved = g.node("Add", [scaled, g.constant(g.codes(1, 14, 1, 1))], "affine")
    flat = g.half_up(g.reshape(moved, "flatten", 224), "flatten.quantizer", 3, 9)
    outputs += [g.linear(flat, "fc", 224, 3), g.node("ReduceMean", [c], "global", axes=[2, 3], keepdims=0)]
    return g.model(*outputs)


def line() -> onnx.ModelProto:
    """One-dimensional convolution and pooling, a permute, a linear layer on the last axis."""
    g = File()
    x = g.half_up(g.input("x", 3, 12), "x.quantizer", 3, 8, guard=True)
    y = g.half_up(g.node("Relu", [g.conv(x, "conv", 3, 4, 3, pad=1, stride=2)], "relu"), "relu.quantizer", 3, 8, signed=0)
    p, q = g.pool(y, "maximum", "MaxPool", 2), g.pool(y, "mean", "AveragePool", 2)
    turned = g.node("Transpose", [g.node("Concat", [p, q], "channels", axis=1)], "turn", perm=[0, 2, 1])
    head = g.linear(g.reshape(turned, "flatten", 24), "fc", 24, 2)
    return g.model(g.node("Concat", [p, q], "length", axis=2), head, g.linear(turned, "sequence", 8, 3))


def vectors() -> onnx.ModelProto:
    """Element-by-element operators, an output that is an input's quantizer, a value reshaped into an image."""
    g = File()
    x = g.half_up(g.input("x", 6), "x.quantizer", 3, 8, guard=True)
    y = g.quant(g.input("y", 6), "y.quantizer", 2, 6, narrow=1, mode="DOWN")
    outputs = [g.node(op, [x, y], op.lower()) for op in ("Sub", "Mul", "Max", "Min")]
    outputs += [g.node("Clip", [x, g.constant(a), g.constant(b)], f"clip{n}") for n, (a, b) in enumerate([(-1.5, 6), (0, 6), (0, 0)])]
    outputs += [g.node("Neg", [x], "neg"), g.node("LeakyRelu", [x], "leaky", alpha=0.125), g.node("Div", [x, g.constant(4.0)], "div")]
    outputs += [g.node("Sub", [g.constant(3.0), x], "from3"), g.node("Identity", [x], "same"), g.node("Identity", [x], "twice")]
    outputs += [g.node("Max", [x, g.constant(0.5)], "atleast"), g.node("Mul", [x, g.constant(g.codes(6))], "scaled")]
    outputs.append(g.node("Slice", [x, *(g.constant(v, np.int64) for v in ([1], [6], [1], [2]))], "odd"))
    image = g.reshape(g.half_up(g.linear(x, "fc", 6, 24), "fc.quantizer", 3, 9), "image", 2, 3, 4)
    outputs += [g.conv(image, "conv", 2, 3, 3, 3, pad=1), g.pool(image, "overlap", "MaxPool", 3, 3, stride=2, pad=1)]
    return g.model(*outputs)


def mixed_grids() -> onnx.ModelProto:
    """Where hls4ml's own type inference loses bits: channels on different grids, SAT_SYM that gets shrunk, values below one lsb."""
    g = File()
    x = g.half_up(g.input("x", 2), "x.quantizer", 3, 7, guard=True)
    a = g.half_up(g.node("MatMul", [x, g.constant([[8, 2**-6], [8, -(2.0**-6)]])], "a"), "a.quantizer", 9, 19)
    b = g.quant(g.node("MatMul", [x, g.constant([[0.5, 0], [0, 0.5]])], "b"), "b.quantizer", 4, 9, narrow=1)
    c = g.quant(g.node("MatMul", [x, g.constant([[2**-9, 0], [0, 2**-9]])], "c"), "c.quantizer", 0, 4)
    y = g.quant(g.input("y", 3, 2, 2), "y.quantizer", 5, 10)
    channels = g.quant(y, "channels", np.array([1, 3, -1]).reshape(1, 3, 1, 1), 5)
    return g.model(a, b, c, channels)


def modes() -> onnx.ModelProto:
    """All rounding and overflow modes, signed and unsigned, half of them as the result type of a layer with arithmetic."""
    g = File()
    x = g.quant(g.input("x", 9), "x.quantizer", 6, 12)
    plain = [g.fixed(x, f"{r}_{o}", 0, 1, 2, r, o) for r in ROUNDING for o in OVERFLOW]
    products = [g.node("Mul", [x, g.constant(g.codes(9))], f"product_{r}_{o}") for r in ROUNDING for o in OVERFLOW]
    pairs = [(r, o) for r in ROUNDING for o in OVERFLOW]
    return g.model(*plain, *(g.fixed(p, f"fused_{r}_{o}", 1, 0, 2, r, o) for p, (r, o) in zip(products, pairs, strict=True)))


def ports() -> onnx.ModelProto:
    """Raw inputs that several quantizers with different modes read."""
    g = File()
    x, y, z = g.input("x", 6), g.input("y", 6), g.input("z", 6)
    outputs = [g.fixed(x, f"{r}_{o}_{k}", k, 1, 2, r, o) for r in ROUNDING for o in OVERFLOW[:3] for k in (0, 1)]
    outputs += [g.fixed(y, f"{r}_wrap_{k}", k, 1, 2, r, "WRAP") for r in ("TRN", "RND", "RND_CONV", "RND_MIN_INF") for k in (0, 1)]
    outputs += [g.half_up(z, "half", 3, 7, guard=True), g.quant(g.node("Relu", [z], "relu"), "floor", 2, 6)]
    return g.model(*outputs)


def per_element() -> onnx.ModelProto:
    """A format for each element (io_parallel), dead elements among them, on inputs, convolutions and before a linear layer."""
    g = File()
    x = g.input("x", 2, 4, 4)
    k, i, f = (g.random.integers(*span, (1, 2, 4, 4)) for span in ((0, 2), (-2, 4), (-1, 4)))
    outputs = [g.fixed(x, f"x_{r}_{o}", k, i, f, r, o) for r, o in (("RND", "SAT"), ("RND_CONV", "SAT_SYM"))]
    y = g.conv(g.quant(g.input("y", 2, 4, 4), "y.quantizer", 5, 10), "conv", 2, 2, 3, 3, pad=1)
    pairs = [("RND", "WRAP"), ("TRN", "WRAP"), ("RND", "SAT"), ("RND_INF", "SAT_ZERO"), ("TRN_ZERO", "WRAP")]
    outputs += [g.fixed(y, f"y_{r}_{o}", k, i, f, r, o) for r, o in pairs]
    outputs += [g.linear(g.reshape(outputs[2], "flatten", 32), "fc", 32, 3), g.quant(outputs[2], "again", 1, 5, mode="ROUND")]
    outputs += [g.fixed(y, "dead", 1, -3, 2, "RND", "SAT"), g.fixed(y, "one_bit", 1, -2, 2, "RND", "SAT_SYM")]
    # an lsb above all bits of the source: ap_fixed would read where there is nothing, and abort
    far = np.where(g.random.integers(0, 2, (1, 2, 4, 4)) == 0, -20, 2)
    outputs += [g.fixed(y, f"far_{n}", 1, 22, f, "RND_CONV", "SAT") for n, f in enumerate((far, -20))]
    outputs.append(g.fixed(y, "wave", k * 0 + 1, i, f, "TRN", "WRAP_SM"))
    rows = [t.reshape(1, 32) for t in (k, i, f)]
    outputs.append(g.linear(g.fixed(g.reshape(y, "row", 32), "flat", *rows, "RND", "WRAP"), "head", 32, 3))
    return g.model(*outputs)
