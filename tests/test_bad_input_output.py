"""Places that can not be written, packages and tools that are missing: an error at the call, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx import files
from pquant_fx.report.bundle import bundle
from tests.refused import check, refused

X = torch.linspace(-1, 1, 20).reshape(5, 4)
Write = Callable[[pq.FrozenModel, Path], Any]


@pytest.fixture(scope="module")
def frozen() -> pq.FrozenModel:
    torch.manual_seed(0)
    return pq.compile(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "fixed8", X).freeze()


WRITERS: dict[str, Write] = {
    "qonnx": lambda f, path: f.to_qonnx(path, strict=True),
    "onnx": lambda f, path: f.to_onnx(path),
    "hls4ml": lambda f, path: f.to_hls4ml(path),
    "bundle": lambda f, path: bundle(f, path, X, hls4ml=False),
}
DIRECTORIES: dict[str, Callable[[pq.FrozenModel, Path, bool], Any]] = {
    "hls4ml": lambda f, path, overwrite: f.to_hls4ml(path, overwrite=overwrite),
    "bundle": lambda f, path, overwrite: bundle(f, path, X, hls4ml=False, overwrite=overwrite),
}


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# ---- places
@pytest.mark.parametrize("name", WRITERS)
def test_a_place_below_a_file(frozen: pq.FrozenModel, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    error = refused(lambda: WRITERS[name](frozen, tmp_path / "file" / "deep" / "net"), pq.OutputError, "PQ505", "net", "writable place")
    assert error.__cause__ is not None
    assert tree(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["qonnx", "onnx"])
def test_a_directory_in_the_place_of_a_file(frozen: pq.FrozenModel, tmp_path: Path, name: str) -> None:
    (tmp_path / "net.onnx" / "inside").mkdir(parents=True)
    refused(lambda: WRITERS[name](frozen, tmp_path / "net.onnx"), pq.OutputError, "PQ505", "net.onnx", "writable place")
    assert tree(tmp_path) == ["net.onnx", "net.onnx/inside"]


@pytest.mark.parametrize("name", DIRECTORIES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_directory(frozen: pq.FrozenModel, tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    refused(lambda: DIRECTORIES[name](frozen, tmp_path / "thesis", overwrite), pq.OutputError, "PQ506", "not ours", "new directory")
    refused(
        lambda: DIRECTORIES[name](frozen, tmp_path / "thesis/chapter1.tex", overwrite), pq.OutputError, "PQ506", "is a file", "directory"
    )
    assert tree(tmp_path) == ["thesis", "thesis/chapter1.tex"]
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", DIRECTORIES)
def test_our_own_directory_needs_leave_to_be_replaced(frozen: pq.FrozenModel, tmp_path: Path, name: str) -> None:
    DIRECTORIES[name](frozen, tmp_path / "out", False)
    before = tree(tmp_path)
    refused(lambda: DIRECTORIES[name](frozen, tmp_path / "out", False), pq.OutputError, "PQ506", "exists", "overwrite=True")
    DIRECTORIES[name](frozen, tmp_path / "out", True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fills_up_leaves_what_was_there(
    frozen: pq.FrozenModel, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "other").write_text("mine")
    if name in ("qonnx", "onnx"):
        (tmp_path / "net").write_text("the old file")
    before = tree(tmp_path)
    monkeypatch.setattr(files.os, "replace", full)
    refused(lambda: WRITERS[name](frozen, tmp_path / "net"), pq.OutputError, "PQ505", "No space left", "free space")
    assert tree(tmp_path) == before
    assert not (tmp_path / "net").exists() or (tmp_path / "net").read_text() == "the old file"


def test_options_of_a_project_that_do_not_exist(frozen: pq.FrozenModel, tmp_path: Path) -> None:
    wrong = (
        ({"backend": "Vitiss"}, "PQ405", "no backend 'Vitiss'", "Vitis"),
        ({"io_type": "io_serial"}, "PQ405", "no io type 'io_serial'", "io_stream"),
        ({"clock_period": -1}, "PQ407", "clock_period=-1", "ns"),
    )
    for options, code, what, remedy in wrong:
        refused(lambda options=options: frozen.to_hls4ml(tmp_path / "p", **options), pq.ConfigError, code, what, remedy)
    assert tree(tmp_path) == []


# ---- packages and tools
def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `package` be not installed for the rest of the test."""
    for name in [*sys.modules, package]:
        if name == package or name.startswith(f"{package}."):
            monkeypatch.setitem(sys.modules, name, None)


def test_importing_us_needs_no_extra() -> None:
    blocked = ("onnx", "onnxruntime", "qonnx", "hls4ml", "sklearn", "rich", "typer")
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import torch, pquant_fx as pq\n"
        "f = pq.compile(torch.nn.Linear(4, 2), 'fixed8', torch.ones(3, 4)).freeze()\n"
        "assert f.verify(torch.ones(3, 4), ('integer',)).ok\nprint('fine')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize(
    ("name", "package"), [("qonnx", "onnx"), ("onnx", "onnx"), ("hls4ml", "onnx"), ("hls4ml", "hls4ml"), ("bundle", "onnx")]
)
def test_a_missing_package_is_named_with_its_pip_command(
    frozen: pq.FrozenModel, tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(package, monkeypatch)
    error = refused(
        lambda: WRITERS[name](frozen, tmp_path / "net"), pq.ExtraMissingError, "PQ503", f"package {package} ", f"pip install '{package}"
    )
    assert isinstance(error, ImportError)
    assert tree(tmp_path) == []


@pytest.mark.parametrize(("engine", "package"), [("onnx", "onnxruntime"), ("qonnx", "qonnx"), ("onnx", "onnx"), ("hls4ml", "hls4ml")])
def test_verify_says_which_engine_did_not_run_and_why(
    frozen: pq.FrozenModel, engine: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(package, monkeypatch)
    monkeypatch.setattr(frozen, "_projects", {})
    report = frozen.verify(X, ("integer", engine))
    assert not report.ok
    assert [row.different for row in report.rows] == [0, None]
    assert "PQ503" in report.rows[1].note
    assert f"pip install '{package}" in report.rows[1].note


def test_check_reports_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    without("onnx", monkeypatch)
    report = pq.check(nn.Linear(4, 2), X)
    assert not report.ok
    check(report.problems[0], "PQ503", "package onnx", "pip install")


def test_the_demo_without_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pquant_fx.demo import run

    without("sklearn", monkeypatch)
    refused(lambda: run(tmp_path / "demo"), pq.ExtraMissingError, "PQ503", "scikit-learn", r"pip install 'pquant_fx\[demo\]'")
    assert tree(tmp_path) == []


def test_missing_compilers(frozen: pq.FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = frozen.to_hls4ml(tmp_path / "p")
    monkeypatch.setenv("PATH", str(tmp_path))
    for run in (project.compile, lambda: project.predict(X.numpy())):
        refused(run, pq.ExtraMissingError, "PQ503", r"g\+\+", r"install .*g\+\+")
    refused(project.build, pq.ExtraMissingError, "PQ503", "vitis", "settings64.sh")
    monkeypatch.setattr(frozen, "_projects", {})
    report = frozen.verify(X, ("hls4ml",))
    assert not report.ok
    assert "g++" in report.rows[0].note
