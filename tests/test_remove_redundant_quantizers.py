"""remove_redundant_quantizers drops what provably does nothing, and nothing else."""

from __future__ import annotations

import itertools
import operator

import pytest
import torch
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.passes import Pipeline
from pquant_fx.passes.remove_redundant_quantizers import RemoveRedundantQuantizers, remove_redundant_quantizers
from pquant_fx.quantize.quantizers import CalibratedQuantizer, DynamicQuantizer, FixedQuantizer
from tests.frozen_graphs import FrozenNet


def left(gm: GraphModule) -> list[str]:
    return [str(n.target).removeprefix("pq.").removesuffix(".quantizer") for n in gm.graph.nodes if isinstance(module_of(gm, n), Quantizer)]


def run(gm: GraphModule, *examples: torch.Tensor) -> list[str]:
    """Through a pipeline, which checks exactness in eval and in train."""
    Pipeline([remove_redundant_quantizers])(gm, examples or None)
    return left(gm)


def test_identities_after_moves_and_relu_go() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2, 4, 4), 1, 2, 5)
    y = net.quantize(net.call(F.max_pool2d, net.call(F.relu, x), (2, 2), (2, 2), (0, 0), (1, 1), False), 0, 3, 6, name="wider")
    z = net.quantize(net.call(torch.reshape, y, (-1, 8)), 0, 2, 5, "TRN", "WRAP", name="same")
    gm = net.done(net.call(operator.mul, z, 0.5))
    values = torch.randn(64, 2, 4, 4) * 4
    before = gm(values)
    assert run(gm, values[:4]) == ["x"]
    assert torch.equal(gm(values), before)
    assert not remove_redundant_quantizers(gm)


@pytest.mark.parametrize(
    ("kif", "rounding", "overflow"),
    [((0, 1, 5), "RND", "SAT"), ((0, 2, 4), "TRN", "SAT"), ((1, 1, 5), "RND", "WRAP"), ((0, 1, 6), "RND", "SAT_SYM")],
)
def test_quantizers_that_round_or_overflow_stay(kif: tuple[int, int, int], rounding: str, overflow: str) -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 4), 1, 2, 5)
    gm = net.done(net.call(operator.neg, net.quantize(net.call(F.relu, x), *kif, rounding, overflow, name="needed")))
    assert run(gm) == ["x", "needed"]


def test_inputs_parameters_and_declared_outputs_keep_theirs() -> None:
    net = FrozenNet()
    x, y = net.quantize(net.input("x", 4), 1, 2, 5), net.input("y", 4)
    total = net.call(operator.add, x, net.parameter("c", torch.ones(4), 1, 3, 5))
    declared = net.quantize(total, 1, 8, 8, name="declared")
    gm = net.done((declared, net.quantize(y, 1, 12, 8)))
    assert run(gm) == ["x", "c_quantizer", "declared", "y"]


def test_frozen_weights_count_and_trained_ones_do_not() -> None:
    """A sum whose exact weights keep it in range: proven when frozen; while training the weights may change."""

    def graph(frozen: bool) -> GraphModule:
        net = FrozenNet()
        x = net.quantize(net.input("x", 2), 0, 1, 3)
        w = net.parameter("pq.weight" if frozen else "fc.weight", torch.tensor([[0.5, 0.25]]), 1, 0, 2)
        y = net.quantize(net.call(F.linear, x, w, None), 0, 1, 5, name="sum")
        return net.done(net.call(operator.neg, y))

    assert "sum" not in run(graph(frozen=True))
    assert "sum" in run(graph(frozen=False))


def test_formats_that_may_still_change_do_not_count() -> None:
    for first in (CalibratedQuantizer(8), FixedQuantizer(1, 0, 7)):
        net = FrozenNet()
        x = net.quantize(net.input("x", 2), 1, 0, 7)
        gm = net.done(net.call(operator.neg, net.quantize(net.call(F.relu, x), 0, 0, 7, name="later")))
        if isinstance(first, CalibratedQuantizer):
            first.set_format(1, 0, 7)
        gm.pq.x.quantizer = first
        assert run(gm) == (["x", "later"] if isinstance(first, CalibratedQuantizer) else ["x"])
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, 0, 7)
    gm = net.done(net.call(operator.neg, net.quantize(net.call(F.relu, x), 0, 0, 7, name="later")))
    gm.pq.later.quantizer = CalibratedQuantizer(8)
    assert run(gm) == ["x", "later"]


def test_ranges_of_today_do_not_count_while_weights_are_trained() -> None:
    """Behind a trained layer only the quantizer's declared range is certain, not the smaller one of today's weights."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 0, 1, 3)
    w = net.parameter("fc.weight", torch.tensor([[0.5, 0.25]]))
    net._add("pq.w_quantizer", DynamicQuantizer(4))
    w = net.graph.call_module("pq.w_quantizer", (w,))
    y = net.quantize(net.call(F.linear, x, w, None), 1, 6, 8, name="sum")
    gm = net.done(net.call(operator.neg, net.quantize(net.call(F.relu, y), 0, 3, 8, name="smaller")))
    assert run(gm) == ["x", "w_quantizer", "sum", "smaller"]


@pytest.mark.parametrize("rounding", ["TRN", "TRN_ZERO"])
@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM"])
def test_truncations_in_a_row_become_one_and_keep_every_value(rounding: str, overflow: str) -> None:
    """All pairs of small formats on a fine input grid: where the first went, no value changed."""
    every = (torch.arange(-256, 257) / 64.0).reshape(-1, 1)
    merged = 0
    for first, last in itertools.product(((1, 1, 3), (1, 0, 4), (0, 1, 3)), ((1, 1, 1), (1, 0, 3), (0, 1, 2), (1, 1, 4), (1, 1, 3))):
        net = FrozenNet()
        x = net.quantize(net.input("x", 1), 1, 2, 6, "RND", "SAT")
        a = net.quantize(net.call(operator.neg, x), *first, rounding, overflow, name="first")
        gm = net.done(net.call(operator.neg, net.quantize(a, *last, rounding, overflow, name="last")))
        before = gm(every)
        kept = run(gm)
        assert torch.equal(gm(every), before)
        merged += "first" not in kept
    assert merged >= 3


def test_nearest_roundings_in_a_row_stay_two() -> None:
    """7/16 rounds to 1/2, then to 1; in one step to 0: rounding twice is not rounding once."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 1), 1, 2, 6)
    a = net.quantize(net.call(operator.neg, x), 1, 2, 1, name="first")
    gm = net.done(net.call(operator.neg, net.quantize(a, 1, 2, 0, name="last")))
    assert run(gm) == ["x", "first", "last"]
    assert RemoveRedundantQuantizers() == remove_redundant_quantizers
    assert remove_redundant_quantizers.exact
