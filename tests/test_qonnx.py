"""QONNX: standard Quant nodes wherever they are exact, refusals elsewhere, equal to torch bit for bit in qonnx's execution."""

from __future__ import annotations

import operator
import warnings
from collections import namedtuple
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.errors import InputError, LoweringError
from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.graph.intervals import Interval
from pquant_fx.lower.onnx_precision import half_sum_is_exact
from pquant_fx.lower.onnx_run import run_onnxruntime, run_qonnx
from pquant_fx.lower.qonnx import OWN_DOMAIN, QUANT_DOMAIN, float32_problems, to_qonnx
from tests.frozen_graphs import (
    OPERATORS,
    FrozenNet,
    double_reference,
    operator_inputs,
    operator_net,
    published_vectors,
    stress_values,
    vector_net,
    wrong_vectors,
)

STANDARD = {"", QUANT_DOMAIN}
ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_INF", "RND_ZERO")


def residual_net() -> GraphModule:
    """A small residual CNN: per-channel weights and biases, a fork, a join, a global mean, a classifier."""
    torch.manual_seed(0)
    net = FrozenNet()
    q = net.quantize(net.input("x", 2, 8, 8), 1, 2, 5)
    f = torch.tensor([6.0, 7.0, 8.0, 9.0])
    column = f.reshape(4, 1, 1, 1)
    w1 = net.parameter("conv1.weight", torch.randn(4, 2, 3, 3) * 0.3, 1, 7 - column, column)
    b1 = net.parameter("conv1.bias", torch.randn(4) * 0.5, 1, torch.tensor([1.0, 0.0, -1.0, 2.0]), f + 5)
    c1 = net.call(F.conv2d, q, w1, b1, (1, 1), (1, 1), (1, 1), 1, path="conv1")
    r1 = net.quantize(net.call(F.relu, c1), 0, 2, 4, name="relu")
    w2 = net.parameter("conv2.weight", torch.randn(4, 4, 3, 3) * 0.3, 1, 7 - column, column)
    c2 = net.call(F.conv2d, r1, w2, None, (1, 1), (1, 1), (1, 1), 1, path="conv2")
    joined = net.quantize(net.call(F.relu, net.call(operator.add, c2, r1)), 0, 3, 4, name="add")
    flat = net.call(torch.mean, joined, (2, 3), False)
    wl = net.parameter("fc.weight", torch.randn(5, 4) * 0.3, 1, 0, 7)
    bl = net.parameter("fc.bias", torch.randn(5), 1, 1, 10)
    return net.done(net.quantize(net.call(F.linear, flat, wl, bl, path="fc"), 1, 3, 4, name="fc"))


def nodes(model: Any, kind: str) -> list[Any]:
    return [n for n in model.graph.node if n.op_type == kind]


def initializer(model: Any, name: str) -> np.ndarray[Any, Any]:
    from onnx import numpy_helper

    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def attribute(node: Any, name: str) -> Any:
    from onnx import helper

    return helper.get_attribute_value(next(a for a in node.attribute if a.name == name))


# ---- values
@pytest.mark.parametrize("first", [None, (1, 8, 10)])
def test_standard_quant_nodes_hold_the_published_vectors(first: tuple[int, int, int] | None) -> None:
    """All modes a Quant can express, on inputs off any grid and behind a finer grid, through strict files."""
    vectors = {k: v for k, v in published_vectors().items() if k[3] in ROUNDINGS and k[4] in ("SAT", "SAT_SYM")}
    vectors = {k: v for k, v in vectors.items() if (k[0], k[1] + k[2]) != (1, 0)}  # one signed bit: our own domain
    if first is not None:
        vectors = {k: {x: q for x, q in v.items() if abs(x) < 256 and x * 1024 == np.floor(x * 1024)} for k, v in vectors.items()}
    gm = vector_net(vectors, first)
    model = to_qonnx(gm, strict=True, batch=len({x for cases in vectors.values() for x in cases}))
    assert {n.domain for n in model.graph.node} == STANDARD
    assert wrong_vectors(vectors, lambda x: run_qonnx(model, x)) == []


@pytest.mark.parametrize(("rounding", "mode"), list(zip(ROUNDINGS, ("FLOOR", "DOWN", "FLOOR", "ROUND", "HALF_UP", "HALF_DOWN"))))
def test_ties_and_their_neighbours(rounding: str, mode: str) -> None:
    """Every tie of a format and the floats next to it; 0.5 - 2^-25 is what a plain `floor(x + 0.5)` gets wrong."""
    ties = (np.arange(-9, 9) + 0.5).astype(np.float32)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(-99)), np.nextafter(ties, np.float32(99))])[:, None]
    net = FrozenNet()
    gm = net.done(net.quantize(net.input("x", 1), 1, 3, 0, rounding))
    model = to_qonnx(gm, strict=True, batch=len(x))
    assert attribute(nodes(model, "Quant")[-1], "rounding_mode").decode() == mode
    assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_equal_torch(name: str) -> None:
    gm = operator_net(name, 8)
    inputs = operator_inputs(name, 8)
    model = to_qonnx(gm, strict=True, batch=len(inputs[0]))
    assert float32_problems(gm) == []
    assert {n.domain for n in model.graph.node} <= STANDARD
    for expected, got in zip(double_reference(gm, *inputs), run_qonnx(model, inputs), strict=True):
        assert expected.shape == got.shape
        assert (expected == got).all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_residual_network(rounding: str) -> None:
    gm = residual_net()
    for module in gm.modules():
        if hasattr(module, "rounding"):
            module.rounding = rounding
    x = stress_values((32, 2, 8, 8), 5, 4.0)
    (expected,) = double_reference(gm, x)
    assert np.unique(expected).size > 15
    assert (run_qonnx(to_qonnx(gm, strict=True, batch=32), [x])[0] == expected).all()


def test_a_short_last_piece_and_a_batch_of_one() -> None:
    gm = residual_net()
    x = stress_values((7, 2, 8, 8), 5, 4.0)
    (expected,) = double_reference(gm, x)
    assert (run_qonnx(to_qonnx(gm, batch=4), [x])[0] == expected).all()
    assert (run_qonnx(to_qonnx(gm), [x[:2]])[0] == expected[:2]).all()


def test_qonnx_transformations_change_no_bit() -> None:
    """cleanup_model, and the conversion to channels-last that hardware flows start with."""
    gm = residual_net()
    x = stress_values((8, 2, 8, 8), 5, 4.0)
    (expected,) = double_reference(gm, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
        from qonnx.util.cleanup import cleanup_model

        clean = cleanup_model(ModelWrapper(to_qonnx(gm, strict=True, batch=8)))
        assert (run_qonnx(clean.model, [x])[0] == expected).all()
        turned = clean.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True))
        assert "qonnx.custom_op.channels_last" in {n.domain for n in turned.graph.node}
        assert (run_qonnx(turned.model, [x.transpose(0, 2, 3, 1)])[0] == expected).all()


# ---- the file
def test_structure_of_the_file() -> None:
    model = to_qonnx(residual_net(), strict=True)
    assert model.ir_version == 10
    assert {o.domain: o.version for o in model.opset_import} == {"": 17, QUANT_DOMAIN: 1}
    assert [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Relu")] == [
        "conv1",
        "relu",
        "conv2",
        "relu_1",
        "fc/matmul",
    ]
    kinds = {n.op_type for n in model.graph.node}
    assert kinds == {"Quant", "Add", "Conv", "Relu", "AveragePool", "Reshape", "MatMul"}
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    tensors = [t for n in model.graph.node for t in (*n.input, *n.output)]
    assert set(tensors) <= set(known)
    assert all(d.HasField("dim_value") for v in known.values() for d in v.type.tensor_type.shape.dim)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_parameters_keep_their_names_and_their_own_widths() -> None:
    gm = residual_net()
    model = to_qonnx(gm, strict=True)
    quants = {n.name: n for n in nodes(model, "Quant")}
    weight = quants["conv1.weight_quantizer"]
    assert weight.input[0] == "conv1.weight"
    assert initializer(model, weight.input[1]).tolist() == [[[[2.0**-f]]] for f in (6, 7, 8, 9)]
    assert initializer(model, weight.input[3]).item() == 8
    assert attribute(weight, "signed") == 1
    assert attribute(weight, "narrow") == 0
    bias = quants["conv1.bias_quantizer"]  # widths 13, 13, 13, 17: one that holds all
    assert initializer(model, bias.input[1]).tolist() == [2.0**-f for f in (11, 12, 13, 14)]
    assert initializer(model, bias.input[3]).item() == 17
    assert initializer(model, "fc.weight.T").shape == (4, 5)
    assert (initializer(model, "conv1.weight") == gm.get_submodule("conv1").weight.numpy()).all()


def test_a_linear_layer_with_channel_formats_scales_its_columns() -> None:
    net = FrozenNet()
    q = net.quantize(net.input("x", 3), 1, 2, 5)
    w = net.parameter("fc.weight", torch.tensor([[0.5, 0.25, 0.0], [1.5, -1.0, 3.0]]), 1, [[0.0], [2.0]], [[7.0], [5.0]])
    gm = net.done(net.call(F.linear, q, w, None))
    model = to_qonnx(gm, strict=True)
    (quant,) = [n for n in nodes(model, "Quant") if n.name == "fc.weight_quantizer"]
    assert initializer(model, quant.input[1]).tolist() == [[2.0**-7, 2.0**-5]]


def test_a_pruned_channel_and_a_zero_parameter() -> None:
    """Zero width: the channel shares the width of the others, a parameter of zeros needs no Quant."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 2, 4, 4), 1, 2, 5)
    weight = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    formats = [torch.tensor(t).reshape(3, 1, 1, 1) for t in ([1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [7.0, 0.0, 6.0])]
    w = net.parameter("c.weight", weight, *formats)
    b = net.parameter("c.bias", torch.zeros(3), 0, 0, 0)
    gm = net.done(net.call(F.conv2d, q, w, b, (1, 1), (0, 0), (1, 1), 1))
    model = to_qonnx(gm, strict=True, batch=6)
    assert [n.name for n in nodes(model, "Quant")] == ["x.quantizer/floor", "x.quantizer", "c.weight_quantizer"]
    assert initializer(model, "c.weight_quantizer.scale").reshape(-1).tolist() == [2.0**-7, 2.0**-7, 2.0**-6]
    x = stress_values((6, 2, 4, 4), 5, 4.0)
    assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()


def test_a_zero_width_value_is_a_constant_zero() -> None:
    net = FrozenNet()
    gm = net.done(
        {"none": net.quantize(net.input("x", 3), 0, 0, 0), "bipolar": net.quantize(net.input("y", 3), 1, 2, -2, "RND", "SAT_SYM")}
    )
    model = to_qonnx(gm, strict=True)
    assert [n.op_type for n in model.graph.node] == ["Clip", "Clip"]
    huge = np.array([[-np.inf, 3.0, np.inf]], dtype=np.float32)
    assert not np.stack(run_qonnx(model, [huge, huge])).any()


def test_no_signed_quant_has_one_bit() -> None:
    """qonnx reads one signed bit as bipolar {-1, 1}: {-1, 0} is our own operator, and a parameter is declared with two bits."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 2), 1, 0, 0)
    w = net.parameter("w", torch.tensor([[-1.0, 0.0], [0.0, -1.0]]), 1, 0, 0)
    gm = net.done(net.call(F.linear, q, w, None))
    model = to_qonnx(gm, batch=60)
    assert [(n.op_type, n.name) for n in model.graph.node][:2] == [("FixedPoint", "x.quantizer"), ("Quant", "w_quantizer")]
    assert initializer(model, "w_quantizer.bits").item() == 2
    x = stress_values((60, 2), 0, 1.0)
    assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()
    with pytest.raises(LoweringError, match="bipolar"):
        to_qonnx(gm, strict=True)


def test_a_shared_parameter_is_written_once() -> None:
    net = FrozenNet()
    q = net.quantize(net.input("x", 4), 1, 1, 3)
    w = net.parameter("w", torch.randn(4, 4, generator=torch.Generator().manual_seed(3)), 1, 1, 2)
    once = net.quantize(net.call(F.linear, q, w, None), 1, 2, 3, name="mid")
    gm = net.done(net.call(F.linear, once, w, None))
    model = to_qonnx(gm, strict=True, batch=40)
    assert [i.name for i in model.graph.initializer if i.name.startswith("w.")] == ["w.T"]
    x = stress_values((40, 4), 3, 2.0)
    assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()


def test_rounding_that_can_not_happen_is_left_out() -> None:
    """A quantizer behind a coarser grid only saturates: a lone Quant FLOOR, no adder."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 2), 1, 3, 1, "TRN")
    gm = net.done(net.quantize(q, 1, 1, 4, "RND", name="narrow"))
    model = to_qonnx(gm, strict=True)
    assert [n.op_type for n in model.graph.node] == ["Quant", "Quant"]


@pytest.mark.parametrize("overflow", ["WRAP", "SAT_ZERO", "WRAP_SM"])
def test_overflow_that_can_not_happen_is_a_standard_quant(overflow: str) -> None:
    """3 x |q| stays below 2^4: every overflow mode is SAT; one bit less and it is not."""
    for i, proven in ((4, True), (3, False)):
        net = FrozenNet()
        q = net.quantize(net.input("x", 3), 1, 2, 3)
        gm = net.done(net.quantize(net.call(operator.mul, q, 3), 1, i, 2, "RND", overflow, name="last"))
        model = to_qonnx(gm, batch=50)
        assert ({n.domain for n in model.graph.node} == STANDARD) == proven
        x = stress_values((50, 3), 3, 4.0)
        assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()


def test_bytes_are_the_same_every_time_and_the_file_is_whole(tmp_path: Path) -> None:
    import onnx

    made = to_qonnx(residual_net(), tmp_path / "a.onnx", strict=True)
    to_qonnx(residual_net(), tmp_path / "b.onnx", strict=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert onnx.load(tmp_path / "a.onnx") == made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


# ---- names of inputs and outputs
Pair = namedtuple("Pair", ["mean", "logits"])


def two_input_net(result: str) -> GraphModule:
    net = FrozenNet()
    a, b = net.quantize(net.input("image", 4), 1, 1, 3), net.quantize(net.input("extra", 4), 1, 1, 4)
    s, d = net.call(operator.add, a, b), net.call(operator.sub, a, b)
    made: dict[str, Any] = {
        "one": s,
        "tuple": (s, d),
        "list": [d, s],
        "dict": {"sum": s, "difference": d},
        "named": Pair(s, d),
        "nested": {"heads": (s, d), "none": None},
        "twice": (s, s),
        "clash": {"image": s, "extra": d},
    }
    return net.done(made[result])


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ("one", ["output"]),
        ("tuple", ["output_0", "output_1"]),
        ("list", ["output_0", "output_1"]),
        ("dict", ["sum", "difference"]),
        ("named", ["mean", "logits"]),
        ("nested", ["heads_0", "heads_1"]),
        ("twice", ["output_0", "output_1"]),
        ("clash", ["image_out", "extra_out"]),
    ],
)
def test_inputs_and_outputs_keep_their_names_and_order(result: str, names: list[str]) -> None:
    gm = two_input_net(result)
    model = to_qonnx(gm, strict=True, batch=30)
    assert [i.name for i in model.graph.input] == ["image", "extra"]
    assert [o.name for o in model.graph.output] == names
    inputs = [stress_values((30, 4), 3, 2.0, seed) for seed in (1, 2)]
    for a, b in zip(double_reference(gm, *inputs), run_qonnx(model, inputs), strict=True):
        assert (a == b).all()


def test_an_unused_input_stays_in_the_interface() -> None:
    net = FrozenNet()
    net.input("unused", 3)
    gm = net.done(net.quantize(net.input("x", 2), 1, 2, 3))
    model = to_qonnx(gm, strict=True, batch=5)
    assert [i.name for i in model.graph.input] == ["unused", "x"]
    inputs = [np.zeros((5, 3)), stress_values((5, 2), 3, 4.0)]
    assert (run_qonnx(model, inputs)[0] == double_reference(gm, *inputs)[0]).all()


# ---- refusals
def test_strict_names_every_quantizer_that_a_quant_can_not_express() -> None:
    net = FrozenNet()
    x = net.input("x", 3)
    made = [
        net.quantize(x, 1, 2, [[1, 2, 3]], name="widths"),
        net.quantize(x, [[1, 0, 1]], [[2, 3, 2]], 1, name="signs"),
        net.quantize(x, 1, 2, 3, "RND", "WRAP", name="wrap"),
        net.quantize(x, 1, 2, 3, "RND", "SAT_ZERO", name="zero"),
        net.quantize(x, 1, 2, 3, "RND_MIN_INF", "WRAP_SM", name="both"),
        net.quantize(x, 1, 2, [[3, 3, -3]], name="partly"),
        net.quantize(x, 1, [[2, 1, 0]], [[1, 2, 3]], name="fine"),
    ]
    gm = net.done(tuple(made))
    with pytest.raises(LoweringError) as caught:
        to_qonnx(gm, strict=True)
    found = [(p.place.node, p.code) for p in caught.value.problems]
    by_name = {node.name: str(node.target).split(".")[1] for node in gm.graph.nodes if node.op == "call_module"}
    assert [(by_name[str(node)], code) for node, code in found] == [
        ("widths", "PQ205"),
        ("signs", "PQ205"),
        ("wrap", "PQ207"),
        ("zero", "PQ207"),
        ("both", "PQ207"),
        ("both", "PQ207"),
        ("partly", "PQ205"),
    ]
    assert "4, 5, 6 bits" in caught.value.problems[0].what
    model = to_qonnx(gm, batch=64)
    assert {o.domain for o in model.opset_import} == STANDARD | {OWN_DOMAIN}
    values = stress_values((64, 3), 3, 4.0)
    for expected, got in zip(double_reference(gm, values), run_qonnx(model, [values]), strict=True):
        assert (expected == got).all()


def test_weights_of_several_widths_are_refused_by_strict_and_exact_otherwise() -> None:
    net = FrozenNet()
    q = net.quantize(net.input("x", 3), 1, 2, 3)
    weight = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    w = net.parameter("fc.weight", weight, 1, [[0, 1, 2], [1, 1, 1]], [[7, 3, 4], [2, 5, 6]])
    gm = net.done(net.call(F.linear, q, w, None, path="fc"))
    with pytest.raises(LoweringError) as caught:
        to_qonnx(gm, strict=True)
    assert caught.value.code == "PQ205"
    model = to_qonnx(gm, batch=40)
    assert [n.name for n in nodes(model, "FixedPoint")] == ["fc.weight_quantizer"]
    x = stress_values((40, 3), 3, 4.0)
    assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()


def test_inexact_operators_are_refused_all_at_once() -> None:
    net = FrozenNet()
    q = net.quantize(net.input("x", 2, 3, 3), 1, 2, 3)
    made = [
        net.call(F.avg_pool2d, q, (3, 3), (3, 3), (0, 0), False, True, path="pool"),
        net.call(operator.truediv, q, 3.0),
        net.call(torch.sin, q, path="wave"),
    ]
    with pytest.raises(LoweringError) as caught:
        to_qonnx(net.done(tuple(made)))
    assert [(p.code, p.place.module) for p in caught.value.problems] == [("PQ202", "pool"), ("PQ202", ""), ("PQ201", "wave")]
    assert all(p.place.line and p.remedy for p in caught.value.problems)


def test_a_function_outside_of_the_dialect_is_refused_in_a_float_network_too() -> None:
    net = FrozenNet()
    gm = net.done(net.call(torch.sin, net.input("x", 2), path="wave"))
    with pytest.raises(LoweringError, match="PQ201: QONNX has no operator for 'sin'"):
        to_qonnx(gm)


def test_indices_and_paddings_outside_of_the_dialect_are_refused() -> None:
    net = FrozenNet()
    x = net.input("x", 3, 4, 4)
    gm = net.done((net.call(operator.getitem, x, (slice(None), 1)), net.call(F.pad, x, (1, 1, 1, 1), "reflect")))
    with pytest.raises(LoweringError) as caught:
        to_qonnx(gm)
    assert [p.code for p in caught.value.problems] == ["PQ202", "PQ202"]


def test_a_weight_computed_from_data_is_refused() -> None:
    net = FrozenNet()
    x = net.input("x", 3)
    gm = net.done(net.call(F.linear, x, x, None))
    with pytest.raises(LoweringError, match="PQ202: its weight is computed from data"):
        to_qonnx(gm)


def test_an_input_of_unknown_shape_is_refused() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(F.relu, (graph.placeholder("x"),)))
    with pytest.raises(LoweringError, match="PQ409"):
        to_qonnx(GraphModule(torch.nn.Module(), graph))


def test_a_result_that_is_no_tensor_is_refused() -> None:
    net = FrozenNet()
    q = net.quantize(net.input("x", 2), 1, 2, 3)
    with pytest.raises(LoweringError, match="'output_1' is no tensor"):
        to_qonnx(net.done((q, 3)))


def test_what_float32_may_round_is_told_beforehand() -> None:
    """Execution of QONNX is float32: 20-bit operands make 40-bit products."""
    gm = operator_net("linear", 20)
    problems = float32_problems(gm)
    assert [(p.code, p.place.node) for p in problems] == [("PQ303", "linear"), ("PQ303", "pq_last_quantizer")]
    assert "needs 4" in problems[0].what


def test_rounding_at_the_edge_of_float32_is_told() -> None:
    """RND of real numbers passes through half codes: 23 bits of magnitude are the last that fit."""
    for fraction, expected in ((22, 0), (24, 1)):
        net = FrozenNet()
        assert len(float32_problems(net.done(net.quantize(net.input("x", 2), 0, 0, fraction)))) == expected


@pytest.mark.parametrize(
    ("f", "code", "zeros", "f_out", "exact"),
    [
        (4, 100, 0, 2, True),
        (4, 2**24 - 1, 0, 2, False),  # the sum passes 2^24 units
        (4, 2**24 - 4, 0, 2, True),
        (4, 2**23, 0, 4, False),  # half an lsb lies below the unit
        (4, 2**23 - 1, 0, 4, True),
        (20, 2**26, 12, 2, True),  # a coarse grid written at a fine lsb
        (0, 0, 63, 22, True),
    ],
)
def test_half_sum_is_exact_in_float32(f: int, code: int, zeros: int, f_out: int, exact: bool) -> None:
    codes = np.array([code], dtype=np.int64)
    interval = Interval(f, -codes, codes, np.array([zeros], dtype=np.int64))
    assert half_sum_is_exact(interval, np.float64(f_out)) == exact
    if exact:
        x, half = np.float32(code * 2.0**-f), np.float32(2.0 ** (-f_out - 1))
        assert Fraction(float(x + half)) == Fraction(code) / Fraction(2) ** f + Fraction(1, 2 ** (f_out + 1))


def test_channels_whose_tie_lies_below_float32_are_told() -> None:
    """x + lsb/2 has 25 bits in the second channel: it would round up although nothing is to be rounded there."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 2), 1, [[4, 20]], [[8, 4]], "TRN")
    gm = net.done(net.quantize(q, 1, 20, 4, "RND", name="last"))
    assert [p.place.node for p in float32_problems(gm)] == ["pq_last_quantizer"]


def test_onnxruntime_refuses_a_qonnx_file_with_a_reason() -> None:
    with pytest.raises(LoweringError, match=r"qonnx\.custom_op\.general") as caught:
        run_onnxruntime(to_qonnx(residual_net()), [np.zeros((1, 2, 8, 8))])
    assert caught.value.code == "PQ201"


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(InputError, match="'x' has shape \\(1, 3, 8, 8\\)"):
        run_qonnx(to_qonnx(residual_net()), [np.zeros((1, 3, 8, 8))])


def test_names_follow_the_modules_of_the_user() -> None:
    """Modules by their path and call site, functions inside of a container by the container's path, indices as in state_dict."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 3), 1, 2, 3)
    first = net.call(F.relu, q, path="layers.0.relu")
    second = net.call(F.relu, net.call(operator.add, first, q, path="layers.0"), path="layers.0.relu")
    set_info(second, NodeInfo(path="layers.0.relu", site=2))
    gm = net.done(net.quantize(net.call(operator.neg, second), 1, 3, 3, name="layers._0.relu_2"))
    names = [n.name for n in to_qonnx(gm).graph.node if not n.name.startswith("x.")]
    assert names == ["layers.0.relu", "layers.0.add", "layers.0.relu@2", "neg", "layers.0.relu_2.quantizer"]
