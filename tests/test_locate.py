"""A difference is located: verify names the first node at which an engine leaves torch, in every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.lower.hls4ml import convert
from pquant_fx.lower.onnx import ops, plain
from tests import hls4ml_zoo
from tests.models import MLP

X = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))


def frozen() -> pq.FrozenModel:
    torch.manual_seed(0)
    return pq.compile(MLP(), "fixed8", X).freeze()


def wrong_relu(e: Any, node: Any) -> Any:
    return e.result(node, "Neg", [e.data(node, node.args[0])])


class WrongProject:
    """A project whose circuit is what its (wrong) file says."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.model = model

    def compile(self) -> None:
        return None

    def predict(self, *x: Any) -> list[Any]:
        return hls4ml_zoo.evaluate(self.model, *(np.asarray(v, dtype=np.float64) for v in x))


@pytest.mark.parametrize("engine", ["onnx", "qonnx", "hls4ml"])
def test_the_first_node_that_differs_is_named(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = frozen()
    assert done.verify(X, targets=("integer", "onnx", "qonnx")).ok
    monkeypatch.setitem(plain.PLAIN_TABLE, F.relu, wrong_relu)
    monkeypatch.setitem(ops.TABLE, F.relu, wrong_relu)
    monkeypatch.setattr(convert, "to_hls4ml", WrongProject)
    report = done.verify(X, targets=("integer", engine))
    first = report.first_difference
    assert not report.ok
    assert first is not None
    assert first.engine.startswith(engine)
    relu = next(n for n in done.graph_module.graph.nodes if n.target is F.relu)
    assert first.node == relu.name
    assert f"first at node '{relu.name}'" in str(report)


def test_a_report_survives_an_engine_that_can_not_show_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise RuntimeError("no room for so many outputs")

    from pquant_fx.lower import engines

    done = frozen()
    monkeypatch.setitem(plain.PLAIN_TABLE, F.relu, wrong_relu)
    monkeypatch.setitem(engines.ENGINE_VALUES, "onnx", fails)
    report = done.verify(X, targets=("onnx",))
    assert report.first_difference is not None
    assert report.first_difference.node is None
    assert report.rows[0].different


def test_the_nodes_that_differ_come_with_lsbs_share_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    done = frozen()
    monkeypatch.setitem(plain.PLAIN_TABLE, F.relu, wrong_relu)
    report = done.verify(X, targets=("onnx",), stress=0)
    order = [n.name for n in done.graph_module.graph.nodes]
    assert [order.index(n.node) for n in report.nodes] == sorted(order.index(n.node) for n in report.nodes)
    first = report.nodes[0]
    relu = next(n for n in done.graph_module.graph.nodes if n.target is F.relu)
    value = _value(done, relu.all_input_nodes[0].name, X)
    apart = (value.relu() + value).abs().double() * 2.0 ** done.formats[relu].f
    assert first.max_ulp == float(apart.max())
    assert first.share == float((apart.amax(1) > 0).double().mean())
    assert first.module == "1"
    assert f"{first.node:32s} {first.max_ulp:8g}" in report.node_table
    assert report.node_table in str(report)


def test_the_search_finds_the_worst_input_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inputs of four bits: every one of their 256 values is tried by hand."""
    torch.manual_seed(3)
    config = {"preset": "fixed8", "inputs": {"input": {"format": "fixed<4,3>"}}}
    done = pq.compile(
        torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)), config, torch.randn(64, 2)
    ).freeze()
    monkeypatch.setitem(plain.PLAIN_TABLE, F.relu, wrong_relu)
    report = done.verify(torch.full((3, 2), 0.5), targets=("onnx",), stress=0)
    first = report.nodes[0]
    grid = torch.arange(-8, 8) / 2.0
    every = torch.cartesian_prod(grid, grid)
    linear = next(n for n in done.graph_module.graph.nodes if n.target is F.linear)
    values = _value(done, linear.name, every)
    apart = (values.relu() + values).abs().double() * 2.0 ** done.formats[next(iter(linear.users))].f
    assert first.searched == float(apart.max())
    assert first.searched > first.max_ulp
    assert first.worst is not None
    at = torch.from_numpy(first.worst[0]).float()[None]
    again = _value(done, linear.name, at)
    assert float(((again.relu() + again).abs() * 2.0 ** done.formats[next(iter(linear.users))].f).max()) == first.searched


def _value(done: pq.FrozenModel, name: str, x: torch.Tensor) -> torch.Tensor:
    found: dict[str, torch.Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Keep(done.graph_module).run(x)
    return found[name]
