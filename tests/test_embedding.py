"""Embeddings: rows of quantized numbers, by integers that need no calibration; the same bits everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.dialect import OPS
from pquant_fx.graph.interval_rules import RULES
from pquant_fx.graph.intervals import Interval, constant
from pquant_fx.graph.moves import embed

PRESETS = ("fixed8", "fixed_per_tensor", "fixed_per_weight", "hgq")


class Words(nn.Module):
    """A table of 11 rows that two columns of numbers share, one of 5 rows, features beside them."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.table, self.small = nn.Embedding(11, 3, padding_idx=padding), nn.Embedding(5, 2)
        self.fc = nn.Linear(8 + 2, 4)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        both = self.table(tokens[:, :2]).flatten(1)
        last = self.small(tokens[:, 2])
        return self.fc(torch.cat([both, last, x], 1))


def data(samples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    columns = [torch.randint(n, (samples,), generator=generator) for n in (11, 11, 5)]
    return torch.stack(columns, 1), torch.randn(samples, 2, generator=generator)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_network_trains_and_gives_the_same_bits(preset: str) -> None:
    torch.manual_seed(0)
    net, x = Words(), data(200)
    model = pq.compile(net, preset, x)
    before = net.table.weight.detach().clone()
    with pq.session(model, epochs=1, steps_per_epoch=1) as s:
        (model.train()(*x).square().mean() + s.loss()).backward()
        s.step()
        s.epoch_end()
    assert float(model.table.weight.grad.abs().sum()) > 0
    model.eval().calibrate([x])
    frozen = model.freeze()
    with torch.no_grad():
        assert torch.equal(model(*x), frozen(*x))
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    assert torch.equal(net.table.weight.detach(), before), "the user's model stays as it is"
    exact = net.eval()(*x).detach()
    error = float((exact - frozen(*x)).abs().max() / exact.abs().max())
    assert error < (0.05 if preset != "hgq" else 0.2)
    assert model.ebops().total == pytest.approx(frozen.ebops().total)


def test_columns_have_formats_and_inputs_are_whole() -> None:
    model = pq.compile(Words(), "fixed8", data(50))
    weight = model.graph_module.pq.get_submodule("table.weight_quantizer")
    assert weight.kif(model.table.weight)[2].shape == (1, 3), "one format for each column, shared by both calls"
    formats = model.freeze().formats
    index = next(n for n in formats.intervals if n.name.startswith("table_input_quantizer") or "table.input_quantizer" in str(n.target))
    assert str(formats.format(index)) == "ufixed<4,4>"
    small = [n for n in formats.intervals if "small.input_quantizer" in str(n.target)]
    assert [str(formats.format(n)) for n in small] == ["ufixed<3,3>"]


def test_numbers_that_are_no_row() -> None:
    model = pq.compile(Words(), "fixed8", data(50))
    tokens, x = data(4)
    tokens[2, 0] = 11
    with pytest.raises(IndexError):
        model(tokens, x)
    frozen = model.eval().freeze()
    with pytest.raises(IndexError):
        frozen(tokens, x)
    with pytest.raises(pq.InputError, match="row 11 of a table of 11 rows") as caught:
        frozen.integer(tokens, x)
    assert caught.value.code == "PQ409"


def test_the_padding_row_gets_no_gradient() -> None:
    model = pq.compile(Words(padding=2), "fixed8", data(90))
    model.train()(*data(90)).sum().backward()
    norms = model.table.weight.grad.abs().sum(1)
    assert float(norms[2]) == 0
    assert (norms[[0, 1, 3]] > 0).all()


class Casts(nn.Module):
    """Numbers that arrive as floats, by a functional call with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x.long(), self.rows).sum(1)


def test_whole_numbers_may_arrive_as_floats() -> None:
    x = torch.randint(6, (40, 3)).float()
    model = pq.compile(Casts(), "fixed8", x).eval()
    frozen = model.freeze()
    assert torch.equal(model(x + 0.25), frozen(x))
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    assert sum(n.op == "call_module" for n in frozen.graph_module.graph.nodes) == 2, "the numbers' quantizer and the table's"


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_other_options_stay_as_they_are_and_are_refused(options: dict[str, Any]) -> None:
    net, x = nn.Sequential(nn.Embedding(6, 3, **options)), torch.randint(6, (9, 2))
    model = pq.compile(net, "fixed8", x)
    with pytest.raises(pq.LoweringError, match="max_norm") as caught:
        model.freeze()
    assert caught.value.code == "PQ201"


def test_bounds_are_those_of_the_columns() -> None:
    table = np.array([[0.5, -1.0], [0.25, 2.0], [0.0, 0.0]])
    x = Interval(0, np.zeros((1, 4), dtype=np.int64), np.full((1, 4), 2))
    value, sums = RULES[embed](x, constant(table), None)
    assert sums is None
    assert value.shape == (1, 4, 2)
    assert (np.ldexp(value.low[0, 0].astype(float), -value.f) == [0, -1]).all()
    assert (np.ldexp(value.high[0, 3].astype(float), -value.f) == [0.5, 2]).all()
    assert OPS[embed].kind == "embedding"


def test_a_column_of_zeros_is_removed_and_rows_are_not() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight[:, 1] = 0
        net[0].weight[2] = 0
    x = torch.randint(6, (40, 5))
    frozen = pq.compile(net, "fixed8", x).eval().freeze()
    assert [(layer.layer, layer.removed_inputs) for layer in frozen.removed.layers] == [("1", (1,))]
    tables = [t.shape for t in frozen.graph_module.buffers() if t.dim() == 2 and t.shape[0] == 6]
    assert tables == [(6, 3)]
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
