"""EBOPs of random graphs equal a count by brute force: exact, and as a surrogate where codes use all their bits."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.fx import GraphModule

from pquant_fx.estimate import EbopsPlan, exact_ebops
from pquant_fx.estimate.rules import RULES
from tests.ebops_graphs import RandomGraph
from tests.ebops_oracle import BruteForce
from tests.frozen_operators import OPERATORS, operator_net, residual_net


@functools.cache
def random_graph(seed: int) -> GraphModule:
    return RandomGraph(seed).gm


def agrees(gm: GraphModule) -> None:
    brute, counted = BruteForce(gm), exact_ebops(gm)
    found = {row.node: row.ebops for row in counted.rows}
    assert found == pytest.approx({name: cost for name, cost in brute.costs.items() if name in found}, rel=1e-12)
    assert not any(cost for name, cost in brute.costs.items() if name not in found)
    assert counted.total == pytest.approx(brute.total, rel=1e-12)


@pytest.mark.parametrize("seed", range(48))
def test_the_exact_count_is_that_of_a_loop_over_every_multiplication(seed: int) -> None:
    agrees(random_graph(seed))


@pytest.mark.parametrize("seed", range(100, 124))
def test_the_surrogate_is_exact_where_codes_use_all_their_bits(seed: int) -> None:
    gm = RandomGraph(seed, full=True).gm
    brute, plan = BruteForce(gm, frozen=False), EbopsPlan(gm)
    assert plan.uncounted == ()
    assert {row.node: row.ebops for row in plan.by_node().rows} == pytest.approx(brute.costs, rel=1e-5)
    assert float(plan()) == pytest.approx(brute.total, rel=1e-5)


MADE = ("scaled_sum", "scaled_pool", "upsample", "embed")  # by passes, of means and layers that these graphs do not hold
NEW = ("mean of six", "mean of five channels", "windows of three", "windows of six", "upsample 1d", "upsample 2d")


def test_random_graphs_hold_every_operator() -> None:
    gms = [random_graph(seed) for seed in range(48)]
    seen = {node.target for gm in gms for node in gm.graph.nodes}
    assert {t.__name__ for t in RULES if t not in seen} == {
        "truediv",
        "neg",
        "mean",
        "relu6",
        "hardtanh",
        "leaky_relu",
        "prelu",
        "amax",
        *MADE,
    }
    assert sum(row.ebops > 0 for gm in gms for row in exact_ebops(gm).rows) > 250


@pytest.mark.parametrize("name", ["linear of rank 3", "dilated conv2d", "grouped conv2d", "number minus", "global mean, keepdim", *NEW])
@pytest.mark.parametrize("widened", [False, True])
def test_operators_one_by_one(name: str, widened: bool) -> None:
    assert name in OPERATORS
    agrees(operator_net(name, 6, widened=widened))


def test_a_residual_network() -> None:
    torch.manual_seed(0)
    agrees(residual_net())
