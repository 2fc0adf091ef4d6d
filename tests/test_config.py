"""The schema: the paper's sections and defaults, ours, and every kind of bad input, several at once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from pquant_fx.config import Config, load_config
from pquant_fx.config.pruning import METHODS
from pquant_fx.config.pruning_section import LaterMethod
from pquant_fx.errors import ConfigError
from pquant_fx.formats import FixedFormat


def findings(data: dict[str, Any]) -> dict[str, str]:
    """Code of every finding by the key that its text begins with."""
    with pytest.raises(ConfigError) as caught:
        load_config(data)
    assert all(problem.remedy for problem in caught.value.problems)
    return {problem.what.removeprefix("unknown key ").partition(":")[0].strip("'"): problem.code for problem in caught.value.problems}


def test_defaults_of_the_papers_sections() -> None:
    config = Config()
    training = config.training_parameters
    assert (training.epochs, training.fine_tuning_epochs, training.pretraining_epochs) == (200, 0, 50)
    assert (training.rewind, training.rounds, training.save_weights_epoch, training.pruning_first) == ("never", 1, -1, True)
    quantization = config.quantization_parameters
    assert quantization.enable_quantization
    assert (quantization.overflow_mode_data, quantization.overflow_mode_parameters, quantization.round_mode) == ("SAT", "SAT", "RND")
    assert (quantization.hgq_beta, quantization.hgq_gamma, quantization.use_hgq) == (0.0, 1e-8, False)
    assert (quantization.default_data_bits, quantization.default_weight_bits, quantization.granularity) == (8, 8, "per_channel")
    search = config.fitcompress_parameters
    assert search.quantization_schedule == (7.0, 4.0, 3.0, 2.0)
    assert (search.pruning_schedule.start, search.pruning_schedule.end, search.pruning_schedule.steps) == (0, -3, 40)
    assert not config.pruning_parameters.enable_pruning


def test_a_pruning_section_turns_pruning_on_with_magnitude() -> None:
    pruning = load_config({"pruning_parameters": {"sparsity": 0.5}}).pruning_parameters
    assert (pruning.pruning_method, pruning.enable_pruning) == ("magnitude", True)
    for empty in ({}, None):
        assert not load_config({"pruning_parameters": empty}).pruning_parameters.enable_pruning


@pytest.mark.parametrize("method", sorted(name for name, section in METHODS.items() if issubclass(section, LaterMethod)))
def test_a_method_of_a_later_version_is_read_and_waits_when_enabled(method: str) -> None:
    off = load_config({"pruning_parameters": {"pruning_method": method, "enable_pruning": False}})
    assert off.pruning_parameters.pruning_method == method
    assert load_config(off.to_yaml()) == off
    assert off.pending == ()
    (problem,) = load_config({"pruning_parameters": {"pruning_method": method}}).pending
    assert (problem.code, f"'{method}'" in problem.what, bool(problem.remedy)) == ("PQ408", True, True)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("budget", "cost", 1000),
        ("budget", "lut", 1000),
        ("target", "name", "rtl"),
        ("target", "backend", "Libero"),
    ],
)
def test_a_feature_of_a_later_version_is_refused_only_when_active(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({section: {key: value}})
    (problem,) = caught.value.problems
    assert problem.code == "PQ408"
    assert f"{section}.{key}" in problem.what
    assert str(value) in problem.what or str(value).lower() in problem.what
    defaults = Config().to_dict()
    if key in defaults[section]:
        assert load_config({section: {key: defaults[section][key]}}) is not None


def test_settings_of_a_feature_that_is_off_are_kept() -> None:
    config = load_config({"quantization_parameters": {"use_hgq": False, "hgq_beta": 1e-5, "hgq_gamma": 3e-4}})
    assert (config.quantization_parameters.hgq_beta, config.quantization_parameters.hgq_gamma) == (1e-5, 3e-4)


def test_all_unknown_keys_are_listed_at_once_with_the_closest() -> None:
    data = {
        "quantization_parameters": {"defualt_data_bits": 6, "layer_specific": {"fc": {"wieght": {}}}},
        "trainig_parameters": {"epochs": 3},
        "layers": {"conv1": {"weight_bit": 4}},
        "inputs": {"x": {"shap": [4]}},
        "epochs": 3,
        "pruning_parameters": {"final_temp": 200},
    }
    with pytest.raises(ConfigError) as caught:
        load_config(data)
    remedies = {problem.what.split("'")[1]: problem.remedy for problem in caught.value.problems}
    assert {problem.code for problem in caught.value.problems} == {"PQ406"}
    assert remedies.keys() == {
        "quantization_parameters.defualt_data_bits",
        "quantization_parameters.layer_specific.fc.wieght",
        "trainig_parameters",
        "layers.conv1.weight_bit",
        "inputs.x.shap",
        "epochs",
        "pruning_parameters.final_temp",
    }
    assert "'default_data_bits'" in remedies["quantization_parameters.defualt_data_bits"]
    assert "'weight'" in remedies["quantization_parameters.layer_specific.fc.wieght"]
    assert "'training_parameters'" in remedies["trainig_parameters"]
    assert "'weight_bits'" in remedies["layers.conv1.weight_bit"]
    assert "'shape'" in remedies["inputs.x.shap"]
    assert "'training_parameters'" in remedies["epochs"]
    assert "cs" in remedies["pruning_parameters.final_temp"]


def test_invalid_values_unknown_keys_and_later_features_come_together() -> None:
    found = findings(
        {
            "training_parameters": {"epochs": "many", "rewind": "nope", "rounds": 3, "batch_size": True},
            "budget": {"lut": 1000},
            "quantization_parameters": {"overflow_mode_data": "BANANA", "round_mode": "UP", "default_weight_bits": 0, "hgq_beta": -1},
            "pruning_parameters": {"sparsity": 1.5, "scope": "planet"},
            "inputs": {"x": {"shape": [0, 3], "format": "float"}},
            "layers": {"conv1": {"data_format": "fixed<0,0>"}},
            "budgets": {},
        }
    )
    assert found == {
        "budgets": "PQ406",
        "training_parameters.epochs": "PQ407",
        "training_parameters.rewind": "PQ407",
        "training_parameters.batch_size": "PQ407",
        "quantization_parameters.overflow_mode_data": "PQ407",
        "quantization_parameters.round_mode": "PQ407",
        "quantization_parameters.default_weight_bits": "PQ407",
        "quantization_parameters.hgq_beta": "PQ407",
        "pruning_parameters.sparsity": "PQ407",
        "pruning_parameters.scope": "PQ407",
        "inputs.x.shape.0": "PQ407",
        "inputs.x.format": "PQ407",
        "layers.conv1.data_format": "PQ407",
        "budget.lut": "PQ408",
    }


def test_allowed_values_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"quantization_parameters": {"overflow_mode_data": "SATT"}, "pruning_parameters": {"pruning_method": "wandas"}})
    by_key = {problem.what.partition(":")[0]: problem.remedy for problem in caught.value.problems}
    assert "SAT_SYM" in by_key["quantization_parameters.overflow_mode_data"]
    assert "did you mean 'wanda'?" in by_key["pruning_parameters.pruning_method"]
    assert "magnitude" in by_key["pruning_parameters.pruning_method"]


@pytest.mark.parametrize("what", ["data", "weight"])
def test_static_formats_exclude_widths_and_need_both_parts(what: str) -> None:
    prefix = f"default_{what}_"
    section = "quantization_parameters"
    key = f"{section}.{prefix}"
    assert findings({section: {prefix + "integer_bits": 2}}) == {key + "fractional_bits": "PQ407"}
    assert findings({section: {prefix + "fractional_bits": 2}}) == {key + "integer_bits": "PQ407"}
    assert findings({section: {prefix + "keep_negatives": True}}) == {key + "integer_bits": "PQ407"}
    both = {prefix + "integer_bits": 2, prefix + "fractional_bits": 5}
    assert findings({section: {**both, prefix + "bits": 8}}) == {key + "bits": "PQ407"}
    assert findings({section: {prefix + "integer_bits": -9, prefix + "fractional_bits": 2}}) == {key + "fractional_bits": "PQ407"}
    settings = load_config({section: {**both, prefix + "keep_negatives": 0}}).settings_for("conv")
    made, width = (settings.data_format, settings.data_bits) if what == "data" else (settings.weight_format, settings.weight_bits)
    assert (made, width) == (FixedFormat(0, 2, 5), 7)
    assert load_config({section: both}).quantization_parameters.model_dump()[prefix + "bits"] is None


def test_magnitude_schedule_must_make_sense() -> None:
    found = findings({"pruning_parameters": {"sparsity": 0.5, "initial_sparsity": 0.6, "start_fraction": 0.9, "end_fraction": 0.2}})
    assert found == {"pruning_parameters.initial_sparsity": "PQ407", "pruning_parameters.start_fraction": "PQ407"}


def test_contradictions_inside_a_rule_are_listed_together() -> None:
    found = findings(
        {
            "layers": {
                "a": {"weight_bits": 4, "weight_format": "fixed<4,1>", "prune": False, "sparsity": 0.5},
                "b": {"data_format": "fixed<8,3,TRN,WRAP>", "data_rounding": "RND", "data_overflow": "SAT"},
                "c": {"bias_format": "fixed<8,3,TRN>"},
            }
        }
    )
    assert found == {
        "layers.a.weight_bits": "PQ407",
        "layers.a.sparsity": "PQ407",
        "layers.b.data_rounding": "PQ407",
        "layers.b.data_overflow": "PQ407",
        "layers.c.bias_format": "PQ407",
    }


def test_a_config_is_immutable_and_open_nowhere() -> None:
    config = load_config("fixed8")
    with pytest.raises(ValidationError):
        config.training_parameters.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.calibration = None  # type: ignore[assignment, misc]


def test_copies_and_pickles_are_equal() -> None:
    config = load_config({"preset": "fixed8", "layers": {"conv*": {"weight_bits": 4}}})
    expected = config.settings_for("conv1")  # builds what is cached
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.model_copy()):
        assert twin == config
        assert twin.settings_for("conv1") == expected


def test_the_order_of_rules_is_part_of_a_config() -> None:
    one = load_config({"layers": {"conv*": {"weight_bits": 4}, "*1": {"weight_bits": 6}}})
    two = load_config({"layers": {"*1": {"weight_bits": 6}, "conv*": {"weight_bits": 4}}})
    assert one != two
    assert (one.settings_for("conv1").weight_bits, two.settings_for("conv1").weight_bits) == (6, 4)


def test_an_error_survives_pickling() -> None:
    with pytest.raises(ConfigError) as caught:
        Config(training_parameter={})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.code == "PQ406"


def test_safety_bits_follow_the_overflow_mode_unless_given() -> None:
    calibration = load_config("fixed8").calibration
    assert (calibration.safety("SAT"), calibration.safety("WRAP")) == (0, 1)
    assert load_config({"calibration": {"safety_bits": 2}}).calibration.safety("SAT") == 2


def test_interfaces_by_name_and_position() -> None:
    config = load_config(
        {"inputs": {"x": {"shape": [16], "format": "ap_fixed<16, 6>"}, "z": None}, "outputs": {0: {"format": "ufixed<8,0,TRN,WRAP>"}}}
    )
    assert config.input_format("x") == (FixedFormat(1, 5, 10), "RND", "SAT")
    assert (config.input_format("z"), config.input_format("other")) == (None, None)
    assert config.output_format("softmax", 0) == (FixedFormat(0, 0, 8), "TRN", "WRAP")
    assert config.output_format("softmax", 1) is None
    assert config.input_shapes() == {"x": (16,)}
    with_rule = load_config(config, overrides={"layers.*.data_bits": 3, "layers.*.quantize": False})
    declared = with_rule.settings_for("x", "input", "placeholder")
    assert (declared.data_format, declared.data_bits, declared.quantize) == (FixedFormat(1, 5, 10), 16, True)
    assert with_rule.settings_for("0", "output", "output").data_overflow == "WRAP"
    assert with_rule.settings_for("z", "input", "placeholder").data_bits == 3
    assert not with_rule.settings_for("x").quantize
    assert load_config(config.to_yaml()) == config
