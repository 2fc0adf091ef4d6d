"""The RTL directory: written once, described by interface.json, simulated to the bit, in every flavor and structure."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pquant_fx.errors import ConfigError, ExtraMissingError, InputError, LoweringError, OutputError
from pquant_fx.lower.rtl import comparison, tools
from pquant_fx.lower.rtl.assembly import _converted
from pquant_fx.lower.rtl.testbench import packed, unpacked
from tests.rtl_networks import Everything, frozen, mlp, needs

pytest.importorskip("alkaid")


def everything():
    torch.manual_seed(0)
    x = torch.randn(40, 1, 4, 4)
    return frozen(Everything(), x), x


def test_the_interface_says_which_bits_are_which(tmp_path):
    model, x = mlp()
    project = model.to_rtl(tmp_path / "rtl", x)
    told = json.loads((project.path / "interface.json").read_text())
    assert told["top"] == "net"
    assert told["cycles"] == project.cycles >= 2
    assert told["settings"]["latency_cutoff_ns"] == 5
    for key in ("inputs", "outputs"):
        at = 0
        for port in told[key]:
            for low, kif in zip(port["lowest_bit"], port["kif"], strict=True):
                assert low == (at if sum(kif) > 0 else None)
                at += max(sum(kif), 0)
    top = (project.path / "src" / "net.v").read_text()
    assert f"[{at - 1}:0] model_out" in top
    assert project.trusted > 1000
    assert project.register_bits == sum(stage.registers for stage in project.stages)


def test_the_same_design_is_left_and_another_asks_first(tmp_path):
    model, _ = mlp()
    first = model.to_rtl(tmp_path / "rtl")
    mark = first.path / "src" / "net.v"
    before = mark.stat().st_mtime_ns
    again = model.to_rtl(tmp_path / "rtl")
    assert again.digest == first.digest
    assert mark.stat().st_mtime_ns == before
    with pytest.raises(OutputError) as caught:
        model.to_rtl(tmp_path / "rtl", latency_cutoff=2)
    assert caught.value.code == "PQ506"
    (first.path / "synthesis").mkdir()
    (first.path / "synthesis" / "earlier.json").write_text("{}")
    changed = model.to_rtl(tmp_path / "rtl", latency_cutoff=2, overwrite=True)
    assert changed.digest != first.digest
    assert changed.cycles > first.cycles
    assert (first.path / "synthesis" / "earlier.json").exists()  # results of other designs are kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError):
        model.to_rtl(tmp_path / "mine", overwrite=True)


def test_options_that_do_not_exist_are_refused_together(tmp_path):
    model, x = mlp()
    with pytest.raises(ConfigError) as caught:
        model.to_rtl(tmp_path / "rtl", clock_period=0, latency_cutoff=-1, flavor="chisel")
    assert [p.code for p in caught.value.problems] == ["PQ405", "PQ407", "PQ407"]
    with pytest.raises(ConfigError, match="flat or layers"):
        model.to_rtl(tmp_path / "rtl", structure="deep")
    with pytest.raises(ConfigError, match="Verilog"):
        model.to_rtl(tmp_path / "rtl", structure="layers", flavor="vhdl")
    with pytest.raises(InputError):
        model.to_rtl(tmp_path / "rtl", x[:, :3])
    with pytest.raises(InputError, match="NaN"):
        model.to_rtl(tmp_path / "rtl", x * torch.nan)
    assert not (tmp_path / "rtl").exists()


@needs("iverilog")
@pytest.mark.parametrize("options", [{}, {"latency_cutoff": 0}, {"latency_cutoff": 1.5}, {"ternary_adders": True}, {"structure": "layers"}])
def test_verilog_in_iverilog_has_every_bit(tmp_path, options):
    model, x = everything()
    project = model.to_rtl(tmp_path / "rtl", x, **options)
    for given in (None, [x.numpy() * 2]):
        report = project.simulate(given, 30, tools=("iverilog",))
        assert report.ok, report
        assert [row.different for row in report.report.rows] == [0, 0]
    assert project.cycles == 0 if options.get("latency_cutoff") == 0 else project.cycles > 1


@needs("iverilog")
def test_layers_without_registers(tmp_path):
    model, _ = everything()
    project = model.to_rtl(tmp_path / "rtl", structure="layers", latency_cutoff=0)
    assert project.cycles == project.register_bits == 0
    assert project.simulate(samples=20, tools=("iverilog",)).ok


@needs("ghdl")
@pytest.mark.parametrize("cutoff", [None, 0])
def test_vhdl_in_ghdl_has_every_bit(tmp_path, cutoff):
    model, x = mlp()
    report = model.to_rtl(tmp_path / "rtl", flavor="vhdl", latency_cutoff=cutoff).simulate([x.numpy()], 20, tools=("ghdl",))
    assert report.ok, report


@needs("verilator")
def test_verilog_in_verilator_has_every_bit(tmp_path):
    model, x = mlp()
    report = model.to_rtl(tmp_path / "rtl").simulate([x.numpy()], 50, tools=("verilator",))
    assert report.ok, report


@needs("iverilog")
def test_a_wrong_bit_in_the_sources_is_found(tmp_path):
    model, x = mlp()
    project = model.to_rtl(tmp_path / "rtl")
    file = project.path / "src" / "net.v"
    broken = file.read_text().replace("endmodule", "initial force model_out[0] = 1'b1;\nendmodule")
    file.write_text(broken)
    report = project.simulate([x.numpy()], 20, tools=("iverilog",))
    assert not report.ok
    assert report.report.rows[0].different == 0
    assert report.report.rows[1].different > 0


def test_simulators_that_are_missing_are_named_with_their_package(tmp_path, monkeypatch):
    model, x = mlp()
    project = model.to_rtl(tmp_path / "rtl")
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    report = project.simulate([x.numpy()])
    assert report.ok
    assert [line.split(":")[0] for line in report.skipped] == ["iverilog", "verilator"]
    assert all("apt-get install" in line for line in report.skipped)
    with pytest.raises(ExtraMissingError) as caught:
        project.simulate([x.numpy()], tools=("iverilog",))
    assert "apt-get install iverilog" in str(caught.value)
    with pytest.raises(ConfigError, match="modelsim"):
        project.simulate([x.numpy()], tools=("modelsim",))


def test_a_simulator_that_fails_shows_the_end_of_its_log(tmp_path, monkeypatch):
    model, x = mlp()
    project = model.to_rtl(tmp_path / "rtl")
    fake = tmp_path / "iverilog"
    fake.write_text("#!/bin/sh\necho first; echo the last line; exit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = project.simulate([x.numpy()], tools=("iverilog",))
    assert not report.ok
    assert "exit code 3" in report.report.rows[1].note
    assert "the last line" in report.report.rows[1].note
    with pytest.raises(LoweringError, match=r"longer than 0\.2 s"):
        tools.run_tool(["/bin/sh", "-c", "sleep 30"], tmp_path, "the tool", timeout=0.2)
    with pytest.raises(LoweringError, match="SIGKILL"):
        tools.run_tool(["/bin/sh", "-c", "kill -9 $$"], tmp_path, "the tool")


def test_packed_words_come_back():
    rng = np.random.default_rng(0)
    kif = np.array([[1, 0, 1, 0, 0], [3, 2, -2, 0, 5], [2, -1, 5, 0, 0]])
    widths = kif.sum(axis=0)
    codes = np.stack([rng.integers(-k << (w - k) if k else 0, 1 << max(w - k, 0), 50) for k, w in zip(kif[0], widths)], axis=1)
    values = codes * 2.0 ** -kif[2]
    np.testing.assert_array_equal(unpacked(packed(values, kif), kif), values)
    assert np.isnan(unpacked(["xx"], kif)).all()


def test_a_value_keeps_its_number_between_formats():
    """Against arithmetic: sign extension above, zeros below, bits that are cut off taken modulo."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        k, wk = (int(n) for n in rng.integers(0, 2, 2))
        i, f, wi, wf = (int(n) for n in (*rng.integers(0, 5, 2), *rng.integers(0, 5, 2)))
        width, total = k + i + f, wk + wi + wf
        if width == 0 or total == 0:
            continue
        code = int(rng.integers(0, 1 << width))
        number = (code - (1 << width) if k and code >> (width - 1) else code) * 2.0**-f
        expected = int(np.floor(number * 2.0**wf)) & ((1 << total) - 1)
        assert _bits(_converted("s", 3, (k, i, f), (wk, wi, wf)), code << 3) == (total, expected)


def _bits(text, word):
    """Width and value of a concatenation of slices, repetitions and constants of the signal s."""
    text = text.strip()
    if text.endswith("'d0") or text == "1'b0":
        return int(text.split("'")[0]), 0
    if text.startswith("s["):
        high, _, low = text[2:-1].partition(":")
        low = int(low or high)
        size = int(high) - low + 1
        return size, (word >> low) & ((1 << size) - 1)
    inside, depth, parts, start = text[1:-1], 0, [], 0
    head = inside.split("{")[0]
    if head.isdigit():
        size, value = _bits(inside[len(head) + 1 : -1], word)
        return int(head) * size, int(f"{value:0{size}b}" * int(head), 2)
    for n, c in enumerate(inside + ","):
        depth += (c == "{") - (c == "}")
        if c == "," and depth == 0:
            parts.append(inside[start:n])
            start = n + 1
    total = value = 0
    for part in parts:
        size, bits = _bits(part, word)
        total, value = total + size, value << size | bits
    return total, value


def test_the_report_prints_what_was_skipped():
    report = comparison.RtlReport(comparison.compare_engines([np.zeros((1, 1))], [0], ["y"], {}), ("ghdl: skipped, x",))
    assert str(report).endswith("ghdl: skipped, x")
