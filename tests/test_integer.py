"""The integer interpreter equals torch in float64, bit for bit, for every operator, mode and granularity."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pquant_fx.errors import InputError, LoweringError
from pquant_fx.graph.analysis import analyse
from pquant_fx.lower.exact_forward import compute_dtype
from pquant_fx.lower.integer import Codes, IntegerInterpreter, real
from tests.frozen_graphs import FrozenNet, double_reference, stress_values
from tests.unfrozen_graphs import residual_cnn

ROUNDINGS = ("TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_MIN_INF", "RND_INF", "S_RND", "S_RND_CONV")
OVERFLOWS = ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP", "WRAP_SM")


def assert_equal(gm: torch.fx.GraphModule, *inputs: Any) -> list[Codes]:
    outputs = IntegerInterpreter(gm).run(*inputs)
    flat = list(outputs) if isinstance(outputs, tuple) and not isinstance(outputs, Codes) else [outputs]
    expected = double_reference(gm, *inputs)
    assert len(flat) == len(expected)
    for got, want in zip(flat, expected):
        assert got.codes.dtype == np.int64
        assert got.codes.shape == want.shape
        assert np.array_equal(real(*got), want)
    return flat


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_mode_per_channel_and_per_element(rounding: str, overflow: str) -> None:
    """Off-grid inputs first, then codes of a finer and of a coarser grid, ties and overflows included."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 3, 4), 1, 3, [[[6.0], [5.0], [7.0]]], name="first", rounding=rounding, overflow=overflow)
    k = 1 if overflow == "WRAP_SM" else [[[1.0], [0.0], [1.0]]]
    y = net.quantize(x, k, [[[1.0], [2.0], [-1.0]]], [[[3.0], [2.0], [4.0]]], rounding, overflow, name="channel")
    i = torch.arange(12.0).reshape(1, 3, 4) % 4 - 2
    z = net.quantize(x, 1, i, 4 - i, rounding, overflow, name="element")
    u = net.quantize(net.call(operator.mul, y, 0.375), 1, 1, 3, rounding, overflow, name="product")
    gm = net.done((x, y, z, u))
    assert_equal(gm, stress_values((200, 3, 4), 6, 8.0).astype(np.float64))


def test_zero_width_elements_are_zero() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 3), [0.0, 1.0, 1.0], [-2.0, 1.0, -5.0], [1.0, 3.0, 3.0])
    (got,) = assert_equal(net.done(x), np.array([[1.0, 1.0, -1.0], [-4.0, -0.3, 7.0]]))
    assert got.codes[:, 0].tolist() == got.codes[:, 2].tolist() == [0, 0]
    assert got.f == 3


def small_network() -> torch.fx.GraphModule:
    """Residual CNN: per-channel weights, grouped and strided convolutions, pools, concat, slices, two outputs."""
    torch.manual_seed(3)
    net = FrozenNet()
    x = net.quantize(net.input("x", 2, 8, 8), 1, 1, 6)
    w = net.parameter(
        "a.weight",
        torch.randn(4, 2, 3, 3) / 2,
        1,
        [[[[0.0]]], [[[1.0]]], [[[-1.0]]], [[[0.0]]]],
        [[[[7.0]]], [[[5.0]]], [[[9.0]]], [[[6.0]]]],
    )
    y = net.call(F.conv2d, x, w, net.parameter("a.bias", torch.randn(4), 1, 3, 12), (1, 1), (1, 1), (1, 1), 1)
    y = net.quantize(net.call(F.relu, y), 0, 2, 5, "RND_CONV")
    d = net.call(F.conv2d, y, net.parameter("b.weight", torch.randn(4, 1, 3, 3), 1, 1, 4), None, (1, 1), (2, 2), (2, 2), 4)
    s = net.quantize(net.call(operator.add, d, y), 1, 4, 4, "TRN")
    m = net.call(F.max_pool2d, s, (3, 3), (2, 2), (1, 1), (1, 1), True)
    a = net.call(F.avg_pool2d, s, (2, 2), (2, 2), (0, 0), False, True)
    both = net.call(torch.cat, (net.call(operator.getitem, m, (slice(None), slice(0, 2), slice(0, 4), slice(0, 4))), a), 1)
    h = net.call(F.leaky_relu, net.call(operator.sub, both, 1.5), 0.125)
    flat = net.quantize(
        net.call(torch.reshape, net.call(torch.permute, h, (0, 2, 3, 1)), (-1, 96)), 1, 3, 5, "RND_INF", "SAT_SYM", name="flat"
    )
    out = net.call(
        F.linear, flat, net.parameter("fc.weight", torch.randn(5, 96) / 8, 1, 0, 6), net.parameter("fc.bias", torch.randn(5), 1, 3, 11)
    )
    return net.done((out, net.call(torch.mean, h, (2, 3), False)))


def test_residual_network_equals_torch() -> None:
    x = np.random.default_rng(0).normal(size=(33, 2, 8, 8)) * 2
    out, pooled = assert_equal(small_network(), x)
    assert out.f == 11
    assert pooled.codes.shape == (33, 6)


def test_blocks_of_samples_join_seamlessly() -> None:
    gm = small_network()
    x = np.random.default_rng(0).normal(size=(10, 2, 8, 8))
    whole = IntegerInterpreter(gm)
    parts = IntegerInterpreter(gm)
    parts._samples = 3
    for a, b in zip(whole.run(x), parts.run(x)):
        assert np.array_equal(a.codes, b.codes)
    assert whole.run(x[:0])[0].codes.shape == (0, 5)


def test_trace_gives_every_value_under_its_name() -> None:
    gm = small_network()
    x = np.random.default_rng(0).normal(size=(7, 2, 8, 8))
    outputs, values = IntegerInterpreter(gm).run(x, trace=True)
    data = [n.name for n in gm.graph.nodes if n.op in ("call_function", "call_module") and n not in analyse(gm).constants]
    assert list(values) == data
    last = gm.graph.output_node().args[0][0].name
    assert np.array_equal(values[last], real(*outputs[0]))
    formats = analyse(gm)
    for node in gm.graph.nodes:
        if node.name in values:
            assert formats[node].contains(values[node.name])


@pytest.mark.parametrize(
    ("function", "rest", "sample"),
    [
        (operator.truediv, (4,), (3,)),
        (operator.truediv, (-0.5,), (3,)),
        (operator.neg, (), (3,)),
        (F.relu6, (), (3,)),
        (F.hardtanh, (-0.75, 2.5), (3,)),
        (F.leaky_relu, (-0.25,), (3,)),
        (F.leaky_relu, (2.0,), (3,)),
        (torch.sum, ((1,), True), (3, 4)),
        (torch.mean, ((2,), False), (3, 4)),
        (F.pad, ((1, -1, 0, 2), "constant", 0), (3, 4)),
        (F.max_pool1d, ((3,), (2,), (1,), (1,), False), (3, 5)),
        (F.avg_pool1d, ((2,), (1,), (1,), False, True), (3, 5)),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_single_operators_equal_torch(function: Any, rest: Any, sample: Any) -> None:
    for kif in ((1, 3, 4), (0, 3, -1)):
        net = FrozenNet()
        made = net.call(function, net.quantize(net.input("x", *sample), *kif), *rest)
        assert_equal(net.done(made), np.random.default_rng(1).normal(size=(64, *sample)) * 6)


def test_products_maxima_and_convolutions_in_one_dimension_equal_torch() -> None:
    torch.manual_seed(0)
    net = FrozenNet()
    a, b = net.quantize(net.input("a", 4, 6), 1, 1, 5), net.quantize(net.input("b", 6, 4), 1, 2, 3)
    product = net.call(torch.matmul, a, b)
    upper = net.call(torch.maximum, product, net.parameter("c", torch.tensor([0.5, -1.0, 0.25, 2.0])))
    lower = net.call(torch.minimum, a, net.parameter("d", torch.tensor(0.5)))
    conv = net.call(
        F.conv1d, a, net.parameter("w", torch.randn(6, 2, 3), 1, 2, 5), net.parameter("v", torch.randn(6), 1, 2, 4), (2,), (1,), (1,), 2
    )
    gm = net.done((product, upper, lower, conv))
    rng = np.random.default_rng(0)
    assert_equal(gm, rng.normal(size=(20, 4, 6)), rng.normal(size=(20, 6, 4)))


def test_accumulators_beyond_float64_run_in_integers() -> None:
    """A dot product of 56 bits: torch rounds, the interpreter does not; the oracle is Python's integers."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 4), 1, 3, 24)
    weights = np.random.default_rng(0).integers(-(2**26), 2**26, (2, 4)) * 2 + 1
    root = net.parameter("w", torch.from_numpy(weights.astype(np.float64)), torch.tensor(1.0).double(), 27, 0)
    made = net.call(F.linear, x, root, None)
    gm = _double(net, made)
    bound = max(sum(abs(int(w)) for w in row) for row in weights) * 2**27
    assert analyse(gm).bits(made) == bound.bit_length() > 53
    codes = np.random.default_rng(1).integers(-(2**27), 2**27, (50, 4))
    out = IntegerInterpreter(gm).run(codes * 2.0**-24)
    exact = [[sum(int(w) * int(c) for w, c in zip(row, sample)) for row in weights] for sample in codes]
    assert out.codes.tolist() == exact
    assert out.f == 24
    with pytest.raises(LoweringError) as caught:
        compute_dtype(gm)
    assert caught.value.code == "PQ303"
    assert caught.value.place.node == made.name


def _double(net: FrozenNet, made: Any) -> torch.fx.GraphModule:
    net.root.double()
    torch.set_default_dtype(torch.float64)
    try:
        return net.done(made)
    finally:
        torch.set_default_dtype(torch.float32)


def test_float_type_follows_the_widest_accumulator() -> None:
    for bits, expected in ((8, torch.float32), (12, torch.float64)):
        net = FrozenNet()
        w = net.parameter("w", torch.ones(1, 64), 1, 2, bits - 3)
        gm = net.done(net.call(F.linear, net.quantize(net.input("x", 64), 1, 0, bits + 3), w, None))
        assert compute_dtype(gm) == torch.float32  # a weight of one: its own zero bits do not count
        w = net.root.w.clone()
        w[0, 0] += 2.0 ** (3 - bits)
        net.root.w.copy_(w)
        gm.w.copy_(w)
        assert compute_dtype(gm) == expected
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, 1, 6)
    gm = net.done(x)
    gm.pq.x.quantizer.set_format(1, 3, 28)
    assert compute_dtype(gm) == torch.float64


class Pair(NamedTuple):
    first: Any
    second: Any


def test_outputs_keep_their_structure() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, 1, 6)
    c = net.parameter("c", torch.tensor([0.5, 0.25]))
    y = net.call(operator.add, x, c)
    gm = net.done({"pair": Pair(y, [x, 3, None]), "constant": c})
    out = IntegerInterpreter(gm).run(np.ones((4, 2)))
    assert list(out) == ["pair", "constant"]
    assert isinstance(out["pair"], Pair)
    assert isinstance(out["pair"].second, list)
    assert out["pair"].second[1:] == [3, None]
    assert real(*out["pair"].first).tolist() == [[1.5, 1.25]] * 4
    assert out["constant"].codes.tolist() == [2, 1]


def test_inputs_that_are_only_moved_stay_real_until_their_quantizer() -> None:
    net = FrozenNet()
    x, y = net.input("x", 2, 4, 4), net.input("y", 2, 4, 4)
    moved = net.call(torch.reshape, net.call(F.max_pool2d, net.call(torch.cat, (x, y), 1), (2, 2), (2, 2), (0, 0), (1, 1), False), (-1, 16))
    assert_equal(net.done(net.quantize(moved, 1, 1, 5, "RND_CONV")), *(np.random.default_rng(n).normal(size=(9, 2, 4, 4)) for n in (0, 1)))


def test_large_real_inputs_saturate_or_wrap_exactly() -> None:
    values = np.array([1e30, -1e30, 2.0**70 + 2.0**20, 3.5e-40, -1e-300, 2.0**62, -(2.0**63)])
    for overflow in ("SAT", "WRAP", "SAT_ZERO", "WRAP_SM"):
        net = FrozenNet()
        out = IntegerInterpreter(net.done(net.quantize(net.input("x"), 1, 2, 5, "TRN", overflow))).run(values)
        for got, v in zip(out.codes.tolist(), values):
            n = int(Fraction(v) * 32 // 1)
            want = {"SAT": min(max(n, -128), 127), "SAT_ZERO": n if -128 <= n <= 127 else 0, "WRAP": (n + 128) % 256 - 128}.get(overflow)
            phase = ((n + 128) // 256) % 2
            wrapped = (n + 128) % 256 - 128
            assert got == (want if want is not None else -1 - wrapped if phase else wrapped)


# ---- bad input


def test_bad_inputs_are_refused_with_code_node_and_line() -> None:
    gm = small_network()
    run = IntegerInterpreter(gm).run
    good = np.zeros((2, 2, 8, 8))
    for bad, code in (
        ((), "PQ409"),
        ((good, good), "PQ409"),
        ((good[:, :1],), "PQ409"),
        ((good.astype(complex),), "PQ409"),
        ((np.float64(1),), "PQ409"),
        ((np.where(good == 0, np.nan, 0),), "PQ305"),
        ((good + np.inf,), "PQ305"),
    ):
        with pytest.raises(InputError) as caught:
            run(*bad)
        assert caught.value.code == code
        assert caught.value.remedy
    net = FrozenNet()
    a, b = net.quantize(net.input("a", 2), 1, 1, 1), net.quantize(net.input("b", 2), 1, 1, 1)
    both = IntegerInterpreter(net.done(net.call(operator.add, a, b)))
    with pytest.raises(InputError, match="samples") as caught:
        both.run(np.zeros((2, 2)), np.zeros((3, 2)))
    assert (caught.value.code, caught.value.place.node) == ("PQ409", "b")


def test_opaque_nodes_are_refused_all_at_once() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, 1, 1)
    gm = net.done((net.call(torch.cos, x, path="a"), net.call(torch.sin, x, path="b"), net.call(operator.mul, x, 0.3, path="c")))
    with pytest.raises(LoweringError) as caught:
        IntegerInterpreter(gm)
    assert [(p.code, p.place.module) for p in caught.value.problems] == [("PQ201", "a"), ("PQ201", "b"), ("PQ202", "c")]
    assert all(p.place.line for p in caught.value.problems)


def test_compiled_graphs_run_as_evaluation_sees_them() -> None:
    """Masks, folded BatchNorm and unused batch statistics: the interpreter needs no freezing to be right."""
    torch.manual_seed(0)
    gm = residual_cnn(statistics=True)
    x = np.random.default_rng(0).normal(size=(20, 2, 6, 6)).astype(np.float32)
    out = IntegerInterpreter(gm).run(x)
    with torch.no_grad():
        assert np.array_equal(real(*out), gm.eval()(torch.from_numpy(x)).double().numpy())
