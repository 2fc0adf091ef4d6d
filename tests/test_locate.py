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
    monkeypatch.setitem(plain._TABLE, F.relu, wrong_relu)
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
    monkeypatch.setitem(plain._TABLE, F.relu, wrong_relu)
    monkeypatch.setitem(engines._VALUES, "onnx", fails)
    report = done.verify(X, targets=("onnx",))
    assert report.first_difference is not None
    assert report.first_difference.node is None
    assert report.rows[0].different
