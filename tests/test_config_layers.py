"""What can be said of one layer: every field of its settings under `layers`, and the paper's layer_specific."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from pquant_fx.config import Config, LayerRule, LayerSettings, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.formats import FixedFormat


def rules(layers: dict[str, Any], **sections: Any) -> Config:
    return load_config({"preset": "fixed8", "layers": layers, **sections})


# ---- layers
def test_every_field_of_the_settings_has_its_key_in_a_rule() -> None:
    assert {field.name for field in fields(LayerSettings)} == set(LayerRule.model_fields)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("granularity", "per_weight"),
        ("data_granularity", "per_element"),
        ("weight_quantizer", "tqt"),
        ("data_quantizer", "pact"),
        ("weight_range", "mse"),
        ("weight_rounding", "TRN"),
        ("data_rounding", "RND_CONV"),
        ("weight_overflow", "SAT_SYM"),
        ("data_overflow", "WRAP"),
        ("input_bits", 4),
        ("quantize_input", False),
        ("quantize_output", True),
        ("n_parallel", 1),
        ("relu_multiplier", True),
        ("real_tanh", False),
    ],
)
def test_a_rule_sets_one_field_of_one_layer(key: str, value: Any) -> None:
    config = rules({"fc": {key: value}})
    assert config.settings_for("fc") == replace(LayerSettings(), **{key: value})
    assert config.settings_for("conv1") == LayerSettings()
    assert load_config(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("rule", "keys"),
    [
        ({"granularity": "per_element"}, ["granularity"]),
        ({"weight_quantizer": "pact", "data_quantizer": "minmax"}, ["weight_quantizer", "data_quantizer"]),
        ({"n_parallel": 0, "input_bits": 33}, ["input_bits", "n_parallel"]),
        ({"input_format": "fixed<4,1>", "input_bits": 4}, ["input_bits"]),
        ({"input_format": "fixed<4,1,TRN>"}, ["input_format"]),
        ({"input_format": "fixed<4,1>", "quantize_input": False}, ["input_format"]),
        ({"input_bits": 4, "quantize_input": False}, ["input_bits"]),
        ({"weight_format": "fixed<4,1>", "weight_quantizer": "hgq"}, ["weight_quantizer"]),
        ({"data_format": "fixed<4,1>", "data_quantizer": "lsq"}, ["data_quantizer"]),
        ({"data_format": "ufixed<4,1,TRN,WRAP_SM>"}, ["data_format"]),
        ({"data_format": "fixed<4,1,RND,WRAP_SM>"}, ["data_format"]),
        ({"data_overflow": "WRAP_SM", "data_rounding": "RND"}, ["data_overflow"]),
    ],
)
def test_rules_that_can_not_be(rule: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        rules({"fc": rule})
    assert [(p.code, p.what.partition(":")[0]) for p in caught.value.problems] == [("PQ407", f"layers.fc.{key}") for key in keys]


def test_modes_of_several_rules_are_looked_at_together() -> None:
    config = rules({"fc": {"data_overflow": "WRAP_SM"}, "*": {"data_rounding": "TRN"}})
    assert config.settings_for("fc").data_overflow == "WRAP_SM"
    with pytest.raises(ConfigError, match="WRAP_SM") as caught:
        rules({"fc": {"data_overflow": "WRAP_SM"}}).settings_for("fc")
    assert caught.value.code == "PQ407"


def test_a_format_a_width_and_a_kind_replace_each_other_in_order() -> None:
    static = {"weight_format": "fixed<6,1>", "data_format": "ufixed<4,2>", "input_format": "fixed<5,2>"}
    learned = rules({"*": static, "fc": {"weight_quantizer": "hgq", "data_quantizer": "hgq", "input_bits": 3}}).settings_for("fc")
    assert (learned.weight_format, learned.data_format, learned.input_format) == (None, None, None)
    assert (learned.weight_bits, learned.data_bits, learned.input_bits) == (6, 4, 3)
    kept = rules({"*": {"weight_quantizer": "hgq", "input_bits": 3}, "fc": static}).settings_for("fc")
    assert (kept.weight_format, kept.weight_quantizer) == (FixedFormat(1, 0, 5), "hgq")  # the static one counts
    assert (kept.input_format, kept.input_bits) == (FixedFormat(1, 1, 3), 5)
    over = load_config(rules({"fc": static}), overrides={"layers.fc.weight_quantizer": "tqt", "layers.fc.input_bits": 3})
    assert over.layers["fc"].weight_format is None
    assert over.settings_for("fc").input_bits == 3


# ---- layer_specific
def test_what_a_layer_takes_and_makes_in_the_papers_shape() -> None:
    bits = {"keep_negatives": 0, "integer_bits": 1.0, "fractional_bits": 6.0}
    specific = {
        "conv1": {"input": {**bits, "quantize": True}, "output": {"quantize": True}},
        "fc": {"input": {**bits, "quantize": False}, "output": {"integer_bits": 3, "fractional_bits": 2}},
        "relu": {"output": {**bits, "quantize": False}},
    }
    config = rules({}, quantization_parameters={"layer_specific": specific})
    conv, fc, relu = (config.settings_for(name) for name in ("conv1", "fc", "relu"))
    assert (conv.input_format, conv.input_bits, conv.quantize_input, conv.quantize_output) == (FixedFormat(0, 1, 6), 7, True, True)
    assert (conv.data_format, conv.data_bits) == (None, 8)
    assert (fc.input_format, fc.quantize_input, fc.quantize_output) == (None, False, False)
    assert (fc.data_format, fc.data_bits) == (FixedFormat(1, 3, 2), 6)
    assert (relu.data_format, relu.quantize_output) == (None, False)
    assert load_config(config.to_yaml()) == config


def test_what_layer_specific_can_not_mean() -> None:
    half, empty = {"integer_bits": 1}, {"integer_bits": -3, "fractional_bits": 2}
    specific = {"a": {"input": half, "weight": half}, "b": {"output": empty, "bias": {**empty, "quantize": False}}, "c": {"inputs": {}}}
    with pytest.raises(ConfigError) as caught:
        load_config({"quantization_parameters": {"layer_specific": specific}})
    where = "quantization_parameters.layer_specific."
    found = {p.what.removeprefix("unknown key ").partition(":")[0].strip("'").removeprefix(where): p.code for p in caught.value.problems}
    assert found == {
        "a.input.fractional_bits": "PQ407",
        "a.weight.fractional_bits": "PQ407",
        "b.output.fractional_bits": "PQ407",
        "b.bias.quantize": "PQ406",
        "c.inputs": "PQ406",
    }


def test_overrides_reach_into_layer_specific() -> None:
    section = "quantization_parameters.layer_specific.layer1.0.conv1"
    keys = {f"{section}.weight.integer_bits": 0, f"{section}.weight.fractional_bits": 3, f"{section}.output": {"quantize": True}}
    found = load_config("fixed8", overrides=keys).settings_for("layer1.0.conv1")
    assert (found.weight_format, found.quantize_output) == (FixedFormat(1, 0, 3), True)
