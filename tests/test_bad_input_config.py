"""Configurations with mistakes: all of them at once, each with the closest right spelling, before anything is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from tests.refused import check, refused


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv1(x)).mean((2, 3)))


X = torch.linspace(-1, 1, 2 * 36).reshape(2, 1, 6, 6)


def compiled(config: Any) -> pq.CompiledModel:
    return pq.compile(Net(), config, X)


def test_unknown_keys_come_together_with_suggestions() -> None:
    config = {
        "preset": "fixed8",
        "quantization_parameters": {"defualt_data_bits": 6},
        "trainig_parameters": {"epochs": 3},
        "layers": {"conv1": {"weight_bit": 4}},
    }
    error = refused(lambda: compiled(config), pq.ConfigError, "PQ406")
    remedies = {p.what.split("'")[1]: p.remedy for p in error.problems}
    assert {p.code for p in error.problems} == {"PQ406"}
    assert "'default_data_bits'" in remedies["quantization_parameters.defualt_data_bits"]
    assert "'training_parameters'" in remedies["trainig_parameters"]
    assert "'weight_bits'" in remedies["layers.conv1.weight_bit"]
    report = pq.check(Net(), X, config=config)
    assert report.problems == error.problems


@pytest.mark.parametrize(
    ("config", "code", "what", "remedy"),
    [
        ("fixd8", "PQ405", "fixd8", "fixed8"),
        ("nowhere.yaml", "PQ407", "nowhere.yaml", r"\w"),
        (8, "PQ407", "int", "preset"),
        ({"training_parameters": {"epochs": "many"}}, "PQ407", "epochs", r"\w"),
        ({"quantization_parameters": {"round_mode": "UP"}}, "PQ407", "round_mode", "RND"),
        ({"quantization_parameters": {"default_weight_bits": 0}}, "PQ407", "default_weight_bits", r"\w"),
        ({"pruning_parameters": {"sparsity": 1.5}}, "PQ407", "sparsity", r"\w"),
        ({"inputs": {"x": {"shape": [0, 3]}}}, "PQ407", "shape", r"\w"),
        ({"quantization_parameters": {"hgq_beta": [[3, 1e-6]]}}, "PQ407", "hgq_beta", r"\[\["),
        ({"budget": {"ebops": 1000}}, "PQ407", "budget.ebops", "use_hgq"),
        ({"pruning_parameters": {"enable_pruning": True, "pruning_method": "fitcompress"}}, "PQ408", "fitcompress", "magnitude"),
    ],
)
def test_values_that_can_not_be(config: Any, code: str, what: str, remedy: str) -> None:
    refused(lambda: compiled(config), pq.ConfigError, code, what, remedy)
    check(pq.check(Net(), X, config=config).problems[0], code, what, remedy)


@pytest.mark.parametrize(
    ("section", "what", "remedy"),
    [
        ({"layers": {"conv2": {"weight_bits": 4}}}, "'conv2'", "'conv1'"),
        ({"layers": {"relu@2": {"data_bits": 4}}}, "'relu@2'", "relu"),
        ({"layers": {"encoder.*": {"data_bits": 4}}}, r"'encoder\.\*'", "did you mean|known names"),
        ({"pruning_parameters": {"disable_pruning_for_layers": ["haed"]}}, "'haed'", "'head'"),
        ({"quantization_parameters": {"layer_specific": {"cnv1": {}}}}, "'cnv1'", "'conv1'"),
    ],
)
def test_rules_that_match_nothing(section: dict[str, Any], what: str, remedy: str) -> None:
    refused(lambda: compiled({"preset": "fixed8", **section}), pq.ConfigError, "PQ402", what, remedy)


def test_rules_and_interfaces_of_unknown_names_come_together() -> None:
    layers = {"conv2": {"weight_bits": 4}, "haed": {"weight_bits": 4}}
    error = refused(lambda: compiled({"preset": "fixed8", "layers": layers, "inputs": {"nowhere": {}}}), pq.ConfigError, "PQ402")
    assert error.problems[-1].what.startswith("inputs: the pattern 'nowhere'")
    assert len(error.problems) == 3
    config = {"preset": "fixed8", "inputs": {"z": {"format": "fixed<8,1>"}}}
    refused(lambda: compiled(config), pq.ConfigError, "PQ402", "'z'|z", "x")


def test_a_mistake_in_a_file_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: fixed8\nlayers:\n  conv1:\n    weight_bit: 4\n")
    error = refused(lambda: compiled(file), pq.ConfigError, "PQ406", "weight_bit", "'weight_bits'")
    assert error.problems[0].place.line == f"{file}:4"
    file.write_text("preset: fixed8\nlayers: [")
    error = refused(lambda: compiled(file), pq.ConfigError, "PQ407")
    assert (error.problems[0].place.line or "").startswith(f"{file}:")


def test_targets_and_engines_of_unknown_names() -> None:
    refused(lambda: pq.check(Net(), X, target="tpu"), pq.ConfigError, "PQ405", "'tpu'", "hls4ml")
    frozen = compiled("fixed8").freeze()
    refused(lambda: frozen.verify(X, ()), pq.ConfigError, "PQ405", "no engine", "integer")
    error = refused(lambda: frozen.verify(X, ("integre", "onxx")), pq.ConfigError, "PQ405", "'integre'", "integer")
    assert len(error.problems) == 2
    refused(lambda: frozen.verify(X, io_type="io_serial"), pq.ConfigError, "PQ405", "'io_serial'", "io_stream")
    assert frozen.verify(X, "integer").ok


@pytest.mark.parametrize(("rounding", "overflow", "what"), [("UP", "SAT", "UP"), ("RND", "CLIP", "CLIP")])
def test_modes_that_do_not_exist(rounding: str, overflow: str, what: str) -> None:
    refused(lambda: pq.fixed_point(X, 1, 2, 3, rounding, overflow), pq.ConfigError, "PQ306", what, "use one of")
