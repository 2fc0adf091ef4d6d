"""tanh becomes hard tanh where the settings say so, with a note for each place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.graph.dialect import op_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(self.act(self.a(x))))


def compiled(real: bool, layers: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    config = {"preset": "fixed8", "quantization_parameters": {"use_real_tanh": real}, "layers": layers or {}}
    return pq.compile(Net(), config, 3 * torch.randn(32, 8))


def activations(model: Any) -> list[str]:
    names = {n: op.name for n in model.graph_module.graph.nodes if (op := op_of(n)) is not None}
    return [name for name in names.values() if "tanh" in name]


def noted(model: Any) -> list[str | None]:
    return [p.place.node for p in model.notes if p.code == "PQ605"]


def test_it_is_replaced_and_noted() -> None:
    model = compiled(real=False)
    assert activations(model) == ["hardtanh", "hardtanh"]
    assert noted(model) == ["act", "tanh"]
    assert all(p.severity == "info" for p in model.notes)
    x = 3 * torch.randn(64, 8)
    assert torch.equal(model.freeze()(x), model.eval()(x))
    assert float(model(x).detach().abs().max()) <= 1


def test_the_real_one_stays_a_table() -> None:
    model = compiled(real=True)
    assert activations(model) == ["tanh", "tanh"]
    assert noted(model) == []


def test_a_rule_decides_for_one_place() -> None:
    model = compiled(True, {"act": {"real_tanh": False}})
    assert activations(model) == ["hardtanh", "tanh"]
    assert noted(model) == ["act"]


def test_the_format_is_that_of_the_clip_whatever_the_data_fill_of_it() -> None:
    model = compiled(real=False, layers={"act": {"data_bits": 6}})
    small = torch.randn(32, 8) / 1000
    model.calibrate(small)
    assert [int(v) for v in model.get_submodule("pq.act.quantizer").kif()] == [1, 0, 5]
