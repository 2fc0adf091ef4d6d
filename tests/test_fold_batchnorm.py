"""BatchNorm as arithmetic: equal in evaluation by algebra, equal in training where it uses the statistics of the batch."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.errors import PassError
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.exactness import difference, run_isolated
from pquant_fx.graph.info import info
from pquant_fx.graph.passes import Pipeline
from pquant_fx.passes.canonicalize import canonicalize
from pquant_fx.passes.fold_batchnorm import FoldBatchnorm
from pquant_fx.passes.functionalize import functionalize
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.trace import trace


class Net(nn.Module):
    """`layer` and `bn` around a forward given as a function of the module and x."""

    def __init__(self, layer: nn.Module, bn: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.bn, self.call = layer, bn, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def in_order(m: Any, x: Tensor) -> Tensor:
    return m.bn(m.layer(x))


def first(m: Any, x: Tensor) -> Tensor:
    return m.layer(m.bn(x))


CASES: dict[str, tuple[nn.Module, nn.Module, Callable[[Any, Tensor], Tensor], tuple[int, ...], bool]] = {
    # layer, BatchNorm, forward, sample shape, whether the BatchNorm goes into the layer
    "linear": (nn.Linear(6, 4), nn.BatchNorm1d(4), in_order, (6,), True),
    "linear without bias": (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), in_order, (6,), True),
    "conv1d": (nn.Conv1d(3, 4, 2, stride=2), nn.BatchNorm1d(4), in_order, (3, 9), True),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), in_order, (3, 7, 5), True),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, eps=0.1), in_order, (3, 7, 5), True),
    "not affine": (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), in_order, (3, 7, 5), True),
    "cumulative average": (nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None), in_order, (6,), True),
    "on the input": (nn.Linear(6, 4), nn.BatchNorm1d(6), first, (6,), False),
    "on an input map": (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(3, affine=False), first, (3, 7, 5), False),
    "after a sum": (nn.Linear(6, 6), nn.BatchNorm1d(6), lambda m, x: m.bn(m.layer(x) + x), (6,), False),
    "two consumers": (nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), lambda m, x: (y := m.layer(x)) + m.bn(y), (3, 9), False),
    "over particles": (nn.Linear(6, 4), nn.BatchNorm1d(5), in_order, (5, 6), False),
    "called twice": (nn.Linear(6, 6), nn.BatchNorm1d(6), lambda m, x: m.bn(m.layer(F.relu(m.bn(m.layer(x))))), (6,), True),
    "twice in a row": (nn.Linear(6, 4), nn.BatchNorm1d(4), lambda m, x: m.bn(m.bn(m.layer(x))), (6,), True),
}


def network(name: str, lived_in: bool = True) -> tuple[Net, Tensor]:
    layer, bn, call, shape, _ = CASES[name]
    torch.manual_seed(len(name))
    net = copy.deepcopy(Net(layer, bn, call))
    if net.bn.affine:
        nn.init.uniform_(net.bn.weight, -1.5, 1.5)
        nn.init.normal_(net.bn.bias)
        with torch.no_grad():
            net.bn.weight[1] = 0.0  # a channel that a sparse training has switched off
    if lived_in:
        nn.init.uniform_(net.bn.running_mean, -1, 1)
        nn.init.uniform_(net.bn.running_var, 0.01, 4)
    return net, torch.randn(7, *shape)


def folded(net: nn.Module, x: Tensor, statistics: str = "auto") -> GraphModule:
    gm = trace(net, {"x": x}).graph_module
    Pipeline((canonicalize, functionalize, propagate_shapes, FoldBatchnorm(statistics)))(gm, (x,))
    return gm


def corrections_of(gm: GraphModule) -> list[nn.Module]:
    return [m for m in gm.modules() if isinstance(m, BatchCorrection)]


@pytest.mark.parametrize("name", CASES)
def test_evaluation_is_the_same_to_the_last_digits_of_float64(name: str) -> None:
    net, x = network(name)
    gm = folded(net, x)
    assert not any(isinstance(gm.get_submodule(n.target), nn.BatchNorm1d | nn.BatchNorm2d) for n in gm.graph.nodes if n.op == "call_module")
    assert not corrections_of(gm)
    for batch in (x, x[:1]):
        assert difference(run_isolated(net, (batch,), False), run_isolated(gm, (batch,), False)) < 1e-13
    assert list(gm.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_it_goes_into_the_layer_where_that_is_the_only_consumer(name: str) -> None:
    net, x = network(name)
    gm = folded(net, x)
    data = [n for n in gm.graph.nodes if n.target in (operator.mul, operator.add) and any(a.op == "placeholder" for a in ancestors(n))]
    layers = [n for n in gm.graph.nodes if n.target in (F.linear, F.conv1d, F.conv2d)]
    assert (not [n for n in data if info(n).path == "bn"]) is CASES[name][4]
    assert all(n.args[1].op == ("call_function" if CASES[name][4] else "get_attr") for n in layers)
    assert {info(n).path for n in layers} == {"layer"}


def ancestors(node: Any) -> set[Any]:
    found, stack = set(), list(node.all_input_nodes)
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(current.all_input_nodes)
    return found


@pytest.mark.parametrize("name", CASES)
def test_training_from_scratch_normalises_and_counts_as_torch_does(name: str) -> None:
    net, x = network(name, lived_in=False)
    gm = folded(net, x).double()
    assert corrections_of(gm)
    net, x = net.double(), x.double()
    for batch in (x, 3 * x[:4] + 1):
        net.train(), gm.train()
        expected, got = net(batch), gm(batch)
        assert torch.allclose(expected, got, rtol=1e-9, atol=1e-9)
        for module in (net, gm):
            module.zero_grad()
        expected.sin().sum().backward()
        got.sin().sum().backward()
        for key, p in net.named_parameters():
            found = gm.get_parameter(key).grad
            if key == "bn.weight":  # that of a gamma of 0 is in units of the running deviation: the same up to a positive factor
                assert found[1].sign() == p.grad[1].sign() or max(abs(found[1]), abs(p.grad[1])) < 1e-9
                found[1] = p.grad[1]
            assert torch.allclose(p.grad, found, rtol=1e-7, atol=1e-9), key
        for key, b in net.named_buffers():
            counted = b.dim() == 0
            seen = ... if counted or not net.bn.affine else net.bn.weight != 0  # a channel times 0 shows nothing of its statistics
            assert torch.allclose(b[seen], gm.get_buffer(key)[seen], rtol=1e-9, atol=1e-12), key
        net.eval(), gm.eval()
        assert torch.allclose(net(batch), gm(batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("statistics", "count"), [("auto", 1), ("running", 0), ("batch", 1)])
def test_fresh_statistics_are_those_of_the_batch_unless_told_otherwise(statistics: str, count: int) -> None:
    net, x = network("linear", lived_in=False)
    assert len(corrections_of(folded(net, x, statistics))) == count


@pytest.mark.parametrize("change", ["counter", "mean", "variance"])
def test_any_trace_of_data_makes_the_running_statistics_count(change: str) -> None:
    net, x = network("linear", lived_in=False)
    {"counter": net.bn.num_batches_tracked, "mean": net.bn.running_mean, "variance": net.bn.running_var}[change].add_(1)
    gm = folded(net, x)
    assert not corrections_of(gm)
    gm.train()(x)
    assert all(torch.equal(b, gm.get_buffer(k)) for k, b in net.named_buffers())


def test_a_single_value_per_channel_is_refused_in_training_as_torch_refuses_it() -> None:
    net, x = network("linear", lived_in=False)
    gm = folded(net, x)
    for module in (net, gm):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module.train()(x[:1])


def test_no_running_statistics_is_refused_with_every_place() -> None:
    net = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(PassError) as caught:
        folded(Net(nn.Identity(), net, in_order), torch.randn(4, 6))
    assert [(p.code, p.place.module) for p in caught.value.problems] == [("PQ202", "bn.0"), ("PQ202", "bn.2")]


def test_a_second_run_changes_nothing() -> None:
    net, x = network("two consumers")
    gm = folded(net, x)
    before = gm.code
    assert not FoldBatchnorm()(gm)
    assert gm.code == before
