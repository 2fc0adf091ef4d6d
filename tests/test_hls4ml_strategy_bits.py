"""Whatever the strategy, the reuse factor or the backend: the C simulation gives the same bits as torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pquant_fx as pq

CNN = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
MLP = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "resource, 2": ("cnn", {"strategy": "resource", "reuse_factor": 2, "layers": {"Linear": {"strategy": "latency", "reuse_factor": 3}}}),
    "resource, 4, stream": ("cnn", {"strategy": "resource", "reuse_factor": 4, "io_type": "io_stream"}),
    "unrolled": ("mlp", {"strategy": "resource_unrolled", "reuse_factor": 4}),
    "Catapult": ("cnn", {"backend": "Catapult"}),
    "Quartus": ("cnn", {"backend": "Quartus", "reuse_factor": 2}),
}


def differences(name: str, path: Path, options: dict[str, Any]) -> tuple[int, int]:
    """(outputs that differ, outputs that are not zero) of 60 samples, ties and saturating ones among them."""
    torch.manual_seed(1)
    shape = (2, 4, 4) if name == "cnn" else (6,)
    x = torch.randn(60, *shape) * 2
    x[:20] = torch.round(x[:20] * 32) / 32
    x[20:24] *= 100
    frozen = pq.compile(CNN if name == "cnn" else MLP, "fixed_per_tensor", x[30:]).freeze()
    found, expected = frozen.to_hls4ml(path, **options).predict(x.numpy()), frozen(x).double().numpy()
    return int((found != expected).sum()), int(np.count_nonzero(expected))


@pytest.mark.hls
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_strategy_reuse_or_backend(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    wrong, moving = differences(name, tmp_path / "p", options)
    assert wrong == 0
    assert moving > 50


@pytest.mark.extras
@pytest.mark.hls
@pytest.mark.parametrize(("name", "io_type"), [("mlp", "io_parallel"), ("cnn", "io_stream")])
def test_distributed_arithmetic_gives_the_same_bits(name: str, io_type: str, tmp_path: Path) -> None:
    """numba compiles da4ml when it is first used, which takes minutes."""
    if importlib.util.find_spec("da4ml") is None:
        pytest.skip("da4ml is not installed: pip install 'pquant_fx[da]'")
    assert differences(name, tmp_path / "p", {"strategy": "distributed_arithmetic", "io_type": io_type})[0] == 0
