"""For people who start from alkaid: a frozen network is a layer of theirs, found through the entry point."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRY = "pquant_fx.alkaid_plugin:register"
CODE = """
import numpy as np, torch
from torch import nn
from alkaid.converter import trace_model
from alkaid.trace import FVArray, trace
from tests.rtl_networks import mlp

model, x = mlp()
inputs = FVArray.from_kif(np.ones(8, int), np.full(8, 3), np.full(8, 7))
inp, out = trace_model(nn.Sequential(model), inputs=inputs, framework="torch")
program = trace(inp, out, keep_dead_inputs=True)
rounded = torch.round(x * 128) / 128
expected = model(rounded).double().numpy()
assert np.array_equal(program.predict(rounded.double().numpy()), expected)
print("same bits")
"""


def test_the_entry_point_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["alkaid_torch"] == {"pquant_fx": ENTRY}


def test_alkaid_s_own_tracer_replays_a_frozen_network(tmp_path):
    pytest.importorskip("alkaid")
    made = tmp_path / "pquant_fx-0.dist-info"  # as an installation leaves it
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: pquant_fx\nVersion: 0\n")
    (made / "entry_points.txt").write_text(f"[alkaid_torch]\npquant_fx = {ENTRY}\n")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "same bits" in done.stdout
