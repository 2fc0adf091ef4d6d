"""QONNX files executed in float64: every operator on operands that float32 can not hold, by qonnx's own walk."""

from __future__ import annotations

import numpy as np
import pytest

from pquant_fx.lower.onnx.double import DOUBLE_DOMAIN, in_double
from pquant_fx.lower.onnx.qonnx import QUANT_DOMAIN, qonnx_emission, to_qonnx
from pquant_fx.lower.onnx.run import run_qonnx
from pquant_fx.lower.onnx.trace import traced
from tests.frozen_graphs import double_reference
from tests.frozen_operators import OPERATORS, operator_inputs, operator_net


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_beyond_float32(name: str) -> None:
    """The operands have 25 bits; what differs from torch in float64 would be a rounding on the way."""
    gm = operator_net(name, 12, widened=True)
    inputs = operator_inputs(name, 12)
    model = in_double(to_qonnx(gm, batch=len(inputs[0])))
    got = run_qonnx(model, inputs)
    assert [v.dtype for v in got] == [np.float64, np.float64]
    for expected, value in zip(double_reference(gm, *inputs), got, strict=True):
        assert (expected == value).all()


def test_the_same_nodes_in_the_same_order_and_the_file_itself_untouched() -> None:
    model = to_qonnx(operator_net("conv2d", 12, widened=True), batch=3)
    before = model.SerializeToString()
    made = in_double(model)
    assert model.SerializeToString() == before
    assert [(n.name, n.op_type) for n in made.graph.node] == [(n.name, n.op_type) for n in model.graph.node]
    moved = {(a.domain, a.op_type) for a, b in zip(model.graph.node, made.graph.node) if a.domain != b.domain}
    assert moved == {("", "Conv"), (QUANT_DOMAIN, "Quant")}
    assert {n.domain for n in made.graph.node} <= {"", DOUBLE_DOMAIN, "pquant_fx.lower.qonnx_ops"}
    assert {t.data_type for t in made.graph.initializer} <= {7, 11}


def test_every_value_of_a_network_can_be_asked_for() -> None:
    gm = operator_net("conv2d", 8)
    inputs = operator_inputs("conv2d", 8)
    model, named = traced(qonnx_emission(gm, len(inputs[0])))
    values = named(run_qonnx(model, inputs))
    operators = {n.name for n in gm.graph.nodes if n.op in ("call_module", "call_function")}
    assert len(operators & set(values)) >= 3
    returned = gm.graph.output_node().all_input_nodes
    for node, expected in zip(returned, double_reference(gm, *inputs), strict=True):
        assert (values[node.name] == expected).all()
