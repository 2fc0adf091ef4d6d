"""The fuzzer: a slice of what `python -m benchmarks.fuzz` runs, and that it finds what it looks for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pquant_fx as pq
from benchmarks.fuzz.networks import draw_network
from benchmarks.fuzz.settings import draw_config
from benchmarks.fuzz.trial import trial
from pquant_fx.lower.integer import IntegerInterpreter

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_networks_are_exact_or_refused_with_a_code(first: int) -> None:
    outcomes = [trial(seed) for seed in range(first, first + 10)]
    assert not [o for o in outcomes if o.kind not in ("exact", "refused")]
    assert sum(o.kind == "exact" for o in outcomes) >= 7


@pytest.mark.hls
@pytest.mark.parametrize("seed", [3, 25])  # 25 rounds a value to a grid coarser than all of it
def test_random_networks_in_c_simulation(seed: int) -> None:
    assert trial(seed, "hls4ml").kind == "exact"


@pytest.mark.rtl
@pytest.mark.parametrize("seed", [3, 14])
def test_random_networks_as_verilog(seed: int) -> None:
    pytest.importorskip("alkaid")
    if shutil.which("iverilog") is None:
        pytest.skip("iverilog is not installed")
    assert trial(seed, "rtl").kind == "exact"


def test_a_seed_is_a_network() -> None:
    for seed in range(5):
        (one, shape), (two, same_shape) = draw_network(seed), draw_network(seed)
        config = draw_config(seed, "onnx", one.layers)
        assert (shape, config) == (same_shape, draw_config(seed, "onnx", two.layers))
        x = torch.randn(4, *shape)
        assert pq.compile(one, config, x).fingerprint == pq.compile(two, config, x).fingerprint


def test_networks_have_joins_and_modules_that_are_used_twice() -> None:
    networks = [draw_network(seed)[0] for seed in range(200)]
    assert sum(any(len(step.inputs) > 1 for step in net.steps) for net in networks) > 60
    names = [[step.name for step in net.steps if step.name is not None] for net in networks]
    assert sum(len(found) > len(set(found)) for found in names) > 20


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = IntegerInterpreter.run

    def wrong(self: IntegerInterpreter, *inputs: object, **kwargs: object) -> object:
        outputs = run(self, *inputs, **kwargs)  # type: ignore[arg-type]
        return tuple(type(o)(o.codes + 1, *o[1:]) for o in outputs) if isinstance(outputs, tuple) else outputs

    monkeypatch.setattr(IntegerInterpreter, "run", wrong)
    assert "different" in {trial(seed).kind for seed in range(8)}


def test_a_crash_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IntegerInterpreter, "__init__", lambda *_: 1 / 0)
    assert trial(3).kind in ("crashed", "different")


def test_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--graphs", "3", "--seed", "3"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3 networks from seed 3, onnx: {'exact': 3}, 100.0% accepted" in done.stdout
