"""Depths of FIFOs that are computed by counting, held against a simulation of every cycle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.lower.hls4ml import stream_layers
from pquant_fx.lower.hls4ml.convert import to_hls4ml
from pquant_fx.lower.hls4ml.stream_depths import SLACK, fifo_depths, most_tokens
from pquant_fx.lower.hls4ml.stream_layers import stream_network
from pquant_fx.lower.hls4ml.stream_network import Process, StreamNetwork, pipelined, sink, source
from pquant_fx.lower.hls4ml.stream_simulation import simulate
from tests import hls4ml_models


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        return F.relu(self.second(F.relu(self.first(a))) + a)


class Nested(nn.Module):
    """A U-Net without its resampling: one skip inside the other, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.deep = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.up, self.out = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        b = F.relu(self.down(a))
        up = F.relu(self.up(torch.cat([F.relu(self.deep(b)), b], 1)))
        return self.out(torch.cat([up, a], 1))


class Strided(nn.Module):
    """Two convolutions, one with stride 2, beside a strided 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.second, self.short = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(2, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        return F.relu(self.second(F.relu(self.first(a))) + self.short(a))


SKIPS = {"Residual": (Residual, 1), "Nested": (Nested, 2), "Strided": (Strided, 1)}
STRATEGIES: list[dict[str, Any]] = [{}, {"strategy": "resource", "reuse_factor": 2}]


def written(name: str, path: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    frozen = pq.compile(SKIPS[name][0](), "fixed_per_tensor", torch.randn(8, 2, 16, 16)).freeze()
    return frozen.to_hls4ml(path, io_type="io_stream", **options)


@pytest.mark.parametrize("options", STRATEGIES, ids=["latency", "resource"])
@pytest.mark.parametrize("name", SKIPS)
def test_skips_get_what_they_need_and_at_most_twice_that(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Needed: the smallest depth of a FIFO that does not deadlock while the others hold just what the count says."""
    network = stream_network(written(name, tmp_path / "p", **options).model_graph)
    least, depths = most_tokens(network), fifo_depths(network)
    endless = simulate(network, dict.fromkeys(network.fifos, 10**6))
    run = simulate(network, depths)
    assert not run.deadlock
    assert run.outputs == 3
    assert run.cycles <= 1.01 * endless.cycles, "the FIFOs must not slow the design down"
    assert not simulate(network, least).deadlock
    skips = [fifo for fifo, depth in depths.items() if depth > SLACK]
    assert len(skips) == SKIPS[name][1]
    for fifo in skips:
        needed = next(n for n in range(1, depths[fifo] + 1) if not simulate(network, {**least, fifo: n}).deadlock)
        assert needed <= depths[fifo] <= 2 * needed
        stuck = simulate(network, {**depths, fifo: needed // 2})
        assert stuck.deadlock
        assert any(f"{fifo} is full" in line for line in stuck.blocked)
        assert stuck.outputs < 3


def test_the_depths_stand_in_the_written_project(tmp_path: Path) -> None:
    project = written("Residual", tmp_path / "p")
    text = (tmp_path / "p" / "firmware" / "net.cpp").read_text()
    found = {name: int(depth) for name, depth in re.findall(r"#pragma HLS STREAM variable=(\w+) depth=(\d+)", text)}
    assert found == project.fifo_depths
    assert max(found.values()) < 16 * 16 // 2, "hls4ml's own FIFOs hold a whole image each"
    whole = written("Residual", tmp_path / "whole", fifo_depths="whole")
    assert whole.fifo_depths == {}
    text = (tmp_path / "whole" / "firmware" / "net.cpp").read_text()
    assert {int(depth) for _, depth in re.findall(r"variable=(\w+) depth=(\d+)", text)} == {16 * 16, 18 * 18}


@pytest.mark.parametrize("name", ["two_inputs", "digits_residual", "images", "line", "mixed_grids"])
def test_every_layer_of_a_plan_is_known(name: str, tmp_path: Path) -> None:
    """Pools, pads, joins along each axis, casts: read as often as they are written, no deadlock, full speed."""
    project = to_hls4ml(getattr(hls4ml_models, name)(), tmp_path / "p", io_type="io_stream")
    network = stream_network(project.model_graph)
    assert network.unbalanced == ()
    run = simulate(network, fifo_depths(network))
    assert not run.deadlock
    assert run.cycles == simulate(network, dict.fromkeys(network.fifos, 10**6)).cycles


def test_a_layer_that_is_not_known_keeps_hls4mls_fifos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(stream_layers._LAYERS, "Clone")
    project = written("Residual", tmp_path / "p")
    assert project.fifo_depths == {}
    (note,) = project.notes
    assert (note.code, note.severity) == ("PQ202", "info")
    assert "(Clone)" in note.what


def test_a_stream_that_is_read_less_often_than_written_is_found() -> None:
    assert StreamNetwork((source("x", 8), sink("x", 7))).unbalanced == ("x",)
    assert StreamNetwork((source("x", 8), sink("y", 8))).unbalanced == ("x", "y")


def test_io_parallel_has_no_fifos(tmp_path: Path) -> None:
    frozen = pq.compile(nn.Sequential(nn.Linear(4, 2)), "fixed8", torch.randn(8, 4)).freeze()
    assert frozen.to_hls4ml(tmp_path / "p").fifo_depths == {}


def test_a_fork_whose_branches_are_read_one_after_the_other() -> None:
    """The join reads all 8 tokens of `long` before the first of `short`: 8 of them wait, and one on its way."""
    fork = pipelined("fork", ["x"], ["long", "short"], [((0,), True)] * 8)
    join = pipelined("join", ["long", "short"], ["y"], [*[((0,), False)] * 8, *[((1,), True)] * 8])
    network = StreamNetwork((source("x", 8), fork, join, sink("y", 8)))
    assert most_tokens(network) == {"x": 1, "long": 1, "short": 8, "y": 1}
    assert simulate(network, {"x": 1, "long": 1, "short": 7, "y": 1}).blocked == (
        "input x: x is full", "fork: short is full", "join: long is empty", "output y: y is empty",
    )  # fmt: skip
    assert not simulate(network, {"x": 1, "long": 1, "short": 8, "y": 1}).deadlock


def test_two_outputs_take_turns() -> None:
    fork = pipelined("fork", ["x"], ["a", "b"], [((0,), True)] * 6)
    network = StreamNetwork((source("x", 6), fork, sink("a", 6), sink("b", 6)))
    assert most_tokens(network) == {"x": 1, "a": 1, "b": 1}


def test_a_pipeline_keeps_what_it_has_begun() -> None:
    """One result comes `latency` cycles after its token, a step starts every `interval` cycles, and the loop drains at the end."""
    made = pipelined("p", ["x"], ["y"], [((0,), True)] * 2, latency=3, interval=2)
    assert made == Process("p", ("x",), ("y",), ((0,), (), (0,), (), (), ()), (False, False, False, True, False, True))


@given(st.data())
def test_computed_depths_never_deadlock(data: st.DataObject) -> None:
    """Ladders of forks and joins around processes that drop, delay and repeat tokens."""
    tokens = 12
    processes = [source("f0", tokens)]
    last = "f0"
    for n in range(data.draw(st.integers(1, 4), label="rungs")):
        latency, interval = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 3))
        hold = data.draw(st.integers(0, tokens))
        forked = pipelined(f"fork{n}", [last], [f"a{n}", f"b{n}"], [((0,), True)] * tokens)
        # takes `hold` tokens in before it gives the first one out, and the rest at the end
        steps = [*[((0,), False)] * hold, *[((0,), True)] * (tokens - hold), *[((), True)] * hold]
        slow = pipelined(f"slow{n}", [f"a{n}"], [f"s{n}"], steps, latency, interval)
        joined = pipelined(f"join{n}", [f"s{n}", f"b{n}"], [f"f{n + 1}"], [((0, 1), True)] * tokens, 2)
        processes += [forked, slow, joined]
        last = f"f{n + 1}"
    network = StreamNetwork((*processes, sink(last, tokens)))
    least = most_tokens(network)
    assert not simulate(network, least).deadlock
    assert not simulate(network, fifo_depths(network)).deadlock
    for n in range((len(processes) - 1) // 3):
        assert simulate(network, {**least, f"b{n}": least[f"b{n}"] - 1}).deadlock or least[f"b{n}"] == 1
