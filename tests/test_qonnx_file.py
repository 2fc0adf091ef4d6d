"""What stands in a QONNX file: nodes, formats, names, shapes, bytes."""

from __future__ import annotations

import operator
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.errors import LoweringError
from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.lower.onnx.qonnx import QUANT_DOMAIN, to_qonnx
from pquant_fx.lower.onnx.run import run_qonnx
from tests.frozen_graphs import FrozenNet, double_reference, stress_values
from tests.frozen_operators import residual_net

STANDARD = {"", QUANT_DOMAIN}


def nodes(model: Any, kind: str) -> list[Any]:
    return [n for n in model.graph.node if n.op_type == kind]


def initializer(model: Any, name: str) -> np.ndarray[Any, Any]:
    from onnx import numpy_helper

    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def attribute(node: Any, name: str) -> Any:
    from onnx import helper

    return helper.get_attribute_value(next(a for a in node.attribute if a.name == name))


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
    bias = quants["conv1.bias_quantizer"]
    assert initializer(model, bias.input[1]).tolist() == [2.0**-f for f in (11, 12, 13, 14)]
    assert initializer(model, bias.input[3]).item() == 15
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
    """qonnx reads one signed bit as bipolar {-1, 1}: {-1, 0} is our own operator, and never a type of two bits."""
    net = FrozenNet()
    q = net.quantize(net.input("x", 2), 1, 0, 0)
    w = net.parameter("w", torch.tensor([[-1.0, 0.0], [0.0, -1.0]]), 1, 0, 0)
    gm = net.done(net.call(F.linear, q, w, None))
    model = to_qonnx(gm, batch=60)
    assert [(n.op_type, n.name) for n in model.graph.node][:2] == [("FixedPoint", "x.quantizer"), ("FixedPoint", "w_quantizer")]
    x = stress_values((60, 2), 0, 1.0)
    assert (run_qonnx(model, [x])[0] == double_reference(gm, x)[0]).all()
    with pytest.raises(LoweringError, match="bipolar") as caught:
        to_qonnx(gm, strict=True)
    assert [p.place.node for p in caught.value.problems] == ["pq_x_quantizer", "pq_w_quantizer"]


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
