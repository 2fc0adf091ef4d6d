"""Joins: every policy with every kind of quantizer is exact, and what each would cost is counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.estimate import JoinCost, join_costs
from pquant_fx.graph.values import data_operands, is_data_quantizer, is_join
from pquant_fx.quantize import HGQData


class Branches(nn.Module):
    """A residual add, a concat and a difference of maps of the same and of other channel counts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x)) + x
        z = torch.cat([F.relu(self.b(y)), y], 1)
        return self.c(z) - y


KINDS: dict[str, dict[str, Any]] = {
    "calibrated": {"preset": "fixed8"},
    "per channel": {"preset": "fixed8", "quantization_parameters": {"data_granularity": "per_channel"}},
    "dynamic": {"preset": "fixed8", "quantization_parameters": {"data_quantizer": "dynamic"}},
    "tqt": {"preset": "fixed8", "quantization_parameters": {"data_quantizer": "tqt"}},
    "hgq": {"preset": "hgq"},
}


def compiled(kind: str, policy: str, make: Any = Branches, shape: tuple[int, ...] = (2, 5, 5)) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, *shape)
    return pq.compile(make(), {**KINDS[kind], "joins": {"policy": policy}}, x), x


@pytest.mark.parametrize("policy", ["align", "shared", "requant"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_is_exact_with_every_kind(kind: str, policy: str) -> None:
    model, x = compiled(kind, policy)
    model.train()(x).square().mean().backward()
    with torch.no_grad():
        assert torch.equal((frozen := model.freeze())(x), model.eval()(x))
        assert torch.equal(frozen.integer(x).float(), model(x))
    for node in [n for n in model.graph_module.graph.nodes if is_join(n)]:
        paths = {str(o.target) for o in data_operands(node)}
        quantized = all(map(is_data_quantizer, data_operands(node)))
        assert (quantized and len(paths) == 1) or policy != "shared"
        assert policy != "requant" or node.name == "cat" or all(map(is_data_quantizer, node.users))


def test_a_shared_learned_quantizer_has_the_shape_of_the_join_and_learns_once() -> None:
    model, x = compiled("hgq", "shared")
    shared = {n: m for n, m in model.named_modules() if n.endswith("shared_quantizer")}
    assert all(isinstance(m, HGQData) for m in shared.values())
    assert {n: tuple(m.shape) for n, m in shared.items()} == {
        "pq.add.shared_quantizer": (1, 2, 1, 1),
        "pq.cat.shared_quantizer": (),  # of the difference too, with which it has a branch in common; no finer one fits 3 and 2 channels
    }
    (model.train()(x).square().mean() + model.ebops_plan()()).backward()
    assert all(bool(p.grad.abs().sum() > 0) for m in shared.values() for p in m.parameters())


def test_replaced_quantizers_are_gone() -> None:
    """Or their parameters would wait for a gradient, and training for their format."""
    for kind in KINDS:
        model, _ = compiled(kind, "shared")
        called = {str(n.target) for n in model.graph_module.graph.nodes if n.op == "call_module"}
        assert {n for n, m in model.named_modules() if isinstance(m, pq.Quantizer)} <= called


def test_the_pass_changes_nothing_the_second_time() -> None:
    for policy in ("align", "shared", "requant"):
        model, _ = compiled("calibrated", policy)
        step = next(p for p in pq.default_pipeline(model.config) if getattr(p, "name", "") == "align_joins")
        code = model.graph_module.code
        assert not step(model.graph_module), policy
        assert model.graph_module.code == code


# ---- what policies cost
class Sum(nn.Module):
    """Two placed formats that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = pq.FixedQuantizer(1, 3, 2), pq.FixedQuantizer(0, 1, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.p(x) + self.q(x)


def rows(model: Any, **options: Any) -> dict[str, JoinCost]:
    return {row.policy: row for row in join_costs(model.graph_module, **options).rows}


def test_costs_of_an_add_by_hand() -> None:
    """fixed<6,4> + ufixed<6,1> over 4 values: the wider operand has 6 bits; in common, (1, 3, 5) has 9."""
    torch.manual_seed(0)
    model = pq.compile(Sum(), "fixed8", torch.randn(8, 4))
    found = rows(model)
    assert [found[p].ebops for p in ("align", "shared", "requant")] == pytest.approx([0.65 * 6 * 4, 0.65 * 9 * 4, 0.65 * 6 * 4])
    assert [found[p].result_bits for p in ("align", "shared", "requant")] == [10, 10, 9]
    assert [p for p, row in found.items() if row.chosen] == ["align"]
    assert found["align"].ebops == model.ebops().total
    assert rows(model.freeze()) == found


def test_the_chosen_policy_is_marked_and_its_cost_is_that_of_the_network() -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x)) + x

    for kind in ("calibrated", "hgq"):
        for policy in ("align", "shared", "requant"):
            model, _ = compiled(kind, policy, Add, (4,))
            (chosen,) = (row for row in join_costs(model.graph_module).rows if row.chosen)
            counted = {row.node: row.ebops for row in model.ebops().rows}
            assert (chosen.policy, chosen.ebops) == (policy, counted[chosen.node])


def test_the_table_prints_itself() -> None:
    model, _ = compiled("calibrated", "shared")
    costs = join_costs(model.graph_module)
    assert len(costs.rows) == 9
    assert "shared *" in costs.to_text()
    assert costs.to_html().count("<tr>") == 10
    assert str(costs) == costs.to_text()


def test_joins_of_unknown_formats_are_left_out_and_a_wrong_sign_is_refused() -> None:
    model = pq.compile(Sum(), "float", torch.randn(8, 4))
    assert len(join_costs(model.graph_module).rows) == 3

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.sum(1, keepdim=True)

    assert join_costs(pq.compile(Plain(), "float", torch.randn(8, 4)).graph_module).rows == ()
    with pytest.raises(pq.ConfigError) as caught:
        join_costs(model.graph_module, sign="never")
    assert caught.value.code == "PQ405"
