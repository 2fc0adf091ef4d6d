"""Exact analysis: no value ever leaves its interval, linear bounds are attained, and what has no exact meaning is named."""

from __future__ import annotations

import itertools
import operator
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.formats import FixedFormat
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.support import unsupported
from tests.frozen_graphs import FrozenNet
from tests.unfrozen_graphs import residual_cnn


def node_values(gm: GraphModule, *inputs: Tensor) -> dict[Node, Tensor]:
    """Every node's value in float64, through torch."""
    values: dict[Node, Any] = {}
    feed = iter(inputs)
    for node in gm.double().graph.nodes:
        args = torch.fx.node.map_arg(node.args, lambda n: values[n])
        if node.op == "placeholder":
            values[node] = next(feed).double()
        elif node.op == "get_attr":
            values[node] = gm.get_buffer(node.target)
        elif node.op == "call_module":
            values[node] = gm.get_submodule(node.target)(*args)
        elif node.op == "call_function":
            values[node] = node.target(*args)
    return values


def assert_inside(gm: GraphModule, formats: FormatMap, *inputs: Tensor) -> dict[Node, Tensor]:
    values = node_values(gm, *inputs)
    for node, interval in formats.intervals.items():
        if interval is not None:
            assert interval.contains(values[node].detach().numpy()), node.name
    return values


def one(function: Any, *rest: Any, sample: tuple[int, ...] = (4,), kif: tuple[int, int, int] = (1, 1, 2)) -> tuple[GraphModule, Node]:
    """x -> quantizer -> function(x, *rest)."""
    net = FrozenNet()
    made = net.call(function, net.quantize(net.input("x", *sample), *kif), *rest)
    return net.done(made), made


def linear(codes: list[list[float]], kif: tuple[int, int, int], bias: list[float] | None = None) -> tuple[GraphModule, Node]:
    net = FrozenNet()
    w = net.parameter("fc.weight", torch.tensor(codes), 1, 3, 4)
    b = None if bias is None else net.parameter("fc.bias", torch.tensor(bias), 1, 10, 8)
    made = net.call(F.linear, net.quantize(net.input("x", len(codes[0])), *kif), w, b)
    return net.done(made), made


def test_accumulator_vectors_of_the_rules() -> None:
    """Codes (3, -5, 7, 0, -1): the bounds of unsigned and signed inputs, by hand."""
    weights = [[3.0, -5.0, 7.0, 0.0, -1.0]]
    gm, node = linear(weights, (0, 2, 2))
    interval = analyse(gm)[node]
    assert (int(interval.low[0]), int(interval.high[0]), interval.f) == (-90, 150, 2)
    assert analyse(gm).format(node) == FixedFormat(1, 6, 2)
    gm, node = linear(weights, (1, 2, 2))
    interval = analyse(gm)[node]
    assert (int(interval.low[0]), int(interval.high[0])) == (-250, 246)
    assert analyse(gm).bits(node) == 8


def test_accumulator_holds_every_order_of_summation() -> None:
    """All corner inputs, all orders of four products and a bias: the widest partial sum is exactly the bound."""
    weights = [[1.5, -0.75, 2.0, -3.25]]
    for bias in ([0.5], [-1.25]):
        gm, node = linear(weights, (1, 1, 1), bias)
        formats = analyse(gm)
        sums = formats.accumulators[node]
        least, most = 0.0, 0.0
        for x in itertools.product((-2.0, 1.5), repeat=4):
            terms = [w * v for w, v in zip(weights[0], x)] + bias
            for order in itertools.permutations(terms):
                partial = np.cumsum(order)
                least, most = min(least, partial.min()), max(most, partial.max())
        assert (sums.minimum, sums.maximum) == (least, most)
        corners = torch.tensor(list(itertools.product((-2.0, 1.5), repeat=4)))
        reached = gm(corners)
        assert (float(reached.min()), float(reached.max())) == (formats[node].minimum, formats[node].maximum)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 4), (2, 1, 1, 1)])
def test_convolution_bounds_are_attained_at_every_position(stride: int, padding: int, dilation: int, groups: int) -> None:
    """For each output the maximising input is fed; padded borders are tighter because padding is exactly zero."""
    torch.manual_seed(0)
    net = FrozenNet()
    w = net.parameter("conv.weight", torch.randn(4, 4 // groups, 3, 3), 1, 2, 3)
    b = net.parameter("conv.bias", torch.randn(4), 1, 3, 6)
    x = net.quantize(net.input("x", 4, 5, 6), 1, 1, 2)
    pair = (stride, stride), (padding, padding), (dilation, dilation)
    made = net.call(F.conv2d, x, w, b, *pair, groups)
    gm = net.done(made)
    formats = analyse(gm)
    interval = formats[made]
    weight, bias = formats.constants[w].double(), formats.constants[b].double()
    probe = torch.zeros(1, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(probe, weight, bias, *pair, groups)[0]
    for index in np.ndindex(*out.shape):
        gradient = torch.autograd.grad(out[index], probe, retain_graph=True)[0]
        worst = torch.where(gradient > 0, 1.75, -2.0).double()
        top = F.conv2d(worst, weight, bias, *pair, groups)[0][index]
        assert float(top) == interval.high[index] * 2.0**-interval.f
        low = F.conv2d(torch.where(gradient > 0, -2.0, 1.75).double(), weight, bias, *pair, groups)[0][index]
        assert float(low) == interval.low[index] * 2.0**-interval.f
    assert_inside(gm, formats, torch.randn(8, 4, 5, 6) * 2)


def operators() -> list[tuple[Any, ...]]:
    image = (2, 4, 4)
    return [
        (operator.add, (0.75,), (4,)),
        (operator.add, (96,), (4,)),
        (operator.sub, (-1.5,), (4,)),
        (operator.mul, (-0.375,), (4,)),
        (operator.truediv, (-8,), (4,)),
        (operator.truediv, (0.25,), (4,)),
        (operator.neg, (), (4,)),
        (torch.maximum, (torch.tensor(0.5),), (4,)),
        (F.relu, (), (4,)),
        (F.relu6, (), (4,)),
        (F.hardtanh, (-0.625, 1.0), (4,)),
        (F.leaky_relu, (0.125,), (4,)),
        (F.leaky_relu, (-0.375,), (4,)),
        (F.leaky_relu, (4.0,), (4,)),
        (F.max_pool2d, ((2, 3), (2, 1), (1, 1), (1, 1), True), image),
        (F.max_pool1d, ((2,), (2,), (0,), (1,), False), (2, 5)),
        (F.avg_pool2d, ((2, 2), (2, 2), (0, 0), False, True), image),
        (F.avg_pool2d, ((4, 2), (1, 1), (1, 1), False, True), image),
        (F.avg_pool1d, ((4,), (1,), (0,), False, False), (2, 5)),
        (torch.mean, ((2, 3), False), image),
        (torch.mean, ((1,), True), image),
        (torch.sum, ((1, 3), True), (3, 4, 5)),
        (F.pad, ((1, 2, 0, 1), "constant", 0), image),
        (F.pad, ((-1, 0, 1, 1), "constant", 0.5), image),
        (torch.reshape, ((-1, 8, 4),), image),
        (torch.permute, ((0, 3, 1, 2),), image),
        (operator.getitem, ((slice(None), slice(1, None), slice(None, None, 2)),), image),
    ]


@pytest.mark.parametrize(("function", "rest", "sample"), operators(), ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("kif", [(1, 1, 2), (0, 2, 1), (1, 3, -1)])
def test_operators_keep_their_values_inside_and_attain_their_bounds(function: Any, rest: Any, sample: Any, kif: Any) -> None:
    """Elementwise and summing operators of independent inputs: corner inputs reach both ends of every element."""
    rest = tuple(r for r in rest if not isinstance(r, Tensor))
    if function is torch.maximum:
        net = FrozenNet()
        made = net.call(function, net.quantize(net.input("x", *sample), *kif), net.parameter("bound", torch.tensor([0.5, -0.25, 9.0, 0.0])))
        gm = net.done(made)
    else:
        gm, made = one(function, *rest, sample=sample, kif=kif)
    formats = analyse(gm)
    formats.require()
    fmt = FixedFormat(*kif)
    low, high = torch.full((1, *sample), fmt.minimum), torch.full((1, *sample), fmt.maximum)
    random = torch.randn(64, *sample) * 3
    every = torch.arange(fmt.code_range[0], fmt.code_range[1] + 1).reshape(-1, *(1 for _ in sample)) * fmt.lsb
    values = assert_inside(gm, formats, torch.cat([low, high, random, every.expand(-1, *sample)]))[made].numpy()
    interval = formats[made]
    assert np.array_equal(values.min(0), np.ldexp(interval.low.astype(float), -interval.f))
    assert np.array_equal(values.max(0), np.ldexp(interval.high.astype(float), -interval.f))


def test_two_values_meet_on_the_finest_grid() -> None:
    net = FrozenNet()
    a, b = net.quantize(net.input("a", 3), 1, 1, 2), net.quantize(net.input("b", 3), 0, 2, 4)
    joins = [net.call(f, a, b) for f in (operator.add, operator.sub, operator.mul, torch.maximum, torch.minimum)]
    joined = net.call(torch.cat, (*joins, a), 1)
    gm = net.done(joined)
    formats = analyse(gm)
    assert [formats.format(n) for n in joins] == [
        FixedFormat(1, 3, 4),
        FixedFormat(1, 3, 4),
        FixedFormat(1, 3, 6),
        FixedFormat(0, 2, 4),
        FixedFormat(1, 1, 4),
    ]
    grid_a, grid_b = torch.arange(-8, 8) / 4, torch.arange(0, 64) / 16
    pairs = torch.cartesian_prod(grid_a, grid_b)
    values = assert_inside(gm, formats, pairs[:, :1].expand(-1, 3), pairs[:, 1:].expand(-1, 3))
    for node in joins:
        assert (float(values[node].min()), float(values[node].max())) == (formats[node].minimum, formats[node].maximum)


def test_products_of_two_values_are_bounded_over_all_terms() -> None:
    net = FrozenNet()
    a, b = net.quantize(net.input("a", 2, 3), 1, 1, 1), net.quantize(net.input("b", 3, 2), 1, 1, 1)
    made = net.call(torch.matmul, a, b)
    constant = net.call(torch.matmul, made, net.parameter("w", torch.tensor([[1.0, -0.5], [2.0, 0.25]]), 1, 2, 2))
    gm = net.done(constant)
    formats = analyse(gm)
    corner = torch.full((1, 2, 3), -2.0), torch.full((1, 3, 2), -2.0)
    values = assert_inside(
        gm, formats, torch.cat([corner[0], torch.randn(50, 2, 3) * 2]), torch.cat([corner[1], torch.randn(50, 3, 2) * 2])
    )
    assert float(values[made].max()) == formats[made].maximum == 12.0
    assert formats.accumulators[made].minimum == -9.0


def test_channels_on_their_own_grids_do_not_widen_each_other() -> None:
    """A channel whose folded scale is 2^-16 of its neighbour's: 40 bits at one common lsb, 16 for each channel by itself."""
    net = FrozenNet()
    weight = torch.tensor([[1.0, -0.5], [0.9, 0.7]]) * torch.tensor([[1.0], [2.0**-16]])
    w = net.parameter("fc.weight", weight, torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [-16.0]]), torch.tensor([[7.0], [23.0]]))
    made = net.call(F.linear, net.quantize(net.input("x", 2), 1, 3, 4), w, None)
    gm = net.done(made)
    formats = analyse(gm)
    assert formats[made].span > 24
    assert formats.bits(made) is not None
    assert formats.bits(made) <= 16  # type: ignore[operator]
    assert_inside(gm, formats, torch.randn(100, 2) * 5)


def test_facts_about_quantizers() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 4), 1, 2, 3)
    y = net.quantize(net.call(F.relu, x), 0, 2, 3, "TRN", "WRAP", name="same")
    z = net.quantize(y, 0, 1, 5, "RND", "SAT", name="narrow")
    u = net.quantize(z, 0, 1, 2, "RND", "SAT", name="coarse")
    gm = net.done(u)
    formats = analyse(gm)
    assert [(formats.facts[n].never_overflows, formats.facts[n].never_rounds) for n in (x, y, z, u)] == [
        (False, False),
        (True, True),
        (False, True),
        (False, False),
    ]
    assert formats.facts[y].is_identity
    assert formats[u].minimum == 0
    assert analyse(gm, declared=True)[x].contains([[-4.0] * 4, [4 - 2**-3] * 4])


@pytest.mark.parametrize("statistics", [False, True])
def test_unfrozen_graphs_are_analysed_as_evaluation_sees_them(statistics: bool) -> None:
    torch.manual_seed(1)
    gm = residual_cnn(statistics).train()
    gm.bn0.eval()
    before = {k: v.clone() for k, v in gm.state_dict().items()}
    formats = analyse(gm)
    formats.require()
    assert gm.training
    assert gm.pq.conv0_weight_quantizer.training
    assert not gm.bn0.training
    assert all(torch.equal(v, before[k]) for k, v in gm.state_dict().items())
    assert unsupported(gm) == []
    last = gm.graph.output_node().args[0]
    out = gm.eval()(torch.randn(16, 2, 6, 6))
    assert formats[last].contains(out.detach().numpy())
    weights = [n for n in gm.graph.nodes if n.target == "pq.conv0_weight_quantizer"]
    assert formats[weights[0]].is_constant


def test_cost_grows_with_the_network_and_is_small() -> None:
    """Processor time of a chain of convolutions of 16 channels on 12x12: four times as many cost about four times as much."""

    def chain(depth: int) -> GraphModule:
        net = FrozenNet()
        h = net.quantize(net.input("x", 16, 12, 12), 0, 1, 7)
        for n in range(depth):
            w = net.parameter(f"w{n}", torch.randn(16, 16, 3, 3) / 12, 1, 0, 7)
            h = net.quantize(net.call(F.relu, net.call(F.conv2d, h, w, None, (1, 1), (1, 1), (1, 1), 1)), 0, 1, 7, name=f"q{n}")
        return net.done(h)

    torch.manual_seed(0)
    seconds = {}
    for depth in (5, 20):
        gm = chain(depth)
        runs = []
        for _ in range(5):
            start = time.process_time()
            analyse(gm).require()
            runs.append(time.process_time() - start)
        seconds[depth] = min(runs)
    assert seconds[20] < 1
    assert seconds[20] < 10 * seconds[5] + 0.05
