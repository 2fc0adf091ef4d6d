"""Tables, slopes, softmax and transposed convolutions in hls4ml: bit for bit in C simulation, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.lower.hls4ml.convert import _plan, check, to_hls4ml
from pquant_fx.lower.integer import IntegerInterpreter, real
from pquant_fx.lower.onnx.qonnx import to_qonnx
from pquant_fx.passes.bake_tables import bake_tables
from tests.frozen_graphs import FrozenNet
from tests.hls4ml_zoo import File


class Net(nn.Module):
    """Every new operator on vectors; the sigmoid and the last layer read the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.prelu = nn.PReLU(8)
        with torch.no_grad():
            self.prelu.weight.copy_(torch.linspace(-0.5, 1.5, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = F.gelu(self.b(torch.tanh(self.a(x))))
        y = F.leaky_relu(self.prelu(self.c(y)), 1.5)
        return torch.softmax(self.d(y), 1), torch.sigmoid(y)


@pytest.mark.hls
@pytest.mark.parametrize("io_type", ["io_parallel", "io_stream"])
def test_tables_slopes_and_softmax_in_c_simulation(io_type: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 6) * 2
    frozen = pq.compile(Net(), "fixed8", x).freeze()
    x = torch.cat([x, x * 50, torch.round(x * 8) / 16, x * 0])
    report = frozen.verify(x, ("integer", "onnx", "hls4ml"), io_type=io_type)
    assert report.ok, str(report)


def elements(net: FrozenNet) -> Any:
    """A transposed convolution of steps of one, and a table whose results have a format for each element."""
    torch.manual_seed(1)
    x = net.quantize(net.input("x", 2, 5), 1, 2, 5)
    w, b = net.parameter("w", torch.randn(2, 2, 3), 1, 1, 5), net.parameter("b", torch.randn(4), 1, 1, 8)
    made = net.call(F.conv_transpose1d, x, w, b, (1,), (1,), (1,), 2, (2,), path="up")
    coarse = net.quantize(made, 1, 2, 3, name="coarse")
    f = torch.arange(32.0).reshape(1, 4, 8) % 5
    return coarse, net.quantize(net.call(torch.tanh, coarse, path="act"), 1, 0, f, "RND_CONV", "SAT_SYM", name="each")


@pytest.mark.hls
def test_formats_of_elements_behind_a_table_in_c_simulation(tmp_path: Any) -> None:
    net = FrozenNet()
    gm = net.done(elements(net))
    x = np.random.default_rng(0).normal(0, 3, (200, 2, 5)).astype(np.float32)
    with torch.no_grad():
        coarse = gm(torch.from_numpy(x))[0]
        expected = gm.pq.each.quantizer(torch.tanh(coarse.double()).float()).numpy()
    assert bake_tables(gm)
    interpreted = IntegerInterpreter(gm).run(x)
    assert np.array_equal(real(*interpreted[1]), expected)
    found = to_hls4ml(to_qonnx(gm), tmp_path / "project").predict(x)
    assert np.array_equal(found[0], coarse.numpy())
    assert np.array_equal(found[1], expected)


def wide(g: File, x: str) -> str:
    index = g.node("Cast", [g.node("Mul", [x, g.constant(1 + 2.0**-13)], "w")], "c", to=7)
    return g.node("Gather", [g.constant(np.ones(4)), index], "g")


REFUSED: dict[str, tuple[str, str, str, tuple[int, ...], Callable[[File, str], str]]] = {
    "picked by constants": ("PQ202", "g", "constant indices", (4,), lambda g, x: g.node("Gather", [x, g.constant([0, 1], np.int64)], "g")),
    "rows": (
        "PQ202", "g", "not whole or negative", (4,),
        lambda g, x: g.node("Gather", [g.constant(np.ones((4, 2))), g.node("Cast", [x], "c", to=7)], "g"),
    ),
    "too wide": ("PQ303", "g", r"2\^2\d", (4,), wide),
    "fractions cut off": ("PQ202", "c", "cuts off", (4,), lambda g, x: g.node("Neg", [g.node("Cast", [x], "c", to=7)], "n")),
    "half precision": ("PQ202", "c", "element type 10", (4,), lambda g, x: g.node("Cast", [x], "c", to=10)),
    "axes by themselves": (
        "PQ202", "a", "Add of", (2, 4, 4),
        lambda g, x: g.node("Add", [x, g.reshape(g.node("GlobalAveragePool", [x], "p"), "r", 2)], "a"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_is_refused(case: str) -> None:
    code, node, what, shape, edit = REFUSED[case]
    g = File()
    x = g.half_up(g.input("x", *shape), "x.quantizer", 3, 8, guard=True)
    problem = check(g.model(edit(g, x)))[0]
    assert (problem.code, problem.place.node) == (code, node)
    assert problem.remedy
    assert re.search(what, problem.what)


def test_the_index_is_part_of_the_table() -> None:
    """No layer is spent on scaling and counting from the first entry."""
    torch.manual_seed(0)
    x = torch.randn(50, 6)
    model: onnx.ModelProto = pq.compile(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "fixed8", x).freeze().to_qonnx()
    plan, problems = _plan(model, "io_stream")
    assert not problems
    assert [layer["class_name"] for layer in plan.layers] == ["InputLayer", "Dense", "UnaryLUT", "Dense"]
