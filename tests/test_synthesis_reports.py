"""Reports of the vendors' tools: numbers by the names of their headers, and a plain word where a report is missing or cut off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pquant_fx as pq
from pquant_fx.lower.hls4ml.report_files import table_rows
from tests.refused import refused
from tests.synthesis_reports import CSYNTH, TIMING, utilization

REPORTS = "net_prj/solution1/syn/report"


def project(folder: Path, **files: str) -> Path:
    """An hls4ml project of the name `net` in which the tools have run; files: name with _ for / -> text."""
    (folder / REPORTS).mkdir(parents=True)
    (folder / "project.tcl").write_text('variable project_name\nset project_name "net"\n')
    for name, text in files.items():
        place = {"csynth": f"{REPORTS}/net_csynth.xml", "log": "vitis_hls.log"}.get(name, f"{name}.rpt")
        (folder / place).write_text(text)
    return folder


def test_all_stages_side_by_side(tmp_path: Path) -> None:
    folder = project(tmp_path, csynth=CSYNTH, vivado_synth=utilization(), routed=utilization("Routed", old=True), timing=TIMING)
    (folder / REPORTS / "dense_latency_csynth.xml").write_text(CSYNTH.replace("<LUT>8421", "<LUT>17"))
    found = pq.read_reports(folder)
    assert [one.stage for one in found.stages] == ["csynth", "vsynth", "routed", "timing"]
    hls = found.csynth
    assert (hls.lut, hls.ff, hls.dsp, hls.bram_18k, hls.uram) == (8421, 1534, 12, 4, 0)
    assert (hls.latency_min, hls.latency_max, hls.interval_min, hls.interval_max) == (8, 9, 1, 2)
    assert (hls.clock_period, hls.clock_estimate, hls.part) == (5.0, 3.643, "xcvu13p-flga2577-2-e")
    assert hls.share["lut"] == pytest.approx(8421 / 1728000)
    for stage, uram, part in ((found.vsynth, 3, "xcvu13p-flga2577-2-e"), (found.routed, None, "7z020clg400-1")):
        assert (stage.lut, stage.ff, stage.dsp, stage.bram_18k, stage.uram) == (4211, 1702, 12, 3, uram)
        assert stage.available["bram_18k"] == 280
        assert stage.part == part
    assert (found.timing.slack, found.timing.hold_slack, found.timing.clock_period) == (-0.212, 0.041, 5.0)
    lines = str(found).splitlines()
    assert lines[0].split() == ["csynth", "vsynth", "routed", "timing"]
    assert next(line for line in lines if line.startswith("lut")).split() == ["lut", "8,421", "4,211", "4,211", "-"]


def test_rows_and_columns_may_move() -> None:
    """A new column in front, a new row, a table more: the names still find the numbers."""
    moved = "+-+\n| Tile | Used | Site Type |\n+-+\n| 3 | 9 | New thing |\n| 3 | 41 | CLB LUTs* |\n+-+\n"
    assert list(table_rows(moved)) == [
        {"Tile": "3", "Used": "9", "Site Type": "New thing"},
        {"Tile": "3", "Used": "41", "Site Type": "CLB LUTs*"},
    ]


def test_names_of_older_tools_and_latencies_that_depend_on_data(tmp_path: Path) -> None:
    text = CSYNTH.replace("DSP>", "DSP48E>").replace("Latency>8<", "Latency>undef<")
    hls = pq.read_reports(project(tmp_path, csynth=text)).csynth
    assert (hls.dsp, hls.latency_min, hls.latency_max) == (12, None, 9)
    assert hls.available["dsp"] == 12288


def test_nothing_there(tmp_path: Path) -> None:
    refused(lambda: pq.read_reports(tmp_path / "absent"), pq.InputError, "PQ409", "no directory", "hls4ml project")
    folder = project(tmp_path / "p")
    refused(lambda: pq.read_reports(folder), pq.InputError, "PQ503", "no csynth.xml and no utilization.*no log", "synthesis")
    (folder / "vitis_hls.log").write_text("INFO: [HLS 200-10] Running\nERROR: [HLS 214-194] in function 'net': too many loads\n\n")
    refused(lambda: pq.read_reports(folder), pq.InputError, "PQ503", "vitis_hls.log: 'ERROR.*too many loads'", "synthesis")
    (folder / "build_stdout.log").write_text("INFO: scheduling\nKilled\n")
    os.utime(folder / "build_stdout.log", (2e9, 2e9))
    refused(lambda: pq.read_reports(folder), pq.InputError, "PQ503", "build_stdout.log: 'Killed'", "memory")


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("csynth", CSYNTH[: len(CSYNTH) // 2], "ends in the middle"),
        ("csynth", CSYNTH.replace("LUT>", "LUTs>"), "no LUT"),
        ("csynth", "", "ends in the middle"),
        ("vivado_synth", utilization()[: utilization().index("3. ARITHMETIC")], "no row for DSPs"),
        ("vivado_synth", utilization().replace("Used", "Usage"), "no row for CLB LUTs, CLB Registers, DSPs, Block RAM Tile"),
        ("timing", TIMING[: TIMING.index("-0.212")], r"WNS\(ns\)"),
    ],
)
def test_cut_off_reports_say_what_they_lack(name: str, text: str, what: str, tmp_path: Path) -> None:
    files = {"csynth": CSYNTH, name: text, "log": "INFO: writing report\n"}
    refused(lambda: pq.read_reports(project(tmp_path, **files)), pq.InputError, "PQ503", f"{what}.*last line.*writing report", "build")
