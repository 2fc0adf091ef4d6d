"""LSTM and GRU, step after step: torch's numbers, formats that all steps share, refusals of states that come with the data."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant_fx as pq
from tests.written_out import assert_written_out, gradients_differ, opaque, quantizers


class Last(nn.Module):
    """The last output, or a final state, through a linear layer."""

    def __init__(self, kind: Any, read: str = "outputs", **options: Any) -> None:
        super().__init__()
        self.cells, self.read = kind(3, 4, batch_first=True, **options), read
        self.head = nn.Linear(8 if options.get("bidirectional") and read != "state" else 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.cells(x)
        h = state[0] if isinstance(state, tuple) else state
        return self.head({"outputs": lambda: y[:, -1], "state": lambda: h[-1], "all": lambda: y}[self.read]())


class FromZero(nn.Module):
    """As many write it, with states of their own; the cell is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.zeros(1, x.size(0), 4, dtype=x.dtype).to(x.device)
        y, (_, c) = self.cells(x, (h, torch.zeros_like(h)))
        return y, c.squeeze(0)


CASES: dict[str, Any] = {
    "LSTM": lambda: Last(nn.LSTM),
    "LSTM, final state, without bias": lambda: Last(nn.LSTM, "state", bias=False),
    "LSTM in both directions": lambda: Last(nn.LSTM, "all", bidirectional=True),
    "LSTM of two layers": lambda: Last(nn.LSTM, "state", num_layers=2, dropout=0.1),
    "LSTM from zeros": FromZero,
    "GRU": lambda: Last(nn.GRU),
    "GRU, final state of two directions": lambda: Last(nn.GRU, "state", bidirectional=True),
    "GRU without bias, two layers": lambda: Last(nn.GRU, "all", bias=False, num_layers=2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_the_float_model_and_one_meaning(name: str) -> None:
    assert_written_out(CASES[name], 3, 3)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gradients_are_those_of_the_float_model(kind: Any) -> None:
    torch.manual_seed(0)
    assert gradients_differ(Last(kind, "all"), torch.randn(64, 5, 3)) < 0.02


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_steps_share_their_formats(kind: Any) -> None:
    """As many quantizers for nine steps as for three, and every hidden state goes through the same one."""
    torch.manual_seed(0)
    few, many = (pq.compile(Last(kind, "all"), "fixed8", torch.randn(32, steps, 3)) for steps in (3, 9))
    assert opaque(many) == []
    assert quantizers(few, "cells") == quantizers(many, "cells")
    calls = [str(n.target) for n in many.graph_module.graph.nodes if n.op == "call_module"]
    nine = {path for path in quantizers(many, "cells") if calls.count(path) == 9}
    assert len(nine) >= 5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_inputs_and_state_are_added_before_anything_is_rounded(kind: Any, bias: bool) -> None:
    torch.manual_seed(0)
    model = pq.compile(Last(kind, bias=bias), "fixed8", torch.randn(32, 3, 3))
    first = next(n for n in model.graph_module.graph.nodes if n.target is nn.functional.linear)
    assert {u.target for u in first.users} == {operator.getitem}


def test_parameters_keep_their_names_and_are_quantized_once() -> None:
    torch.manual_seed(0)
    net = Last(nn.LSTM)
    model = pq.compile(net, "fixed8", torch.randn(32, 4, 3))
    assert set(net.state_dict()) <= set(model.state_dict())
    weights = [n.target for n in model.graph_module.graph.nodes if "weight_hh_l0_quantizer" in str(n.target)]
    assert len(weights) == 1


def test_a_step_is_the_cell_by_hand() -> None:
    """Static formats of 12 bits: the hidden state of the first step follows from the gates alone."""
    torch.manual_seed(0)
    net, x = nn.LSTM(3, 4, batch_first=True), torch.randint(-16, 16, (50, 1, 3)) / 8
    config = {"preset": "fixed8", "quantization_parameters": {"default_data_bits": 14, "default_weight_bits": 14}}

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = net

        def forward(self, x: Tensor) -> Tensor:
            return self.cells(x)[0]

    with torch.no_grad():
        found = pq.compile(Outputs(), config, x).freeze()(x)[:, 0]
        i, _, g, o = (x[:, 0] @ net.weight_ih_l0.t() + net.bias_ih_l0 + net.bias_hh_l0).chunk(4, 1)
        expected = torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g))
    assert float((found - expected).abs().max()) < 2e-3


class Given(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.first = nn.GRU(3, 4, batch_first=True), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x, self.first(x[:, 0])[None])[0]


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[1][0].transpose(0, 1)


REFUSED: dict[str, tuple[Any, str, str]] = {
    "a given state": (Given, "first state comes with the data", "begins at zero"),
    "states with the batch second": (Whole, "batch on axis 1", "h[-1]"),
    "steps first": (lambda: nn.Sequential(nn.LSTM(3, 4)), "batch is not the first axis", "batch_first=True"),
    "another cell": (lambda: nn.Sequential(nn.RNN(3, 4, batch_first=True)), "RNN", "nn.LSTM"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_meaning_is_refused_before_training(name: str) -> None:
    build, what, remedy = REFUSED[name]

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return y if isinstance(y, Tensor) else y[0]

    report = pq.check(First(), torch.randn(8, 5, 3), target="integer")
    assert not report.ok
    assert [p.code for p in report.problems if what in p.what and remedy in p.remedy] == ["PQ201"], str(report)
