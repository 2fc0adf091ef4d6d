"""QONNX execution: equal to torch and to the published vectors bit for bit, and a warning where float32 ends."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pquant_fx.errors import InputError, LoweringError
from pquant_fx.graph.intervals import Interval
from pquant_fx.lower.onnx.precision import half_sum_is_exact
from pquant_fx.lower.onnx.qonnx import QUANT_DOMAIN, float32_problems, to_qonnx
from pquant_fx.lower.onnx.run import run_onnxruntime, run_qonnx
from tests.frozen_graphs import FrozenNet, double_reference, published_vectors, stress_values, vector_net, wrong_vectors
from tests.frozen_operators import OPERATORS, operator_inputs, operator_net, residual_net

STANDARD = {"", QUANT_DOMAIN}
ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_INF", "RND_ZERO")


def nodes(model: Any, kind: str) -> list[Any]:
    return [n for n in model.graph.node if n.op_type == kind]


def attribute(node: Any, name: str) -> Any:
    from onnx import helper

    return helper.get_attribute_value(next(a for a in node.attribute if a.name == name))


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
