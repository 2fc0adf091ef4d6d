"""Strategy, reuse factor, backend and types of an hls4ml project: what is asked for stands in the written files, or is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.lower.hls4ml.strategies import valid_reuse_factors
from tests.refused import refused

BACKENDS = ("Vitis", "Vivado", "Quartus", "oneAPI", "Catapult")

AP, AC = ("", "AP_RND", "AP_SAT", "0"), ("", "true", "AC_RND", "AC_SAT")
TAIL = {"Vitis": AP, "Vivado": AP, "Quartus": AC, "oneAPI": AC, "Catapult": AC}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1))


def frozen(target: dict[str, Any] | None = None, **config: Any) -> pq.FrozenModel:
    torch.manual_seed(0)
    settings = {"preset": "fixed_per_tensor", "target": target or {}, **config}
    return pq.compile(Net(), settings, torch.randn(8, 2, 8, 8)).freeze()


@pytest.fixture(scope="module")
def plain() -> pq.FrozenModel:
    return frozen()


def kept(project: Any, name: str) -> tuple[str, int]:
    layer = project.model_graph.graph[name]
    return layer.get_attr("strategy"), layer.get_attr("reuse_factor")


def test_reuse_factors_are_those_of_hls4ml() -> None:
    from hls4ml.backends import get_backend

    backend = get_backend("Vitis")
    for n_in in (1, 2, 5, 6, 16, 18):
        for n_out in (1, 3, 4, 10):
            assert valid_reuse_factors(n_in, n_out) == backend.get_valid_reuse_factors(n_in, n_out)


def test_the_configuration_decides_and_arguments_overrule_it(tmp_path: Path) -> None:
    target = {
        "part": "xc7z020clg400-1", "clock_period": 8, "strategy": "Resource", "reuse_factor": 3, "io_type": "io_stream",
        "layers": {"Linear": {"reuse_factor": 6}, "conv": {"strategy": "latency"}},
    }  # fmt: skip
    model = frozen(target)
    project = model.to_hls4ml(tmp_path / "a")
    assert (kept(project, "conv"), kept(project, "fc")) == (("latency", 3), ("resource", 6))
    script = (tmp_path / "a" / "project.tcl").read_text()
    assert 'set part "xc7z020clg400-1"' in script
    assert re.search(r"set clock_period 8(\.0)?\n", script)
    assert "hls::stream" in (tmp_path / "a" / "firmware" / "net.h").read_text()
    parameters = (tmp_path / "a" / "firmware" / "parameters.h").read_text()
    assert "static const unsigned reuse_factor = 6;" in parameters
    again = model.to_hls4ml(tmp_path / "b", io_type="io_parallel", layers={"f*": {"strategy": "latency", "reuse_factor": 2}})
    assert (kept(again, "conv"), kept(again, "fc")) == (("latency", 3), ("latency", 2))
    assert "hls::stream" not in (tmp_path / "b" / "firmware" / "net.h").read_text()


def test_a_general_reuse_factor_is_adapted_and_told(plain: pq.FrozenModel, tmp_path: Path) -> None:
    project = plain.to_hls4ml(tmp_path / "p", strategy="resource", reuse_factor=4)
    assert (kept(project, "conv"), kept(project, "fc")) == (("resource", 3), ("resource", 4))
    (note,) = project.notes
    assert (note.code, note.severity, note.place.node) == ("PQ407", "info", "conv")
    assert "reuse factor of 4 for 18 x 3 products" in note.what
    assert "reuse factor 3" in note.remedy


def test_what_a_layer_can_not_have_is_refused(plain: pq.FrozenModel, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[pq.PQuantError], str, str, str]] = [
        ({"strategy": "resource", "layers": {"conv": {"reuse_factor": 4}}}, pq.LoweringError, "PQ407", "18 x 3 products", "2, 3, 6, 9"),
        (
            {"layers": {"conv": {"strategy": "resource_unrolled", "reuse_factor": 3}}},
            pq.LoweringError,
            "PQ405",
            "needs io_stream",
            "latency",
        ),
        ({"layers": {"fc": {"strategy": "resource_unrolled"}}}, pq.LoweringError, "PQ405", "reuse factor above 1", "resource"),
        (
            {"backend": "Catapult", "layers": {"fc": {"strategy": "resource_unrolled"}}},
            pq.LoweringError,
            "PQ405",
            "Catapult has no",
            "latency",
        ),
        ({"strategy": "distributed_arithmetic", "reuse_factor": 2}, pq.ConfigError, "PQ407", "shares no multipliers", "1"),
        ({"strategy": "fast"}, pq.ConfigError, "PQ405", "no strategy 'fast'", "latency"),
        ({"reuse_factor": 0}, pq.ConfigError, "PQ407", "reuse_factor=0", "1"),
        ({"fifo_depths": "deep"}, pq.ConfigError, "PQ405", "no fifo depths 'deep'", "static"),
        ({"layers": {"cnov": {"reuse_factor": 2}}}, pq.ConfigError, "PQ402", "'cnov' matches nothing", "conv"),
        ({"layers": {"conv": {"reuse": 2}}}, pq.ConfigError, "PQ406", "layers.conv.reuse", "reuse_factor"),
    ]
    for options, kind, code, what, remedy in cases:
        refused(lambda options=options: plain.to_hls4ml(tmp_path / "p", **options), kind, code, what, remedy)
    assert list(tmp_path.iterdir()) == []


def test_a_rule_of_the_target_that_matches_nothing_stops_compile() -> None:
    refused(lambda: frozen({"layers": {"covn": {"reuse_factor": 2}}}), pq.ConfigError, "PQ402", "target.layers", "conv")


def test_the_order_of_rules_counts_and_the_text_keeps_it() -> None:
    rules = {"*": {"reuse_factor": 2}, "fc": {"reuse_factor": 4}}
    first, second = (pq.load_config({"target": {"layers": dict(items)}}) for items in (rules.items(), reversed(rules.items())))
    assert first != second
    assert pq.load_config(first.to_yaml()) == first
    assert first.target.layer_settings("fc") == {"strategy": "latency", "reuse_factor": 4}
    assert second.target.layer_settings("fc") == {"strategy": "latency", "reuse_factor": 2}


def types_of(folder: Path) -> dict[str, str]:
    """typedefs and pipe or stream element types of the written project, by name; spaces and default modes left out."""
    (file,) = folder.rglob("defines.h")
    found = re.findall(r"typedef\s+(.+?)\s+(\w+);", file.read_text())
    return {name: kind.replace(" ", "") for kind, name in found}


@pytest.mark.parametrize("io_type", ["io_parallel", "io_stream"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_writes_the_interface_that_the_quantizers_say(backend: str, io_type: str, tmp_path: Path) -> None:
    model = frozen(inputs={"x": {"format": "fixed<12,4,RND,SAT>"}}, outputs={"0": {"format": "fixed<9,5,RND,SAT>"}})
    graph = model.to_hls4ml(tmp_path / "p", backend=backend, io_type=io_type).model_graph
    types = types_of(tmp_path / "p")
    ports = [types[variables[0].type.name] for variables in (graph.get_input_variables(), graph.get_output_variables())]
    formats = [f"<12,4{','.join(TAIL[backend])}>", f"<9,5{','.join(TAIL[backend])}>"]
    for port, wanted in zip(ports, formats, strict=True):
        assert wanted in port, port
        assert ("array" in port) == (io_type == "io_stream" or backend == "oneAPI"), "a stream carries a pixel, with all its channels"


def test_what_other_backends_get_wrong_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2))
    model = pq.compile(net, "fixed_per_tensor", torch.randn(8, 1, 6, 6)).freeze()
    for backend in ("Quartus", "oneAPI", "Catapult"):
        with pytest.raises(pq.LoweringError) as error:
            model.to_hls4ml(tmp_path / "p", backend=backend)
        assert {(p.code, p.place.node) for p in error.value.problems} >= {("PQ201", "1"), ("PQ201", "2")}
        assert "Vitis" in error.value.remedy


def test_check_knows_the_target_before_training() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh())
    x = torch.randn(8, 1, 6, 6)
    assert pq.check(net, x).ok
    for target, code in (({"backend": "Catapult"}, "PQ201"), ({"layers": {"0": {"strategy": "resource", "reuse_factor": 4}}}, "PQ407")):
        report = pq.check(net, x, config={"preset": "fixed_per_tensor", "target": target})
        assert [p.code for p in report.problems] == [code]


def test_simulation_without_free_headers_is_refused_in_one_line(plain: pq.FrozenModel, tmp_path: Path) -> None:
    project = plain.to_hls4ml(tmp_path / "p", backend="oneAPI")
    refused(lambda: project.compile(), pq.ExtraMissingError, "PQ503", "vendor's headers", "Vitis")
    refused(lambda: project.build(), pq.ExtraMissingError, "PQ503", "icpx", "settings")


def test_distributed_arithmetic_names_its_package(plain: pq.FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "da4ml", None)
    refused(
        lambda: plain.to_hls4ml(tmp_path / "p", strategy="distributed_arithmetic"),
        pq.ExtraMissingError,
        "PQ503",
        "da4ml",
        r"pquant_fx\[da\]",
    )
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_takes_strategy_and_reuse_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pquant_fx.cli import main

    (tmp_path / "small.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Linear(6, 4))\n")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["compile", "small:build", "--data", "data.npz", "--out", "out", "--strategy", "resource", "--reuse-factor", "3"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    parameters = (tmp_path / "out" / "hls4ml" / "firmware" / "parameters.h").read_text()
    assert "nnet::resource;" in parameters
    assert "reuse_factor = 3;" in parameters
    with pytest.raises(SystemExit) as end:
        main([*arguments[:-4], "--strategy", "fast", "--overwrite"])
    assert end.value.code == 2
