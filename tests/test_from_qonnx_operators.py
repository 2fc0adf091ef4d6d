"""Operators as other tools spell them (Brevitas, QKeras through tf2onnx, torch.onnx): what is read computes what qonnx computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import pquant_fx as pq
from tests.foreign_files import ForeignFile, run_cleaned
from tests.frozen_graphs import stress_values

BATCH = 12
Maker = Callable[[ForeignFile, str], str]
rng = np.random.default_rng(5)
W = rng.normal(size=(6, 8)).round(3)
KERNEL = rng.normal(size=(4, 3, 3, 3)).round(3)


def weight(f: ForeignFile, values: np.ndarray, scale: object = 0.125, bits: int = 6, **modes: object) -> str:
    return f.quant(f.constant(f"w{len(f.nodes)}", values), bits, scale, narrow=1, **modes)


def split(f: ForeignFile, x: str) -> str:
    sizes = f.constant("sizes", [2, 4, 2], "int64")
    first = f.node("Split", x, sizes, outputs=3, axis=1, name="split")
    return f.node("Concat", "split_out_2", first, axis=-1)


def batchnorm(f: ForeignFile, x: str) -> str:
    """QKeras leaves it behind a layer; the numbers make scale and shift exact: gamma / sqrt(var + epsilon) is 1/2, 1, 2, ..."""
    gamma, var = np.array([1.0, 0.5, 2.0, 1.0]), np.array([4.0, 0.25, 1.0, 1.0]) - 0.125
    names = [f.constant(n, v) for n, v in (("g", gamma), ("b", [0.5, -1.0, 0.0, 0.25]), ("m", [1.0, 0.5, -0.5, 0.0]), ("v", var))]
    return f.node("BatchNormalization", f.node("Conv", x, weight(f, KERNEL), kernel_shape=[3, 3]), *names, epsilon=0.125)


def channels_last(f: ForeignFile, x: str) -> str:
    """tf2onnx: NHWC outside, NCHW around the convolution."""
    last = f.node("Transpose", x, perm=[0, 2, 3, 1])
    back = f.node("Transpose", last, perm=[0, 3, 1, 2])
    made = f.node("Conv", back, weight(f, KERNEL), kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2])
    return f.node("Transpose", made, perm=[0, 2, 3, 1])


OPERATORS: dict[str, tuple[tuple[int, ...], Maker]] = {
    "Gemm": ((8,), lambda f, x: f.node("Gemm", x, weight(f, W, np.full((6, 1), 0.25)), weight(f, W[:, 0], 2.0**-8, 12), transB=1)),
    "Gemm, bias as a row": ((8,), lambda f, x: f.node("Gemm", x, weight(f, W.T), weight(f, W[None, :, 0], 2.0**-8, 12))),
    "transposed weight": ((8,), lambda f, x: f.node("MatMul", x, f.node("Transpose", weight(f, W, np.full((6, 1), 0.25)), perm=[1, 0]))),
    "MatMul, Add in front": ((8,), lambda f, x: f.node("Add", weight(f, W[:, 0], 2.0**-8, 12), f.node("MatMul", x, weight(f, W.T)))),
    "MatMul of rank 3": ((3, 8), lambda f, x: f.node("MatMul", x, weight(f, W.T))),
    "BipolarQuant weight": (
        (8,),
        lambda f, x: f.node(
            "MatMul",
            x,
            f.node("BipolarQuant", f.constant("w", W.T), f.constant("s", 0.5), domain="qonnx.custom_op.general"),
        ),
    ),
    "IntQuant of constants": ((8,), lambda f, x: f.node("MatMul", x, weight(f, W.T, mode="FLOOR"))),
    "Split and Concat": ((8,), split),
    "Gather of one row": ((3, 8), lambda f, x: f.node("Gather", x, f.constant("i", 1, "int64"), axis=1)),
    "Gather of every other": ((8,), lambda f, x: f.node("Gather", x, f.constant("i", [1, 3, 5], "int64"), axis=1)),
    "Slice": ((8,), lambda f, x: f.node("Slice", x, *(f.constant(n, [v], "int64") for n, v in zip("seat", (1, 100, 1, 2))))),
    "Unsqueeze, Squeeze": (
        (8,),
        lambda f, x: f.node("Squeeze", f.node("Unsqueeze", x, f.constant("a", [2], "int64")), f.constant("b", [2], "int64")),
    ),
    "Reshape with 0 and -1": ((4, 3, 2), lambda f, x: f.node("Reshape", x, f.constant("s", [0, 4, -1], "int64"))),
    "Reshape with the batch": ((4, 3, 2), lambda f, x: f.node("Reshape", x, f.constant("s", [BATCH, 24], "int64"))),
    "Flatten": ((4, 3, 2), lambda f, x: f.node("Flatten", x)),
    "Clip of one side": ((8,), lambda f, x: f.node("Clip", x, f.constant("lo", -0.5))),
    "Clip from 0": ((8,), lambda f, x: f.node("Clip", x, f.constant("lo", 0.0))),
    "Min with a number": ((8,), lambda f, x: f.node("Min", x, f.constant("hi", 1.5))),
    "Mul by a quantized vector": ((8,), lambda f, x: f.node("Mul", x, weight(f, W[:1] * 0.5))),
    "Div by a power of two": ((8,), lambda f, x: f.node("Div", x, f.constant("d", 4.0))),
    "PRelu of channels": ((3, 5, 5), lambda f, x: f.node("PRelu", x, weight(f, np.array([0.25, 0.5, -0.125]).reshape(3, 1, 1)))),
    "LeakyRelu": ((8,), lambda f, x: f.node("LeakyRelu", x, alpha=0.25)),
    "GlobalAveragePool": ((3, 4, 4), lambda f, x: f.node("GlobalAveragePool", x)),
    "GlobalMaxPool": ((3, 5, 4), lambda f, x: f.node("GlobalMaxPool", x)),
    "ReduceMean": ((3, 4, 4), lambda f, x: f.node("ReduceMean", x, axes=[-1, -2], keepdims=0)),
    "ReduceSum": ((3, 5), lambda f, x: f.node("ReduceSum", x, f.constant("a", [1], "int64"), keepdims=0)),
    "AveragePool with padding": (
        (3, 7, 7),
        lambda f, x: f.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1),
    ),
    "MaxPool": ((3, 8, 8), lambda f, x: f.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "MaxPool, 1-d": ((3, 8), lambda f, x: f.node("MaxPool", x, kernel_shape=[2], strides=[2])),
    "Conv with uneven padding": ((3, 6, 6), lambda f, x: f.node("Conv", x, weight(f, KERNEL), kernel_shape=[3, 3], pads=[0, 1, 2, 0])),
    "Conv, channels last around": ((3, 7, 8), channels_last),
    "Pad": ((3, 4, 4), lambda f, x: f.node("Pad", x, f.constant("p", [0, 1, 2, 0, 0, 0, 1, 3], "int64"), mode="constant")),
    "BatchNormalization": ((3, 6, 6), batchnorm),
    "Identity and Dropout": ((8,), lambda f, x: f.node("Identity", f.node("Dropout", x))),
    "Sub of two values": ((8,), lambda f, x: f.node("Sub", f.node("Relu", x), x)),
    "product of two values": ((3, 3), lambda f, x: f.node("MatMul", x, f.node("Transpose", x, perm=[0, 2, 1]))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_of_another_tool(name: str) -> None:
    sample, make = OPERATORS[name]
    file = ForeignFile()
    x = file.quant(file.input("inp.1", BATCH, *sample), 6, 2.0**-3, name="/in/act/Quant")
    out = file.quant(make(file, x), 8, 2.0**-2, name="/out/act/Quant")
    model = file.done(out)
    read = pq.from_qonnx(model)
    given = stress_values((BATCH, *sample), 3, 4.0)
    expected = run_cleaned(model, given)[0]
    assert expected.any()
    assert np.array_equal(read(torch.from_numpy(given)).numpy(), expected)
    assert read.verify(torch.from_numpy(given), targets=("integer", "onnx", "qonnx")).ok
    assert np.array_equal(pq.from_qonnx(read.to_qonnx())(torch.from_numpy(given)).numpy(), expected)


@pytest.mark.parametrize(
    ("mode", "rounding"), [("ROUND", "RND_CONV"), ("FLOOR", "TRN"), ("HALF_UP", "RND_INF"), ("HALF_DOWN", "RND_ZERO"), ("DOWN", "TRN_ZERO")]
)
@pytest.mark.parametrize(("signed", "narrow"), [(1, 0), (1, 1), (0, 0)])
@pytest.mark.parametrize("scale", [0.25, np.array([[0.5, 0.25, 0.125, 1.0]])])
def test_the_modes_of_a_quant(mode: str, rounding: str, signed: int, narrow: int, scale: object) -> None:
    file = ForeignFile()
    model = file.done(file.quant(file.input("x", 60, 4), 4, scale, signed, narrow, mode))
    read = pq.from_qonnx(model)
    (quantizer,) = [m for m in read.graph_module.modules() if isinstance(m, pq.Quantizer)]
    assert (quantizer.rounding, quantizer.overflow) == (rounding, "SAT_SYM" if narrow else "SAT")
    x = stress_values((60, 4), 2, 2.0)
    if mode == "HALF_UP":  # qonnx adds 1/2 in float32: what lies right below a tie becomes one
        x = np.round(x * 64) / 64
    assert np.array_equal(read(torch.from_numpy(x)).numpy(), run_cleaned(model, x)[0])


@pytest.mark.parametrize("operator", ["Sigmoid", "Tanh", "Softplus", "Erf", "Exp", "Elu", "Softsign"])
def test_a_function_between_quantizers_is_its_table(operator: str) -> None:
    """Entries are float64 results, rounded; those of qonnx are a runtime's float32: equal for every code of the input here."""
    file = ForeignFile()
    x = file.quant(file.input("x", 64, 1), 6, 2.0**-3)
    model = file.done(file.quant(file.node(operator, x), 8, 2.0**-6))
    codes = torch.arange(-32, 32).reshape(64, 1) / 8
    read = pq.from_qonnx(model)
    assert np.array_equal(read(codes).numpy(), run_cleaned(model, codes.numpy())[0])
    assert read.verify(codes, targets=("integer", "onnx", "qonnx")).ok


def test_an_input_without_a_quantizer_is_given_a_format() -> None:
    """A QKeras model whose first layer reads the raw input: refused with the input's name, or a format is given."""
    file = ForeignFile()
    model = file.done(file.quant(file.node("MatMul", file.input("x", 8, 8), weight(file, W.T)), 8, 0.25))
    with pytest.raises(pq.LoweringError) as caught:
        pq.from_qonnx(model)
    assert "'x'" in str(caught.value)
    read = pq.from_qonnx(model, inputs={"x": "fixed<8,4>"})
    on_grid = torch.from_numpy(stress_values((8, 8), 4, 4.0)).mul(16).round().clamp(-128, 127).div(16)
    assert np.array_equal(read(on_grid).numpy(), run_cleaned(model, on_grid.numpy())[0])
    with pytest.raises(pq.ConfigError) as unknown:
        pq.from_qonnx(model, inputs={"y": "fixed<8,4>"})
    assert unknown.value.code == "PQ405"


def test_several_outputs_come_by_name() -> None:
    file = ForeignFile()
    x = file.quant(file.input("x", 1, 4), 6, 0.25)
    total = file.node("ReduceSum", x, file.constant("a", [1], "int64"), keepdims=1, name="total")
    read = pq.from_qonnx(file.done(file.node("Relu", x, name="positive"), total))
    made = read(torch.tensor([[1.0, -2.0, 0.5, 0.25]]))
    assert {k: v.tolist() for k, v in made.items()} == {"positive_out": [[1.0, 0.0, 0.5, 0.25]], "total_out": [[-0.25]]}


NAMES = ["a", "a.b", "type", "half.weight", "0", "in.x", "/layer 1/w:0", "training", "...", "class", "pq", "forward.a", "a_2"]


def test_tensors_and_nodes_of_any_name() -> None:
    """Names that are Python's keywords, methods of modules, parents of each other, or no identifiers at all."""
    file = ForeignFile()
    x = file.quant(file.input("1 in:0", 6, 4), 6, 0.125, name="lambda")
    total = ""
    for n, name in enumerate(NAMES):
        held = file.constant(name, rng.normal(size=(4, 3)).round(2))
        made = file.node("MatMul", x, file.quant(held, 5, 0.25, name=f"{name}/quant"), name=f"{name}!")
        total = file.node("Add", total, made, name=f"sum{n}") if total else made
    model = file.done(total)
    given = stress_values((6, 4), 3, 4.0)
    expected = run_cleaned(model, given)[0]
    read = pq.from_qonnx(model)
    assert np.array_equal(read(torch.from_numpy(given)).numpy(), expected)
    again = pq.from_qonnx(read.to_qonnx(strict=True))
    assert np.array_equal(again(torch.from_numpy(given)).numpy(), expected)


def test_a_network_in_the_manner_of_qkeras_reaches_hls4ml() -> None:
    """What tf2onnx makes of QConv2D, BatchNormalization, QActivation, MaxPooling2D, Flatten and QDense: channels last outside."""
    from pquant_fx.lower.hls4ml.convert import check

    file = ForeignFile()
    x = file.quant(file.input("input_1", 4, 6, 6, 3), 8, 2.0**-5, name="q_activation")
    first = batchnorm(file, file.node("Transpose", x, perm=[0, 3, 1, 2]))
    relu = file.quant(file.node("Relu", first, name="relu"), 6, 0.25, signed=0, name="q_relu")
    pooled = file.node("MaxPool", relu, kernel_shape=[2, 2], strides=[2, 2])
    flat = file.node("Reshape", file.node("Transpose", pooled, perm=[0, 2, 3, 1]), file.constant("shape", [-1, 16], "int64"))
    dense = file.node("MatMul", flat, weight(file, rng.normal(size=(16, 3)).round(2), 0.25, 5))
    model = file.done(file.node("Add", dense, weight(file, np.array([0.5, -1.0, 0.25]), 0.25, 5), name="q_dense"))
    read = pq.from_qonnx(model)
    given = stress_values((4, 6, 6, 3), 5, 4.0)
    assert np.array_equal(read(torch.from_numpy(given)).numpy(), run_cleaned(model, given)[0])
    assert check(read.to_qonnx(strict=True)) == []
