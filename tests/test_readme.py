"""Every snippet and every command of the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    absent = ("demo", *(["synthesize"] if shutil.which("yosys") is None else []))
    return [line for line in lines if line.startswith("pquant-fx") and not any(word in line for word in absent)]


@pytest.mark.hls
def test_the_python_snippets_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict[str, object] = {}
    snippets = blocks("python")
    assert len(snippets) >= 5
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), space)
    printed = capsys.readouterr().out
    assert "all engines agree bit for bit" in printed
    assert (tmp_path / "build" / "net.onnx").exists()


def test_the_commands_run(tmp_path):
    (tmp_path / "mynet.py").write_text(NET)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(64, 16)).astype(np.float32))
    lines = commands()
    assert len(lines) >= 4
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for line in lines:
        words = shlex.split(line)[1:]
        words = words[: words.index(">")] if ">" in words else words
        done = subprocess.run(
            [sys.executable, "-c", "from pquant_fx.cli import main; main()", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout + done.stderr, line
    assert (tmp_path / "build" / "mynet" / "qonnx.onnx").exists()


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_presets_in_the_readme_are_the_shipped_ones():
    from pquant_fx.config import preset_names

    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", TEXT, re.MULTILINE)  # presets alike share a row
    listed = [name for cell in cells for name in re.findall(r"\w+", cell)]
    assert sorted(listed) == sorted(preset_names())
