"""Opset and file version are chosen by arguments; whatever they are, the bits are the same, and so are the bytes of two exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pquant_fx as pq
from pquant_fx.lower.onnx.plain import to_onnx
from pquant_fx.lower.onnx.qonnx import to_qonnx
from pquant_fx.lower.onnx.run import run_onnxruntime, run_qonnx
from tests.frozen_graphs import double_reference
from tests.frozen_operators import OPERATORS, operator_inputs, operator_net
from tests.models import MLP

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("opset", [13, 18, 21, 23])
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_in_every_opset(name: str, opset: int) -> None:
    gm = operator_net(name, 6)
    inputs = operator_inputs(name, 6)
    expected = double_reference(gm, *inputs)
    for model, run in (
        (to_onnx(gm, opset=opset, ir_version=min(10, 13)), run_onnxruntime),
        (to_qonnx(gm, batch=len(inputs[0]), opset=opset), run_qonnx),
    ):
        assert {o.domain: o.version for o in model.opset_import}[""] == opset
        for a, b in zip(expected, run(model, inputs), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ["avg_pool2d", "amax", "mean over channels"])
def test_values_in_double_in_a_new_opset(name: str) -> None:
    gm = operator_net(name, 16, widened=True)
    inputs = operator_inputs(name, 16)
    for a, b in zip(double_reference(gm, *inputs), run_onnxruntime(to_onnx(gm, opset=18), inputs), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("ir_version", [7, 8, 10, 13])
def test_the_file_version(ir_version: int) -> None:
    torch.manual_seed(0)
    frozen = pq.compile(MLP(), "fixed8", torch.randn(32, 16)).freeze()
    assert frozen.to_qonnx(ir_version=ir_version, opset=13).ir_version == ir_version
    model = frozen.to_onnx(ir_version=ir_version, opset=13)
    x = torch.randn(5, 16)
    assert np.array_equal(run_onnxruntime(model, [x.numpy()])[0], frozen(x).numpy())


def test_versions_that_nobody_reads_are_refused_together() -> None:
    gm = operator_net("relu", 6)
    for export in (to_onnx, to_qonnx):
        with pytest.raises(pq.ConfigError) as caught:
            export(gm, opset=9, ir_version=14)
        assert [p.code for p in caught.value.problems] == ["PQ407", "PQ407"]
        assert "13 to 23" in caught.value.problems[0].remedy


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Hashing of strings, and with it the order of sets, differs between processes."""
    script = (
        "import sys, torch, pquant_fx as pq; sys.path.insert(0, '.'); from tests.models import ResidualDigits\n"
        "torch.manual_seed(0); f = pq.compile(ResidualDigits(), 'fixed8', torch.randn(16, 1, 8, 8)).freeze()\n"
        "f.to_qonnx(sys.argv[1] + '.q.onnx', strict=True); f.to_onnx(sys.argv[1] + '.p.onnx'); f.to_qcdq(sys.argv[1] + '.c.onnx')\n"
    )
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path / seed)], check=True, cwd=ROOT, env=environment)
    for kind in ("q", "p", "c"):
        assert (tmp_path / f"1.{kind}.onnx").read_bytes() == (tmp_path / f"2.{kind}.onnx").read_bytes()
