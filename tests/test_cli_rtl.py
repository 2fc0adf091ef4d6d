"""`pquant-fx estimate`, `rtl` and `synthesize`: what they print, where, and with which exit code."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from pquant_fx.cli import main
from tests.rtl_networks import needs

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
"""
SHAPE = ("--input-shape", "6")
SMALL = ("--set", "quantization_parameters.default_weight_bits=3", "--set", "quantization_parameters.default_data_bits=3")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "rtlnet.py").write_text(NET)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words):
        code = 0
        try:
            main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    yield call
    sys.modules.pop("rtlnet", None)


@pytest.mark.parametrize("command", ["estimate", "rtl", "synthesize"])
def test_every_command_explains_itself_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: pquant-fx {command} mynet:build" in " ".join(out.split())


def test_an_estimate_as_a_table_and_as_json(run):
    code, out, _ = run("estimate", "rtlnet:build", *SHAPE)
    assert code == 0
    assert "LUT" in out
    assert "fitted on" in out
    code, out, _ = run("estimate", "rtlnet:build", *SHAPE, "--json", "--clock-period", "3")
    told = json.loads(out)
    assert code == 0
    assert told["labels"]["clock_period_ns"] == 3
    assert {row["resource"] for row in told["rows"]} >= {"LUT", "FF", "DSP", "BRAM", "cycles", "EBOPs"}


@needs("iverilog")
def test_rtl_is_written_simulated_and_not_overwritten_unasked(run, tmp_path, monkeypatch):
    pytest.importorskip("alkaid")
    from pquant_fx.lower.rtl import simulate

    monkeypatch.setitem(simulate.SIMULATORS, "verilog", ("iverilog",))
    code, out, _ = run("rtl", "rtlnet:build", "--data", "data.npz", "--out", "build/rtl", *SMALL)
    assert code == 0, out
    assert "RTL in iverilog" in out
    assert "all engines agree bit for bit" in out
    assert (tmp_path / "build" / "rtl" / "interface.json").exists()
    code, _, err = run("rtl", "rtlnet:build", *SHAPE, "--out", "build/rtl", "--latency-cutoff", "1")
    assert code == 2
    assert "--overwrite" in err
    code, out, _ = run("rtl", "rtlnet:build", *SHAPE, *SMALL, "--out", "build/rtl", "--overwrite", "--samples", "0", "--json")
    assert code == 0
    assert json.loads(out)["simulation"] is None


def test_a_flavor_that_does_not_exist_is_a_usage_error(run):
    pytest.importorskip("alkaid")
    code, out, err = run("rtl", "rtlnet:build", *SHAPE, "--out", "build/rtl", "--flavor", "chisel")
    assert (code, out) == (2, "")
    assert "PQ405" in err
    assert "verilog" in err


@needs("yosys")
def test_synthesis_counts_and_draws(run, tmp_path):
    pytest.importorskip("alkaid")
    code, out, _ = run(
        "synthesize", "rtlnet:build", "--data", "data.npz", "--out", "build/rtl", *SMALL, "--plot", "build/stages.png", "--json"
    )
    assert code == 0, out
    assert json.loads(out)["total"]["lut"] > 10
    assert (tmp_path / "build" / "stages.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("synthesize", "rtlnet:build", "--data", "data.npz", "--out", "build/rtl", *SMALL)
    assert code == 0
    assert "yosys" in out


def test_check_knows_the_target(run):
    pytest.importorskip("alkaid")
    code, out, _ = run("check", "rtlnet:build", *SHAPE, "--target", "rtl")
    assert code == 0, out
