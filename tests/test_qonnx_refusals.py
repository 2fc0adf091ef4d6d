"""What QONNX can not say exactly is refused by name, or goes to our own operator; nothing is changed silently."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.errors import LoweringError
from pquant_fx.lower.onnx.qonnx import OWN_DOMAIN, QUANT_DOMAIN, to_qonnx
from pquant_fx.lower.onnx.run import run_qonnx
from tests.frozen_graphs import FrozenNet, double_reference, stress_values

STANDARD = {"", QUANT_DOMAIN}


def nodes(model: Any, kind: str) -> list[Any]:
    return [n for n in model.graph.node if n.op_type == kind]


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
