"""Models, shapes and data that a command line names, and everything that is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pquant_fx.cli.inputs import input_names, input_shapes, load_model, read_data
from pquant_fx.errors import PQuantError

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 8)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc2(self.relu(self.fc1(x)))

class Two(nn.Module):
    def forward(self, x, weights, scale=None):
        return x + weights

def build():
    torch.manual_seed(0)
    return Net()

def with_x():
    return build(), torch.randn(8, 16, generator=torch.Generator().manual_seed(1))

def needs(width):
    return nn.Linear(width, 2)

def number():
    return 3

def breaks():
    raise ValueError("no weights")

ready = build()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "clinet.py").write_text(NET)
    (tmp_path / "clibroken.py").write_text("import torch\n\nx = 1 / 0\n")
    (tmp_path / "climissing.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("clinet", "clibroken", "climissing"):
        sys.modules.pop(name, None)


def codes(error: PQuantError) -> list[str]:
    return [problem.code for problem in error.problems]


# ---- models
def test_a_model_by_function_class_or_name(folder: Path) -> None:
    for spec in ("clinet:build", "clinet:Net", "clinet:ready"):
        net, examples = load_model(spec)
        assert isinstance(net, torch.nn.Module)
        assert examples is None
    assert load_model("clinet:with_x")[1].shape == (8, 16)


@pytest.mark.parametrize(
    ("spec", "what", "remedy"),
    [
        ("clinet", "names no model", "mynet:build"),
        (":build", "names no model", "mynet:build"),
        ("clinet.py:build", "is a file", "'clinet:build'"),
        ("clinett:build", "no module 'clinett'", "'clinet'"),
        ("clinet:biuld", "no 'biuld'", "'build'"),
        ("clinet:needs", "needs arguments", "without arguments"),
        ("clinet:number", "gave int, not a model", "nn.Module"),
        ("clinet:breaks", "no weights", "mend"),
        ("clinet:Nett.x", "no 'Nett'", "'Net'"),
        ("clibroken:build", "division by zero", "mend"),
        ("climissing:build", "'no_such_package_at_all'", "install"),
    ],
)
def test_what_is_no_model(folder: Path, spec: str, what: str, remedy: str) -> None:
    with pytest.raises(PQuantError) as caught:
        load_model(spec)
    assert codes(caught.value) == ["PQ507"]
    assert what in caught.value.problems[0].what
    assert remedy in caught.value.remedy


def test_a_failing_function_names_the_users_line(folder: Path) -> None:
    with pytest.raises(PQuantError) as caught:
        load_model("clinet:breaks")
    line = NET.splitlines().index('    raise ValueError("no weights")') + 1
    assert caught.value.place.line == f"{folder / 'clinet.py'}:{line}"
    with pytest.raises(PQuantError) as caught:
        load_model("clibroken:build")
    assert caught.value.place.line == f"{folder / 'clibroken.py'}:3"


# ---- shapes and data
def test_shapes(folder: Path) -> None:
    net, two = load_model("clinet:Net")[0], load_model("clinet:Two")[0]
    assert (input_names(net), input_names(two)) == (["x"], ["x", "weights"])
    assert input_shapes(net, "1,8,8", []) == {"x": (1, 8, 8)}
    assert input_shapes(two, None, ["weights=16", "x=4x4"]) == {"weights": (16,), "x": (4, 4)}
    for shape, named, code in [
        ("1,a", [], "PQ407"),
        ("0", [], "PQ407"),
        ("", [], "PQ407"),
        ("4", ["x=4"], "PQ407"),
        (None, ["x:4"], "PQ407"),
    ]:
        with pytest.raises(PQuantError) as caught:
            input_shapes(net, shape, named)
        assert codes(caught.value) == [code]
    with pytest.raises(PQuantError) as caught:
        input_shapes(two, "4", [])
    assert codes(caught.value) == ["PQ409"]
    with pytest.raises(PQuantError) as caught:
        input_shapes(two, None, ["wieghts=4"])
    assert "'weights'" in caught.value.remedy


def test_data(folder: Path) -> None:
    x = np.arange(12, dtype=np.float64).reshape(3, 4)
    np.savez(folder / "one.npz", x=x, y=np.array([0, 1, 2], dtype=np.uint8))
    data = read_data(folder / "one.npz", ["features"])
    assert torch.equal(data.inputs["features"], torch.tensor(x, dtype=torch.float32))
    assert data.targets is not None
    assert (data.targets.dtype, data.samples, len(data.first(2)["features"])) == (torch.int64, 3, 2)
    np.savez(folder / "two.npz", input_a=x, b=x[:, :1])
    assert list(read_data(folder / "two.npz", ["a", "b"]).inputs) == ["a", "b"]


@pytest.mark.parametrize(
    "arrays",
    [{}, {"z": np.zeros(3)}, {"x": np.zeros((0, 4))}, {"x": np.zeros(3), "y": np.zeros(4)}, {"x": np.array(1.0)}, {"x": np.array(["a"])}],
)
def test_data_that_can_not_be_used(folder: Path, arrays: dict[str, Any]) -> None:
    np.savez(folder / "d.npz", **arrays)
    with pytest.raises(PQuantError) as caught:
        read_data(folder / "d.npz", ["x"])
    assert codes(caught.value) == ["PQ410"]


def test_the_remedy_for_one_input_names_the_array_x(folder: Path) -> None:
    np.savez(folder / "d.npz", z=np.zeros((3, 4)))
    with pytest.raises(PQuantError, match="but no 'x'") as caught:
        read_data(folder / "d.npz", ["input"])
    assert "numpy.savez(path, x=x, y=targets)" in caught.value.remedy


def test_files_that_are_no_data(folder: Path) -> None:
    (folder / "text.npz").write_text("hello")
    (folder / "empty.npz").write_bytes(b"")
    np.save(folder / "single.npy", np.zeros(3))
    np.savez(folder / "objects.npz", x=np.array([{}], dtype=object))
    for name in ("nowhere.npz", "text.npz", "empty.npz", "single.npy", "objects.npz"):
        with pytest.raises(PQuantError) as caught:
            read_data(folder / name, ["x"])
        assert codes(caught.value) == ["PQ410"], name
