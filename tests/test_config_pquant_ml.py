"""PQuantML's own files: every key of pquant-ml 0.1.0 loads, what has no effect is said, and what is not there yet waits."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.config import Config, load_config
from pquant_fx.config.ignored import IGNORED, set_aside
from pquant_fx.errors import ConfigError
from pquant_fx.formats import FixedFormat

LIST = json.loads((Path(__file__).parent / "data" / "pquant_ml_0_1_0_keys.json").read_text())
ROUNDS = max(len(values) for _, values in LIST["keys"])
IGNORED_THERE = {
    "quantization_parameters.hgq_heterogeneous",
    "quantization_parameters.use_symmetric_quantization",
    "quantization_parameters.default_integer_bits",
    "quantization_parameters.default_fractional_bits",
    "quantization_parameters.layer_specific.layer3.0.conv1.integer_bits",
    "quantization_parameters.layer_specific.layer3.0.conv1.fractional_bits",
    "hpo_parameters.epochs",
}


def settings(name: str, turn: int) -> dict[str, Any]:
    """A configuration with every key of the file; `turn` picks among the values that occur."""
    file = LIST["files"][name]
    made: dict[str, Any] = {"pruning_parameters": {"pruning_method": file["pruning_method"]}}
    for number in file["keys"]:
        path, values = LIST["keys"][number]
        inner = made
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = values[turn % len(values)]
    return made


def paths(data: Any, place: tuple[str, ...] = ()) -> set[str]:
    if not isinstance(data, dict) or not data:
        return {".".join(place)}
    return set(chain.from_iterable(paths(value, (*place, key)) for key, value in data.items()))


def test_the_list_is_whole() -> None:
    assert len(LIST["files"]) == 9
    assert {number for file in LIST["files"].values() for number in file["keys"]} == set(range(len(LIST["keys"])))


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize("name", LIST["files"])
def test_every_key_loads_and_is_kept_or_reported(name: str, turn: int) -> None:
    data = settings(name, turn)
    config = load_config(data)
    ignored = set(config.ignored or ())
    assert ignored == IGNORED_THERE & paths(data)
    assert paths(data) - ignored - paths(config.to_dict()) <= {"pruning_parameters.M", "pruning_parameters.N"}  # null
    assert load_config(config.to_yaml()) == config
    reported = {note.what.partition(" ")[0] for note in config.notes if note.code == "PQ406"}
    assert reported == ignored
    assert all(note.severity == "info" and note.remedy for note in config.notes)


def test_its_files_say_what_they_say() -> None:
    config = load_config(settings("config_pdp.yaml", 0))
    found = config.settings_for("conv1", "weighted", "Conv2d")
    assert (found.weight_format, found.data_format) == (FixedFormat(1, 0, 7), FixedFormat(0, 0, 7))
    assert (found.granularity, found.quantize_input, found.quantize_output) == ("per_tensor", True, False)
    assert (found.real_tanh, found.relu_multiplier) == (False, False)
    assert config.pruning_parameters.pruning_method == "pdp"


def test_every_entry_of_the_table_is_used_and_says_why() -> None:
    assert all(why and not why.endswith(".") for why in IGNORED.values())
    for path in IGNORED:
        nested: Any = 1
        for part in reversed(path):
            nested = {"conv.1" if part == "*" else part: nested}
        left, found = set_aside(nested)
        assert found == (".".join(path).replace("*", "conv.1"),)
        assert paths(left) == {".".join(path[:-1]).replace("*", "conv.1")}


def test_what_is_ignored_survives_overrides_and_files() -> None:
    config = load_config({"quantization_parameters": {"hgq_heterogeneous": True}}, overrides={"hpo_parameters.epochs": 3})
    assert config.ignored == ("hpo_parameters.epochs", "quantization_parameters.hgq_heterogeneous")
    again = load_config(config, overrides={"quantization_parameters.use_symmetric_quantization": False})
    assert len(again.ignored or ()) == 3
    assert Config().ignored is None
    assert "ignored" not in Config().to_dict()


def test_only_known_keys_can_be_named_as_ignored() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        load_config({"ignored": ["nonsense.key"]})


# ---- what waits
X = torch.linspace(-1, 1, 8).reshape(2, 4)
WAITING: list[tuple[str, dict[str, Any]]] = [
    ("fitcompress_parameters.enable_fitcompress", {"fitcompress_parameters": {"enable_fitcompress": True}}),
    ("pruning_parameters.pruning_method", {"pruning_parameters": {"pruning_method": "fitcompress"}}),
]


@pytest.mark.parametrize(("key", "data"), WAITING, ids=[key for key, _ in WAITING])
def test_features_of_later_versions_load_and_are_refused_by_compile(key: str, data: dict[str, Any]) -> None:
    config = load_config(data)
    assert [(problem.code, problem.what.partition(":")[0]) for problem in config.pending] == [("PQ408", key)]
    assert load_config(config.to_yaml()) == config
    with pytest.raises(ConfigError) as caught:
        pq.compile(nn.Linear(4, 2), config, X)
    assert caught.value.problems == config.pending
    assert pq.check(nn.Linear(4, 2), X, config=config).problems == config.pending


def test_all_that_waits_comes_together() -> None:
    data = {key: value for _, section in WAITING for key, value in section.items()}
    data["training_parameters"] = {"rewind": "every-round"}
    config = load_config(data)
    assert [(problem.code, problem.what.partition(":")[0]) for problem in config.pending][:1] == [
        ("PQ407", "training_parameters.save_weights_epoch")
    ]
    assert [problem.what.partition(":")[0] for problem in config.pending][1:] == [
        "pruning_parameters.pruning_method",
        "fitcompress_parameters.enable_fitcompress",
    ]
    assert all(problem.remedy and problem.severity == "error" for problem in config.pending)


def test_a_search_is_kept_but_not_run() -> None:
    config = load_config({"hpo_parameters": {"num_trials": 5}})
    assert [(note.code, note.severity) for note in config.notes] == [("PQ408", "info")]
    assert config.hpo_parameters.num_trials == 5


def test_notes_reach_the_compiled_model_and_check() -> None:
    config = {"quantization_parameters": {"hgq_heterogeneous": True}}
    model = pq.compile(nn.Linear(4, 2), config, X)
    assert load_config(config).notes[0] in model.notes
    report = pq.check(nn.Linear(4, 2), X, "integer", config=config)
    assert report.ok
    assert load_config(config).notes[0] in report.problems
