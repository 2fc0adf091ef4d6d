"""The examples run as written, and say what they promise. They use the public API only."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quickstart_agrees_bit_for_bit_and_writes_both_files(tmp_path, capsys):
    assert load("quickstart").main(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.qonnx.onnx"}
    out = capsys.readouterr().out
    assert "all engines agree bit for bit" in out
    assert "50.00%" in out  # the sparsity of the last epochs


def test_custom_pass_replaces_relu6_and_changes_no_bit(capsys):
    before, after = load("custom_pass").main()
    assert "relu6" in before
    assert "relu6" not in after
    assert [name.replace("relu6", "relu") for name in before] == after
    assert "bit for bit: True" in capsys.readouterr().out


def test_residual_network_trains_in_its_own_loop(tmp_path, capsys):
    assert load("residual_network").main(tmp_path)
    last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")][-1]
    assert "sparsity 50.0%" in last
    assert float(last.split("accuracy ")[1].split(",")[0]) > 0.85


def test_other_toolchains_read_the_qonnx_file(tmp_path, capsys):
    assert load("qonnx_for_other_toolchains").main(tmp_path) == 0
    out = capsys.readouterr().out
    assert "['ai.onnx', 'qonnx.custom_op.general']" in out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_is_short_and_uses_the_public_api_only(path):
    source = path.read_text()
    assert len(source.splitlines()) < 100
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("pquant_fx")
        if isinstance(node, ast.Import):
            assert all(alias.name == "pquant_fx" or not alias.name.startswith("pquant_fx") for alias in node.names)
