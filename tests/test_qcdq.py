"""QCDQ files: the same bits in onnxruntime, with its graph optimizations on, or a refusal by name."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import pquant_fx as pq
from pquant_fx.lower.onnx.qcdq import to_qcdq
from pquant_fx.lower.onnx.run import run_onnxruntime
from tests.frozen_graphs import FrozenNet, double_reference, stress_values
from tests.frozen_operators import OPERATORS, operator_inputs, operator_net, residual_net
from tests.models import MLP, Concat, MultiIO, ResidualDigits

ROUNDINGS = ("RND_CONV", "RND", "TRN", "TRN_ZERO", "RND_INF", "RND_ZERO", "RND_MIN_INF")


@pytest.mark.parametrize("rounding", ["RND_CONV", "RND", "TRN"])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bits", [6, 8])
def test_every_operator(name: str, rounding: str, bits: int) -> None:
    gm = operator_net(name, bits, rounding)
    inputs = operator_inputs(name, bits, 64)
    for a, b in zip(double_reference(gm, *inputs), run_onnxruntime(to_qcdq(gm), inputs), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("k", "i", "f"), [(1, 2, 5), (0, 2, 6), (1, 1, 2), (0, 0, 3), (1, 3, -1)])
@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("opset", [13, 21])
def test_every_mode_on_ties_and_saturating_values(rounding: str, k: int, i: int, f: int, overflow: str, opset: int) -> None:
    net = FrozenNet()
    gm = net.done(net.quantize(net.input("x", 4), k, i, f, rounding, overflow))
    x = stress_values((400, 4), f, 2.0**i)
    assert np.array_equal(run_onnxruntime(to_qcdq(gm, opset=opset), [x])[0], double_reference(gm, x)[0])


@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize(("k", "bits"), [(1, 9), (0, 12), (1, 16), (0, 16)])
def test_sixteen_bits_in_opset_21(k: int, bits: int, overflow: str) -> None:
    net = FrozenNet()
    gm = net.done(net.quantize(net.input("x", 4), k, 2, bits - 2 - k, "RND", overflow))
    x = stress_values((400, 4), bits - 2 - k, 4.0)
    assert np.array_equal(run_onnxruntime(to_qcdq(gm, opset=21), [x])[0], double_reference(gm, x)[0])


def test_one_scale_a_channel() -> None:
    net = FrozenNet()
    f = torch.tensor([3.0, 5.0, 4.0]).reshape(1, 3, 1, 1)
    gm = net.done(net.quantize(net.input("x", 3, 2, 2), 1, 6 - f, f, "RND_CONV"))
    x = stress_values((60, 3, 2, 2), 4, 4.0)
    model = to_qcdq(gm)
    assert Counter(n.op_type for n in model.graph.node) == {"QuantizeLinear": 1, "Clip": 1, "DequantizeLinear": 1}
    assert np.array_equal(run_onnxruntime(model, [x])[0], double_reference(gm, x)[0])


def test_what_stands_in_the_file() -> None:
    """Rounding half to even needs nothing in front at the input; weights of 7 bits are int8, those of 8 are not."""
    torch.manual_seed(0)
    settings = {"quantization_parameters": {"round_mode": "RND_CONV", "default_weight_bits": 7}, "layers": {"2": {"weight_bits": 8}}}
    frozen = pq.compile(MLP(), {"preset": "fixed8", **settings}, torch.randn(64, 16)).freeze()
    model = frozen.to_qcdq()
    kinds = [n.op_type for n in model.graph.node]
    assert kinds[0] == "QuantizeLinear"
    assert kinds.count("Round") == kinds.count("QuantizeLinear") - 1
    assert not set(kinds) & {"Floor", "Ceil"}
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert (types["0.weight.T"], types["2.weight.T"], types["0.bias"]) == (3, 1, 1)  # INT8, FLOAT, FLOAT
    assert {n.domain for n in model.graph.node} == {""}


@pytest.mark.parametrize(
    ("model", "shapes"),
    [(MLP, {"input": (16,)}), (Concat, {"x": (8,)}), (MultiIO, {"a": (6,), "b": (4,)}), (ResidualDigits, {"x": (1, 8, 8)})],
)
@pytest.mark.parametrize("config", ["fixed8", {"preset": "fixed_per_weight", "quantization_parameters": {"round_mode": "RND_CONV"}}])
def test_whole_models(model: type, shapes: dict[str, tuple[int, ...]], config: object) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(64, *shape) for shape in shapes.values()]
    frozen = pq.compile(model(), config, tuple(inputs)).freeze()
    x = [torch.cat([v, 30 * v, (v * 64).round() / 64 + 2**-7]) for v in inputs]
    expected = torch.utils._pytree.tree_leaves(frozen(*x))
    for a, b in zip(expected, run_onnxruntime(frozen.to_qcdq(), [v.numpy() for v in x]), strict=True):
        assert np.array_equal(a.numpy(), b)


def test_a_residual_network_with_a_scale_for_every_output_channel() -> None:
    gm = residual_net()
    x = stress_values((200, 2, 8, 8), 5, 4.0)
    assert np.array_equal(run_onnxruntime(to_qcdq(gm, opset=21), [x])[0], double_reference(gm, x)[0])


def test_what_it_can_not_say_is_refused_all_at_once() -> None:
    net = FrozenNet()
    x = net.input("x", 4)
    gm = net.done(
        {
            "wide": net.quantize(x, 1, 2, 9, name="wide"),
            "wider": net.quantize(x, 1, 2, 17, name="wider"),
            "several": net.quantize(x, 1, 2, [[3.0, 4.0, 5.0, 6.0]], name="several"),
            "wraps": net.quantize(x, 1, 2, 3, "TRN", "WRAP", name="wraps"),
        }
    )
    with pytest.raises(pq.LoweringError) as caught:
        to_qcdq(gm)
    assert {p.place.node: p.code for p in caught.value.problems} == {
        "pq_wide_quantizer": "PQ205",
        "pq_wider_quantizer": "PQ205",
        "pq_several_quantizer": "PQ205",
        "pq_wraps_quantizer": "PQ207",
    }
    assert "opset=21" in caught.value.problems[0].remedy


def test_it_is_an_engine_of_verify_and_a_target_of_check() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    report = pq.compile(MLP(), "fixed8", x).freeze().verify(x, targets=("integer", "qcdq"))
    assert report.ok
    assert [row.engine for row in report.rows] == ["integer", "qcdq"]
    assert pq.check(MLP(), x, target="qcdq").ok
    wraps = {"preset": "fixed8", "quantization_parameters": {"overflow_mode_data": "WRAP"}}
    assert "PQ207" in {p.code for p in pq.check(MLP(), x, target="qcdq", config=wraps).problems}
