"""Rules per layer: what a pattern matches, who wins, and patterns that match nothing."""

from __future__ import annotations

import random
import string
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pquant_fx.config import LayerSettings, load_config
from pquant_fx.config.patterns import Pattern
from pquant_fx.formats import FixedFormat

KNOWN = [
    ("conv1", "Conv2d", 1),
    ("relu", "ReLU", 1),
    ("relu", "ReLU", 2),
    ("layer1.0.conv1", "Conv2d", 1),
    ("layer1.0", "relu", 1),
    ("layer1.0", "add", 1),
    ("encoder.layers.0.fc", "Linear", 1),
    ("fc", "Linear", 1),
]


def rules(layers: dict[str, Any], **sections: Any) -> Any:
    return load_config({"preset": "fixed8", "layers": layers, **sections})


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("conv1", [0]),
        ("layer1.*.conv*", [3]),
        ("layer1.*", [3, 4, 5]),
        ("Conv2d", [0, 3]),
        ("relu@2", [2]),
        ("relu", [1, 2, 4]),
        ("ReLU@1", [1]),
        ("layer1.0.relu@1", [4]),
        ("add", [5]),
        ("*", list(range(8))),
        ("con?1", [0]),
        ("relu@0", []),
        ("conv", []),
    ],
)
def test_what_a_pattern_matches(pattern: str, matched: list[int]) -> None:
    assert [n for n, place in enumerate(KNOWN) if Pattern.parse(pattern).matches(*place)] == matched


def test_last_match_wins_field_by_field() -> None:
    config = rules(
        {
            "Conv2d": {"weight_bits": 6, "data_bits": 5, "granularity": "per_tensor"},
            "layer1.*": {"weight_bits": 4, "data_overflow": "WRAP"},
            "layer1.0.conv1@1": {"data_bits": 3},
        }
    )
    found = config.settings_for("layer1.0.conv1", "weighted", "Conv2d", 1)
    assert found == LayerSettings(weight_bits=4, data_bits=3, granularity="per_tensor", data_overflow="WRAP")
    assert config.settings_for("conv1", "weighted", "Conv2d", 1) == LayerSettings(weight_bits=6, data_bits=5, granularity="per_tensor")
    assert config.settings_for("fc", "weighted", "Linear", 1) == LayerSettings()


def test_a_static_format_and_a_width_replace_each_other_in_order() -> None:
    config = rules({"*": {"weight_format": "fixed<6,1,TRN,SAT_SYM>", "data_format": "ufixed<4,2>"}, "fc": {"weight_bits": 5}})
    first, last = config.settings_for("conv1"), config.settings_for("fc")
    assert (first.weight_format, first.weight_bits, first.weight_rounding, first.weight_overflow) == (
        FixedFormat(1, 0, 5),
        6,
        "TRN",
        "SAT_SYM",
    )
    assert (first.data_format, first.data_bits, first.data_rounding) == (FixedFormat(0, 2, 2), 4, "RND")
    assert (last.weight_format, last.weight_bits, last.weight_rounding) == (None, 5, "TRN")


def test_global_switches_overrule_rules() -> None:
    layers = {"fc": {"prune": True, "sparsity": 0.5, "quantize": True}}
    off = rules(layers, quantization_parameters={"enable_quantization": False}).settings_for("fc", "weighted", "Linear", 1)
    assert (off.quantize, off.prune, off.sparsity) == (False, False, None)
    on = rules(layers, pruning_parameters={"sparsity": 0.8}).settings_for("fc", "weighted", "Linear", 1)
    assert (on.quantize, on.prune, on.sparsity) == (True, True, 0.5)


def test_the_papers_per_layer_settings() -> None:
    config = rules(
        {"fc": {"prune": True}},
        pruning_parameters={"disable_pruning_for_layers": ["conv1", "fc", "encoder.*"]},
        quantization_parameters={
            "layer_specific": {
                "conv1": {
                    "weight": {"keep_negatives": 1, "integer_bits": 0.0, "fractional_bits": 5.0},
                    "bias": {"keep_negatives": 1, "integer_bits": 2, "fractional_bits": 5},
                    "output": {"keep_negatives": 0, "integer_bits": 2, "fractional_bits": 4, "quantize": True},
                }
            }
        },
    )
    found = config.settings_for("conv1", "weighted", "Conv2d", 1)
    assert (found.weight_format, found.bias_format, found.data_format) == (FixedFormat(1, 0, 5), FixedFormat(1, 2, 5), FixedFormat(0, 2, 4))
    assert (found.weight_bits, found.data_bits, found.prune) == (6, 6, False)
    assert config.settings_for("fc", "weighted", "Linear", 1).prune  # `layers` comes after the paper's list
    assert not config.settings_for("encoder.layers.0.fc", "weighted", "Linear", 1).prune
    assert config.settings_for("layer1.0.conv1", "weighted", "Conv2d", 1).prune
    assert not config.settings_for("relu", "activation", "ReLU", 1).prune


def test_a_sparsity_of_its_own_turns_pruning_of_a_layer_on() -> None:
    config = rules({"fc": {"sparsity": 0.3}}, pruning_parameters={"disable_pruning_for_layers": ["*"]})
    found = config.settings_for("fc", "weighted", "Linear", 1)
    assert (found.prune, found.sparsity) == (True, 0.3)


def test_joins_by_pattern() -> None:
    config = load_config({"joins": {"policy": "requant", "layers": {"layer1.*": "shared", "add@2": "align"}}})
    assert config.join_policy("layer1.0", "add", 1) == "shared"
    assert config.join_policy("layer1.0", "add", 2) == "align"
    assert config.join_policy("", "cat", 1) == "requant"


def test_every_pattern_that_matches_nothing_is_reported_with_the_closest() -> None:
    config = rules(
        {"encoder.*.fcc": {"weight_bits": 4}, "conv2d": {}, "relu@3": {}, "layer1": {}, "zzzzzz": {}, "conv1": {}},
        pruning_parameters={"disable_pruning_for_layers": ["head"]},
        quantization_parameters={"layer_specific": {"cnv1": {}}},
        joins={"layers": {"sum": "shared"}},
    )
    found = {problem.what.split("'")[1]: problem for problem in config.unmatched_rules(iter(KNOWN))}
    assert {problem.code for problem in found.values()} == {"PQ402"}
    assert found.keys() == {"encoder.*.fcc", "conv2d", "relu@3", "layer1", "zzzzzz", "head", "cnv1", "sum"}
    assert "'encoder.layers.0.fc'" in found["encoder.*.fcc"].remedy
    assert "'Conv2d'" in found["conv2d"].remedy
    assert "@1, @2" in found["relu@3"].remedy
    assert "'layer1.*'" in found["layer1"].remedy
    assert "known names" in found["zzzzzz"].remedy
    assert "'conv1'" in found["cnv1"].remedy
    assert found["head"].what.startswith("pruning_parameters.disable_pruning_for_layers")
    assert rules({"conv1": {}, "Linear": {}}).unmatched_rules(KNOWN) == ()


def test_names_of_inputs_and_outputs_are_checked_too() -> None:
    config = load_config({"inputs": {"x": {}, "jets": {}}, "outputs": {"logits": {}, "1": {}, "2": {}}})
    found = config.unmatched_interfaces(["x", "jet"], ["logit", "pt"])
    assert [(problem.code, problem.what.split("'")[1]) for problem in found] == [("PQ402", "jets"), ("PQ402", "logits"), ("PQ402", "2")]
    assert "'jet'" in found[0].remedy


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "a.*", "*.b", "T", "*", "a.b", "T@1", "a@2"]), st.integers(1, 32)), max_size=8), st.data()
)
def test_the_index_agrees_with_trying_every_rule(entries: list[tuple[str, int]], data: st.DataObject) -> None:
    layers = {pattern: {"weight_bits": bits} for pattern, bits in entries}
    path = data.draw(st.sampled_from(["a", "b", "a.b", "c.b", ""]))
    type_name, site = data.draw(st.sampled_from(["T", "U", ""])), data.draw(st.integers(1, 2))
    expected = 8
    answers = [name for name in (path, type_name, f"{path}.{type_name}" if path and type_name else "") if name] or [""]
    for pattern, rule in layers.items():
        name, _, number = pattern.partition("@")
        if any(fnmatchcase(answer, name) for answer in answers) and (not number or int(number) == site):
            expected = rule["weight_bits"]
    assert load_config({"layers": layers}).settings_for(path, "", type_name, site).weight_bits == expected


def test_naming_every_layer_stays_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    config = rules({f"block{n}.conv": {"weight_bits": 4} for n in range(1000)})
    assert config.settings_for("block999.conv", "weighted", "Conv2d", 1).weight_bits == 4
    compared: list[Pattern] = []
    matches = Pattern.matches
    monkeypatch.setattr(Pattern, "matches", lambda self, *place: compared.append(self) or matches(self, *place))
    for n in range(1000):
        config.settings_for(f"block{n}.conv", "weighted", "Conv2d", 1)
    assert len(compared) == 1000  # one rule of a thousand is looked at for each layer


def test_patterns_are_compared_literally_unless_they_hold_a_glob() -> None:
    rng = random.Random(0)
    for _ in range(200):
        name = "".join(rng.choice(string.ascii_letters + "._") for _ in range(6))
        assert Pattern.parse(name).matches(name, "", 1)
        assert not Pattern.parse(name).matches(name + "x", "", 1)
