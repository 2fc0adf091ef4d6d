"""The differentiable count: gradients, masks, what is measured, exact growth of sums, and that it never waits for a device."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.estimate import EbopsPlan
from pquant_fx.estimate.surrogate import Surrogate
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.dialect import Quantizer, is_parameter_value
from pquant_fx.prune.pruner import TRAINING
from tests.ebops_graphs import RandomGraph
from tests.frozen_graphs import FrozenNet
from tests.models import MLP, ResidualDigits


class Learned(Quantizer):
    """i and f are parameters as they are; the count is piecewise bilinear in them."""

    bit_parameters = ("i", "f")
    rounding, overflow, calibrated = "RND", "SAT", True

    def __init__(self, k: int, i: Tensor, f: Tensor) -> None:
        super().__init__()
        self.register_buffer("k", torch.tensor(float(k)))
        self.i, self.f = nn.Parameter(i), nn.Parameter(f)

    def kif(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.k, self.i, self.f

    def forward(self, x: Tensor) -> Tensor:
        return x


def learn(gm: GraphModule, *groups: str, spread: float = 0.0) -> list[nn.Parameter]:
    """Replace every static quantizer whose path holds one of `groups` by a learned one, i and f up to `spread` larger."""
    torch.manual_seed(1)
    for path, module in list(gm.named_modules()):
        if isinstance(module, Quantizer) and any(g in path for g in groups):
            owner, _, name = path.rpartition(".")
            i, f = (t.float() + spread * torch.rand_like(t) for t in (module.i, module.f))
            setattr(gm.get_submodule(owner), name, Learned(int(module.k.max()), i, f))
    return [p for m in gm.modules() if isinstance(m, Learned) for p in m.parameters()]


def value(plan: EbopsPlan) -> float:
    with torch.no_grad():
        return float(plan())


def layers() -> GraphModule:
    """conv (groups, stride, padding) -> ReLU -> max pool -> pad -> conv -> flatten -> dense, and a product of two values."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 2, 5, 5), 1, torch.full((1, 2, 1, 1), 2.0), torch.full((1, 2, 1, 1), 3.0), name="dx")
    w = net.parameter("w1", torch.randn(4, 1, 3, 3), 1, torch.full((4, 1, 3, 3), 1.0), torch.full((4, 1, 3, 3), 3.0))
    b = net.parameter("b1", torch.randn(4), 1, torch.full((4,), 1.0), torch.full((4,), 4.0))
    y = net.call(F.relu, net.call(F.conv2d, x, w, b, (2, 2), (1, 1), (1, 1), 2))
    y = net.quantize(y, 0, torch.full((1, 4, 3, 3), 2.0), torch.arange(36.0).reshape(1, 4, 3, 3) % 4, name="dy")
    y = net.call(F.pad, net.call(F.max_pool2d, y, (2, 2), (1, 1), (0, 0), (1, 1), False), (1, 0, 0, 0), "constant", 0)
    w = net.parameter("w2", torch.randn(2, 4, 2, 2), 1, torch.full((2, 1, 1, 1), 1.0), torch.full((2, 1, 1, 1), 3.0))
    y = net.call(F.conv2d, y, w, None, (1, 1), (0, 0), (1, 1), 1)
    z = net.quantize(y, 1, torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), 4.0), name="dz")
    flat = net.call(torch.reshape, net.call(operator.mul, z, z), (-1, 4))
    flat = net.quantize(flat, 0, torch.full((1, 4), 1.0), torch.tensor([[2.0, 3.0, 0.0, 5.0]]), name="dflat")
    w = net.parameter("w3", torch.randn(3, 4), 1, torch.full((3, 4), 0.0), torch.arange(12.0).reshape(3, 4) % 5)
    return net.done(net.call(F.linear, flat, w, None))


# ---- gradients
def test_gradients_are_those_of_finite_differences() -> None:
    gm = layers()
    parameters = learn(gm, ".d", "w1", "w2", "w3", "b1", spread=0.3)
    plan = EbopsPlan(gm)
    assert plan.uncounted == ()
    plan().backward()
    checked, step, here = 0, 2.0**-5, value(plan)
    for p in parameters:
        for at in range(0, p.numel(), 3):
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    p.view(-1)[at] += sign * step
                    ends.append(value(plan))
                    p.view(-1)[at] -= sign * step
            if abs(sum(ends) - 2 * here) > 1e-2:
                continue  # a maximum has changed sides: the count is linear in each number, but for that
            assert float(p.grad.view(-1)[at]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=0.2)
            checked += abs(ends[0] - ends[1]) > 0
    assert checked > 60


def test_no_bits_no_gradient() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 0, torch.tensor([[1.0, -3.0]]), torch.tensor([[1.0, 1.0]]), name="dx")
    gm = net.done(net.call(F.linear, x, net.parameter("w", torch.ones(3, 2), 1, torch.full((3, 2), 4.0), torch.full((3, 2), 0.0)), None))
    learn(gm, ".d", "w")
    EbopsPlan(gm)().backward()
    assert gm.pq.dx.quantizer.f.grad.tolist() == [[12.0, 0.0]]
    assert gm.pq.w_quantizer.f.grad.tolist() == [[2.0, 0.0]] * 3


def test_learned_bits_of_compiled_models_get_gradients() -> None:
    torch.manual_seed(0)
    model = pq.compile(MLP(), "hgq", torch.randn(32, 16))
    plan = model.ebops_plan()
    plan().backward()
    quantizers = [m for m in model.graph_module.modules() if isinstance(m, Quantizer) and m.bit_parameters]
    assert len(quantizers) >= 8
    for quantizer in quantizers:
        grads = [getattr(quantizer, name).grad for name in quantizer.bit_parameters]
        assert any(g is not None and bool((g > 0).any()) for g in grads)
        assert all(g is None or bool((g >= 0).all()) for g in grads)


def test_many_at_once_are_as_one_by_one() -> None:
    """What `bits_of` computes together for a kind of quantizers, values and gradients."""
    torch.manual_seed(0)
    model = pq.compile(MLP(), {"preset": "hgq", "quantization_parameters": {"group_grad_norm": True}}, torch.randn(32, 16))
    quantizers = [m for m in model.graph_module.modules() if isinstance(m, Quantizer) and m.bit_parameters]
    parameters = [getattr(m, name) for m in quantizers for name in m.bit_parameters]
    for p in parameters:
        p.data.add_(2 * torch.rand_like(p) - 3)
    results = []
    signs = [m.overflow != "WRAP" for m in quantizers]  # the sign of a bias follows its value
    one_by_one = [(m.magnitude_bits(), m.sign_bits() if signed else None) for m, signed in zip(quantizers, signs)]
    for bits in (type(quantizers[0]).bits_of(quantizers, signs), one_by_one):
        weighted = [(n + 1) * magnitude.square().sum() for n, (magnitude, _) in enumerate(bits)]
        grads = torch.autograd.grad(sum(weighted), parameters, allow_unused=True)
        results.append([t for pair in bits for t in pair if t is not None] + [torch.zeros(()) if g is None else g for g in grads])
    assert any(bool((t == 0).any()) for t in results[0])
    for together, alone in zip(*results, strict=True):
        assert torch.equal(together, alone)


# ---- masks
def test_a_mask_takes_its_weights_out_of_the_count_and_out_of_the_gradient() -> None:
    torch.manual_seed(0)
    pruning = {"pruning_method": "magnitude", "sparsity": 0.5, "enable_pruning": True}
    model = pq.compile(MLP(), {"preset": "hgq", "pruning_parameters": pruning}, torch.randn(32, 16))
    masks = [m for m in model.graph_module.modules() if isinstance(m, pq.Mask)]
    assert len(masks) == 4
    plan = model.ebops_plan()
    before = value(plan)
    keep = torch.rand_like(masks[0].mask) < 0.5
    masks[0].mask.copy_(keep)
    masks[0].enter(TRAINING)
    after = plan()
    after.backward()
    quantizer = next(m for n, m in model.graph_module.named_modules() if n.endswith("0.weight_quantizer"))
    grad = getattr(quantizer, quantizer.bit_parameters[-1]).grad
    assert 0 < float(after.detach()) < before
    assert torch.equal(grad != 0, keep)


class Silent(pq.Mask):
    """A mask that says nothing about what it removes."""

    def sparsity(self, weight: Tensor) -> Tensor:
        return torch.zeros(())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.0


def test_a_mask_that_does_not_tell_leaves_all_weights_counted() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 0, 3, 0)
    w = net.parameter("w", torch.ones(2, 2), 1, 3, 0)
    gm = net.done(net.call(F.linear, x, w, None))
    gm.add_module("silent", Silent())
    node = next(n for n in gm.graph.nodes if n.op == "get_attr")
    quantizer = next(iter(node.users))
    with gm.graph.inserting_after(node):
        quantizer.args = (gm.graph.call_module("silent", (node,)),)
    gm.recompile()
    assert value(EbopsPlan(gm)) == 4 * 9


# ---- growth
def test_growth_of_the_worked_residual_block() -> None:
    """F.12: x (0,2,4), 3x3 weights (1,0,7) of 16 channels, bias at f = 11, the skip added: (1,10,11), (1,11,11), (1,12,11)."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 16, 4, 4), 0, 2, 4)
    w = net.parameter("w", torch.full((16, 16, 3, 3), 0.5), 1, 0, 7)
    b = net.parameter("b", torch.full((16,), 0.5), 1, 1, 11)
    plain = net.call(F.conv2d, x, w, None, (1, 1), (1, 1), (1, 1), 1)
    biased = net.call(F.conv2d, x, w, b, (1, 1), (1, 1), (1, 1), 1)
    joined = net.call(operator.add, biased, x)
    gm = net.done((plain, joined, net.call(F.relu, joined)))
    reader = Surrogate(gm, "weights_unsigned")
    reader.refresh()
    found = [tuple(int(t.max()) for t in reader.format(n)) for n in (plain, biased, joined, output_of(gm)[2])]
    assert found == [(1, 10, 11), (1, 11, 11), (1, 12, 11), (0, 12, 11)]
    assert reader.format(plain).i.shape == (1, 16, 1, 1)


def output_of(gm: GraphModule) -> list[Node]:
    return list(next(n for n in gm.graph.nodes if n.op == "output").all_input_nodes)


@pytest.mark.parametrize("seed", range(200, 230))
def test_grown_formats_hold_every_value_that_can_occur(seed: int) -> None:
    gm = RandomGraph(seed).gm
    formats, reader = analyse(gm, declared=True), Surrogate(gm, "weights_unsigned")
    reader.refresh()
    for node in gm.graph.nodes:
        found = formats.intervals.get(node)
        if found is None or node.op != "call_function" or is_parameter_value(node):
            continue
        k, i, f = (t.expand(1, *found.shape)[0].numpy() for t in reader.format(node))
        exact = found.formats()
        used = exact[1] + exact[2] > 0
        assert (k >= exact[0])[used].all(), node
        assert (i >= exact[1])[used].all(), node
        assert (f >= exact[2])[used].all(), node


# ---- what is measured, and when
def test_formats_that_nobody_learns_are_those_of_the_last_refresh() -> None:
    torch.manual_seed(0)
    model = pq.compile(ResidualDigits(), "fixed8", torch.randn(16, 1, 8, 8))
    plan = model.ebops_plan()
    before = plan()
    assert not before.requires_grad
    assert float(before) == pytest.approx(plan.by_node().total, rel=1e-6)
    model.calibrate(100 * torch.randn(16, 1, 8, 8))
    with torch.no_grad():
        model.head.bias.mul_(1000)
    assert value(plan) == float(before)
    plan.refresh()
    assert value(plan) > float(before)
    assert value(plan) == pytest.approx(value(model.ebops_plan()))


def test_it_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    models = (MLP(), torch.randn(16, 16)), (ResidualDigits(), torch.randn(16, 1, 8, 8))
    plans = [pq.compile(net, "hgq", x).ebops_plan() for net, x in models]
    plans.append(EbopsPlan(layers()))

    def waits(*args: Any) -> Any:
        raise AssertionError("a host synchronisation")

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, waits)
    totals = [plan() for plan in plans]
    for total in totals[:2]:
        total.backward()
    monkeypatch.undo()
    assert all(float(total.detach()) > 0 for total in totals)


def test_mixed_precision_changes_nothing() -> None:
    gm = layers()
    learn(gm, ".d", "w1", "w2", spread=0.3)
    plan = EbopsPlan(gm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plan()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plan())


@pytest.mark.parametrize("policy", ["align", "shared", "requant"])
def test_the_surrogate_counts_the_same_operators_as_the_exact_count_and_never_less(policy: str) -> None:
    torch.manual_seed(0)
    model = pq.compile(ResidualDigits(), {"preset": "hgq", "joins": {"policy": policy}}, torch.randn(32, 1, 8, 8))
    plan = model.ebops_plan()
    exact, surrogate = model.ebops(), plan.by_node()
    assert exact.total == pytest.approx(model.freeze().ebops().total)
    assert [(row.node, row.op) for row in exact.rows] == [(row.node, row.op) for row in surrogate.rows]
    assert all(a.ebops <= b.ebops * (1 + 1e-6) for a, b in zip(exact.rows, surrogate.rows))
    assert surrogate.kind == "surrogate"
    assert value(plan) == pytest.approx(surrogate.total, rel=1e-6)
    plan().backward()
