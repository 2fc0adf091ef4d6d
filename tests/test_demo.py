"""The demo, in small: it learns, it loses little, every engine that ran agrees, and the bundle is whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pquant_fx import demo
from pquant_fx.demo_network import load_digits
from pquant_fx.errors import OutputError
from pquant_fx.lower.rtl import tools
from tests.rtl_networks import frozen, mlp, needs


def test_a_short_demo_without_hls_agrees_bit_for_bit(tmp_path):
    said: list[str] = []
    result = demo.run(tmp_path / "demo", epochs=6, engines=("integer", "onnx"), say=lambda what: said.append(str(what)), synthesis=False)
    assert result.ok
    assert [row.different for report in result.reports for row in report.rows] == [0, 0]
    assert result.reports[0].samples == 500
    assert result.float_accuracy > 0.9
    assert result.accuracy > result.float_accuracy - 0.05
    assert result.sparsity >= 0.49
    assert {p.name for p in result.output.iterdir() if not p.name.startswith(".")} == {
        "qonnx.onnx",
        "plain.onnx",
        "golden.npz",
        "certificate.json",
        "report.txt",
        "report.html",
    }
    assert np.load(result.output / "golden.npz")["output_0"].shape == (64, 10)
    assert "block2.shortcut.0" in (result.output / "report.txt").read_text()
    assert [line[:5] for line in said if line.startswith("[")] == [f"[{n}/7]" for n in range(1, 7)]
    assert str(tmp_path / "demo") in said[-1]


def test_the_demo_replaces_its_own_results_only(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        demo.run(tmp_path, epochs=1, engines=("integer",), say=lambda what: None)
    assert caught.value.code == "PQ506"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_data_are_the_same_every_time_and_test_images_are_not_trained_on():
    one, two = load_digits(), load_digits()
    assert (one.x == two.x).all()
    assert len(one.x) == 1297
    assert len(one.x_test) == 500
    assert sorted(one.x.unique().tolist()) == [n / 16 for n in range(17)]
    images = {row.numpy().tobytes() for row in one.x}
    assert sum(row.numpy().tobytes() in images for row in one.x_test) == 0


@pytest.mark.hls
def test_the_whole_demo_keeps_its_accuracy_in_every_engine(tmp_path):
    result = demo.run(tmp_path / "demo", say=lambda what: None, synthesis=False)
    assert result.ok, "\n".join(str(report) for report in result.reports)
    assert [row.engine for report in result.reports for row in report.rows] == [
        "integer",
        "onnx",
        "qonnx",
        "hls4ml io_parallel",
        "hls4ml io_stream",
    ]
    assert all(row.different == 0 for report in result.reports for row in report.rows)
    assert result.accuracy >= result.float_accuracy - 0.01
    assert result.seconds < 300
    config = (result.output / "hls4ml" / "hls4ml_config.yml").read_text()
    assert f"OutputDir: {tmp_path / 'demo' / 'hls4ml'}\n" in config


def test_without_yosys_the_demo_says_in_one_line_what_to_install(tmp_path, monkeypatch):
    pytest.importorskip("alkaid")
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    model, _ = mlp()
    said: list[str] = []
    assert demo._synthesized(model, load_digits(), tmp_path / "rtl", lambda what: said.append(str(what))) is None
    assert len(said) == 2
    assert "skipped" in said[1]
    assert "apt-get install yosys" in said[1]


@needs("yosys")
def test_the_last_step_counts_luts_and_draws_them(tmp_path):
    pytest.importorskip("alkaid")
    torch.manual_seed(0)
    data = load_digits()
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
    model = frozen(net, data.x[:100])
    said: list[str] = []
    found = demo._synthesized(model, data, tmp_path / "rtl", lambda what: said.append(str(what)))
    assert found is not None
    assert found.total.lut > 100
    assert {s.instances for s in found.stages} == {1, 4}
    assert (tmp_path / "rtl" / "stages.png").exists()
    assert "LUT" in said[-1]
    assert "stages.png" in said[-1]
