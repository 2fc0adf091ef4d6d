"""Synthesis: counted per stage, labelled, kept by the hash of the sources, and an earlier result survives a failing run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pquant_fx.errors import ConfigError, ExtraMissingError, LoweringError
from pquant_fx.lower.rtl import tools
from pquant_fx.lower.rtl.synthesis import Cells, Stage, Synthesis, cells_of
from tests.rtl_networks import frozen, mlp, needs

pytest.importorskip("alkaid")


LABELS = {
    "tool": "yosys", "version": "0.0", "command": "synth", "family": "xcup", "alkaid": "0", "clock_period_ns": 5.0,
    "latency_cutoff_ns": 5.0, "ternary_adders": False, "flavor": "verilog", "structure": "flat",
}  # fmt: skip


@needs("yosys")
def test_yosys_counts_every_stage(tmp_path):
    model, x = mlp()
    found = model.synthesize(tmp_path / "rtl", x, progress=False)
    project = model.to_rtl(tmp_path / "rtl")
    assert [s.name for s in found.stages] == [s.name for s in project.stages]
    assert sum(s.cells.lut for s in found.stages) == found.total.lut > 100
    assert found.total.ff == sum(s.registers for s in found.stages) == project.register_bits
    assert found.total.dsp == 0
    assert all(1 < s.depth < 60 for s in found.stages)
    assert found.labels["tool"] == "yosys"
    assert found.labels["version"] in found.source
    assert "ternary adders off" in found.source
    assert "xcup" in found.source
    again = model.synthesize(tmp_path / "rtl", progress=False)
    assert again == found  # read back: the same seconds
    assert model.synthesize(tmp_path / "rtl", family="xc7", progress=False).labels["family"] == "xc7"
    assert len(list((tmp_path / "rtl" / "synthesis").iterdir())) == 2


@needs("yosys")
def test_a_module_of_layers_counts_as_often_as_it_is_used(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    model = frozen(net, torch.randn(30, 1, 3, 3))
    found = model.synthesize(tmp_path / "rtl", structure="layers", progress=False)
    assert {s.instances for s in found.stages} == {1, 9}
    assert sum(s.instances * s.cells.lut for s in found.stages) == found.total.lut
    assert "a module a layer" in found.source


def test_without_yosys_one_line_names_the_package(tmp_path, monkeypatch):
    model, _ = mlp()
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    with pytest.raises(ExtraMissingError) as caught:
        model.synthesize(tmp_path / "rtl")
    assert caught.value.code == "PQ503"
    assert "apt-get install yosys" in str(caught.value)


def test_what_does_not_exist_is_refused(tmp_path):
    model, _ = mlp()
    for options, code in (({"flow": "vivado"}, "PQ405"), ({"family": "ice40"}, "PQ405")):
        with pytest.raises(ConfigError) as caught:
            model.synthesize(tmp_path / "rtl", **options)
        assert caught.value.code == code
    with pytest.raises(ConfigError, match="verilog"):
        model.synthesize(tmp_path / "vhdl", flavor="vhdl")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo reading; echo 'ERROR: out of wires'; exit 1", "out of wires"),
        ("echo mapping; kill -9 $$", "SIGKILL"),
        ("echo mapping; sleep 30", "longer than 0.5 s"),
        ("exit 0", "no statistics"),
    ],
)
def test_a_failing_synthesis_shows_its_log_and_keeps_earlier_results(tmp_path, monkeypatch, script, says):
    model, _ = mlp()
    project = model.to_rtl(tmp_path / "rtl")
    earlier = project.path / "synthesis" / "earlier.json"
    earlier.parent.mkdir()
    earlier.write_text("kept")
    fake = tmp_path / "yosys"
    fake.write_text(f"#!/bin/sh\n[ \"$1\" = -V ] && echo 'Yosys 9.9' && exit 0\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(LoweringError) as caught:
        project.synthesize(timeout=0.5 if "sleep" in script else None, progress=False)
    assert caught.value.code == "PQ512"
    assert says in str(caught.value)
    assert [p.name for p in earlier.parent.iterdir()] == ["earlier.json"]
    assert earlier.read_text() == "kept"


def test_a_damaged_result_is_made_again(tmp_path, monkeypatch):
    model, _ = mlp()
    project = model.to_rtl(tmp_path / "rtl")
    file = project.path / "synthesis" / f"{project.digest[:16]}_xcup_9.9.json"
    file.parent.mkdir()
    file.write_text('{"total": 3}')
    fake = tmp_path / "yosys"
    fake.write_text("#!/bin/sh\n[ \"$1\" = -V ] && echo 'Yosys 9.9' && exit 0\nexit 4\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(LoweringError, match="exit code 4"):
        project.synthesize(progress=False)


def example():
    cells = Cells(10, 1, 4, 2, 0, 1, 0.5, 0)
    return Synthesis(cells, (Stage("logic0", cells, 4, 7), Stage("logic1", cells, 3, 9, 2)), 3, LABELS, "ab", 1.5)


def test_a_result_comes_back_from_its_json():
    made = example()
    assert Synthesis.from_json(made.to_json()) == made
    assert json.loads(made.to_json())["stages"][1]["depth"] == 9
    assert made.depth == 9
    with pytest.raises(KeyError):
        Synthesis.from_json("{}")


def test_the_table_shows_every_stage_and_where_it_is_from():
    text = str(example())
    assert "logic1" in text
    assert "yosys 0.0" in text
    assert text.count("\n") > 6
    assert "<td>logic0</td>" in example().to_html()


def test_the_picture_is_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    made = example().plot(tmp_path / "deep" / "stages.png")
    assert made.read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in replace(example(), cycles=4).plot(tmp_path / "stages.svg").read_bytes()


def test_cells_are_sorted_by_what_they_are():
    counts = {
        "LUT1": 1,
        "LUT6": 2,
        "INV": 3,
        "FDRE": 4,
        "FDSE": 1,
        "CARRY4": 5,
        "MUXF7": 6,
        "DSP48E2": 7,
        "RAMB18E1": 3,
        "SRL16E": 2,
    }
    assert cells_of(counts | {"IBUF": 9}) == Cells(3, 3, 5, 5, 6, 7, 1.5, 2)
