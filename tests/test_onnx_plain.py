"""Plain ONNX: standard operators only, equal to torch and to the published vectors bit for bit in onnxruntime."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pquant_fx.errors import InputError, LoweringError, OutputError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.lower.onnx.plain import to_onnx
from pquant_fx.lower.onnx.run import run_onnxruntime
from tests.frozen_graphs import FrozenNet, double_reference, published_vectors, stress_values, vector_net, wrong_vectors
from tests.frozen_operators import OPERATORS, operator_inputs, operator_net


@pytest.mark.parametrize("first", [None, (1, 8, 10)])
def test_the_published_vectors_hold_in_onnxruntime(first: tuple[int, int, int] | None) -> None:
    vectors = published_vectors()
    if first is not None:
        vectors = {
            kind: {x: q for x, q in cases.items() if abs(x) < 256 and x * 1024 == np.floor(x * 1024)} for kind, cases in vectors.items()
        }
    model = to_onnx(vector_net(vectors, first))
    assert wrong_vectors(vectors, lambda x: run_onnxruntime(model, x)) == []


def test_every_mode_per_element() -> None:
    """A format for each element, a zero-width one among them, in all modes; inputs far outside and next to every tie."""
    net = FrozenNet()
    x = net.input("x", 6)
    k, i, f = [[1, 1, 0, 1, 0, 1]], [[2, 0, 3, 1, -1, -4]], [[3, 7, 0, 2, 4, 2]]
    outputs = {}
    for rounding in ROUNDING_MODES:
        for overflow in OVERFLOW_MODES:
            signs = [[1] * 6] if overflow == "WRAP_SM" else k
            outputs[f"{rounding}_{overflow}"] = net.quantize(x, signs, i, f, rounding, overflow, name=f"{rounding}_{overflow}")
    gm = net.done(outputs)
    values = stress_values((500, 6), 3, 4.0)
    for name, expected, got in zip(outputs, double_reference(gm, values), run_onnxruntime(to_onnx(gm), [values])):
        assert (expected == got).all(), name


@pytest.mark.parametrize("overflow", ["WRAP", "WRAP_SM"])
def test_wide_wrapping_is_computed_in_double(overflow: str) -> None:
    """23 magnitude bits: the period of 2^25 codes is beyond float32 although every code fits."""
    net = FrozenNet()
    gm = net.done(net.quantize(net.input("x", 3), 1, 23, 0, "TRN", overflow))
    values = np.array([[-1.0, 2.0**23, 2.0**24 - 1], [-(2.0**23) - 1, 2.0**24 + 2, -(2.0**25) + 4]], dtype=np.float32)
    (got,) = run_onnxruntime(to_onnx(gm), [values])
    assert got.dtype == np.float32
    assert (got == double_reference(gm, values)[0]).all()


@pytest.mark.parametrize("bits", [8, 20])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_equal_torch(name: str, bits: int) -> None:
    """8 bits stay in float32; 20 bits overflow its 24 wherever something is multiplied or summed, and go through double."""
    gm = operator_net(name, bits)
    inputs = operator_inputs(name, bits)
    model = to_onnx(gm)
    assert {o.domain for o in model.opset_import} == {""}
    assert {n.domain for n in model.graph.node} == {""}
    for expected, got in zip(double_reference(gm, *inputs), run_onnxruntime(model, inputs), strict=True):
        assert expected.shape == got.shape
        assert (expected == got).all()
        assert np.unique(expected).size > 2


@pytest.mark.parametrize(("pads", "padding"), [((2, 0), (0, 0)), ((0, 0, 1, 0), (1, 0)), ((1, 0, 0, 1), (1, 1)), ((1, 1), (0, 0))])
@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d])
def test_a_pool_behind_a_pad(pool: Any, pads: tuple[int, ...], padding: tuple[int, int]) -> None:
    """onnxruntime joins the two: it takes no padding as large as the kernel, and its MaxPool forgets that the pads are zeros."""
    net = FrozenNet()
    grown = net.call(F.pad, net.quantize(net.input("x", 2, 8, 8), 1, 2, 5), pads, "constant", 0)
    options = (False, True) if pool is F.avg_pool2d else ((1, 1), False)
    gm = net.done(net.call(pool, grown, (2, 2), (2, 2), padding, *options))
    values = -np.abs(stress_values((9, 2, 8, 8), 3, 4.0))
    (got,) = run_onnxruntime(to_onnx(gm), [values])
    assert (got == double_reference(gm, values)[0]).all()


@pytest.mark.parametrize(("inputs", "doubles"), [(1024, False), (1025, True)])
def test_double_is_used_exactly_where_float32_would_round(inputs: int, doubles: bool) -> None:
    """A sum of `inputs` products 127 * 129 passes 2^24 at the 1025th."""
    assert (127 * 129 * inputs > 2**24) == doubles
    net = FrozenNet()
    x = net.quantize(net.input("x", inputs), 0, 7, 0)
    weight = torch.full((1, inputs), 129.0)
    gm = net.done(net.call(F.linear, x, net.parameter("w", weight, 1, 8, 0), None))
    model = to_onnx(gm)
    (got,) = run_onnxruntime(model, [np.full((1, inputs), 127.0, dtype=np.float32)])
    assert got.item() == 127 * 129 * inputs
    assert ("Cast" in {n.op_type for n in model.graph.node}) == doubles


def test_partial_sums_count_as_much_as_the_result() -> None:
    """The sum passes 2^24 before a bias brings it back: odd sums up there are what float32 loses."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 0, 12, 0)
    w = net.parameter("w", torch.full((1, 2), 4095.0), 1, 12, 0)
    gm = net.done(net.call(F.linear, x, w, net.parameter("b", torch.tensor([-(2.0**24)]), 1, 24, 0))).double()
    (got,) = run_onnxruntime(to_onnx(gm), [np.array([[4095.0, 4094.0]], dtype=np.float32)])
    assert got.dtype == np.float32
    assert got.item() == 4095 * 4095 + 4095 * 4094 - 2**24


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_operands_beyond_float32(name: str) -> None:
    """25-bit operands without a quantizer before the operator: every operator has a form in double."""
    gm = operator_net(name, 12, widened=True)
    inputs = operator_inputs(name, 12)
    model = to_onnx(gm)
    got = run_onnxruntime(model, inputs)
    for expected, value in zip(double_reference(gm, *inputs), got, strict=True):
        assert (expected == value).all()
    assert got[1].dtype == np.float32


def test_clips_of_doubles_behind_a_relu_load() -> None:
    """onnxruntime joins Relu and Clip and fails on the double one: neither a dead quantizer nor a relu6 is written as Clip there."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 4), 1, 4, 22, name="wide")
    y = net.call(F.relu, x)
    gm = net.done((net.quantize(y, 0, 0, 0, name="dead"), net.call(F.relu6, y), net.call(F.hardtanh, net.call(F.relu, x), -1.5, 0.75)))
    values = stress_values((50, 4), 22, 16.0)
    for expected, value in zip(double_reference(gm, values), run_onnxruntime(to_onnx(gm), [values]), strict=True):
        assert (expected == value).all()


def test_wide_results_leave_in_float32_where_they_fit_and_in_float64_otherwise() -> None:
    gm = operator_net("conv2d", 20)
    model = to_onnx(gm)
    assert [(o.name, o.type.tensor_type.elem_type) for o in model.graph.output] == [("raw", 11), ("rounded", 1)]


def test_the_batch_is_symbolic_or_fixed() -> None:
    gm = operator_net("conv2d", 8)
    free, fixed = to_onnx(gm), to_onnx(gm, batch=5)
    assert free.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 5
    inputs = operator_inputs("conv2d", 8, samples=13)
    for a, b, expected in zip(run_onnxruntime(free, inputs), run_onnxruntime(fixed, inputs), double_reference(gm, *inputs)):
        assert (a == expected).all()
        assert (b == expected).all()


def test_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    gm = operator_net("grouped conv2d", 20)
    to_onnx(gm, tmp_path / "a.onnx")
    to_onnx(operator_net("grouped conv2d", 20), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_an_unwritable_path_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        to_onnx(operator_net("add", 8), tmp_path / "file" / "net.onnx")
    assert caught.value.code == "PQ505"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_more_than_float64_is_refused_with_every_node() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 4), 1, 0, 19)
    cube = net.call(operator.mul, net.call(operator.mul, x, x), x)
    gm = net.done((cube, net.call(F.relu, cube)))
    with pytest.raises(LoweringError) as caught:
        to_onnx(gm)
    assert [p.code for p in caught.value.problems] == ["PQ303", "PQ303"]
    assert caught.value.place.node == "mul_1"
    assert caught.value.place.line == "net.py:4"


def test_a_float_network_is_exported_as_it_is() -> None:
    """Without any quantizer there are no bits to keep: any weight, any window."""
    net = FrozenNet()
    x = net.input("x", 2, 6, 6)
    w = net.parameter("w", torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1)))
    c = net.call(F.conv2d, x, w, None, (1, 1), (0, 0), (1, 1), 1)
    gm = net.done(net.call(F.avg_pool2d, net.call(F.leaky_relu, c, 0.01), (3, 3), (3, 3), (1, 1), True, False))
    values = np.random.default_rng(0).normal(size=(4, 2, 6, 6)).astype(np.float32)
    (got,) = run_onnxruntime(to_onnx(gm), [values])
    np.testing.assert_allclose(got, double_reference(gm, values)[0], rtol=1e-5, atol=1e-6)


def test_inputs_that_do_not_fit_are_named() -> None:
    model = to_onnx(operator_net("add", 8))
    with pytest.raises(InputError, match="1 inputs were given, the file has 2") as caught:
        run_onnxruntime(model, [np.zeros((2, 5))])
    assert caught.value.code == "PQ409"
    with pytest.raises(InputError, match="'y' has shape \\(2, 4\\)"):
        run_onnxruntime(model, [np.zeros((2, 5)), np.zeros((2, 4))])
    with pytest.raises(InputError, match="'y' has shape \\(3, 5\\)"):
        run_onnxruntime(model, [np.zeros((2, 5)), np.zeros((3, 5))])
