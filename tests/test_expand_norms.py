"""LayerNorm and RMSNorm: exact centring and squares, one table, one rounding at the consumer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.tables import inverse_root
from tests.written_out import assert_written_out, gradients_differ, opaque, quantizers


def between(norm: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), norm, nn.Linear(width, 3))


def trained(norm: Any) -> Any:
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.randn_like(p) / 4)
    return norm


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (4, 5)) - F.rms_norm(x, [5], eps=0.125)


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "8 features": (lambda: between(trained(nn.LayerNorm(8)), 8), (5,)),
    "6 features": (lambda: between(trained(nn.LayerNorm(6))), (5,)),
    "a sequence": (lambda: between(trained(nn.LayerNorm(6))), (4, 5)),
    "two axes": (lambda: trained(nn.LayerNorm((3, 7))), (3, 7)),
    "of an input, without parameters": (lambda: nn.LayerNorm(5, elementwise_affine=False), (4, 5)),
    "without bias": (lambda: between(trained(nn.LayerNorm(6, bias=False))), (5,)),
    "root mean square": (lambda: between(trained(nn.RMSNorm(6))), (4, 5)),
    "functional": (Functional, (4, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_the_float_model_and_one_meaning(name: str) -> None:
    build, shape = CASES[name]
    assert_written_out(build, *shape, rough=0.06)


@pytest.mark.parametrize("name", ["6 features", "a sequence", "root mean square"])
def test_gradients_are_those_of_the_float_model(name: str) -> None:
    torch.manual_seed(0)
    build, shape = CASES[name]
    assert gradients_differ(build(), torch.randn(64, *shape)) < 0.02


@pytest.mark.parametrize("features", [4, 6, 11])
def test_centring_is_exact(features: int) -> None:
    """What is added to all features leaves no trace, and what a LayerNorm without parameters gives sums to 0: not nearly."""
    torch.manual_seed(0)
    x = torch.randint(-64, 64, (500, features)) / 32
    net = nn.LayerNorm(features, elementwise_affine=False)
    frozen = pq.compile(net, {"preset": "fixed8", "inputs": {"input": {"format": "fixed<9,4>"}}}, x).freeze()
    moved = x + torch.randint(-32, 32, (500, 1)) / 32
    assert torch.equal(frozen(x), frozen(moved))
    assert float(frozen(x).double().sum(1).abs().max()) == 0


def test_one_rounding_before_and_one_behind() -> None:
    """x, the sum of squares, its root: nothing else is rounded until a consumer asks."""
    torch.manual_seed(0)
    model = pq.compile(between(trained(nn.LayerNorm(6))), "fixed8", torch.randn(64, 5))
    assert opaque(model) == []
    assert len(quantizers(model, "_1")) == 3  # sum, root, result
    gm = model.graph_module
    widths = {int(sum(int(t.max()) for t in gm.get_submodule(p).kif())) for p in quantizers(model, "_1")}
    assert widths == {12, 8}
    for node in gm.graph.nodes:
        if node.target is torch.sum:
            assert any(isinstance(gm.get_submodule(str(u.target)), Quantizer) for u in node.users if u.op == "call_module") or any(
                u.op == "call_function" for u in node.users
            )


def test_the_table_is_what_a_norm_divides_by() -> None:
    x = torch.linspace(0, 9, 50, dtype=torch.float64)
    assert torch.allclose(inverse_root(x, 0.25, 0.5), 1 / torch.sqrt(x / 4 + 0.5))
    assert float(inverse_root(torch.zeros(()), 0.25, 0.25)) == 2


@pytest.mark.parametrize("norm", [nn.LayerNorm(6, eps=0.0), nn.LayerNorm(1)])
def test_what_divides_by_zero_is_refused(norm: nn.LayerNorm) -> None:
    width = norm.normalized_shape[0]
    report = pq.check(between(norm, width), torch.randn(8, 5), target="integer")
    assert [(p.code, p.place.module) for p in report.problems] == [("PQ201", "1")]
    assert "eps" in report.problems[0].what
