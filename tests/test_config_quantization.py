"""Section quantization_parameters: HGQ, quantizer kinds, granularity, and what the paper's keys mean together."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from pquant_fx.config import BetaController, BetaPoint, Config, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.formats import FixedFormat


def quantization(**keys: Any) -> Config:
    return load_config({"quantization_parameters": keys})


def codes(data: dict[str, Any]) -> dict[str, str]:
    """Code of every finding by its key."""
    with pytest.raises(ConfigError) as caught:
        load_config(data)
    assert all(problem.remedy for problem in caught.value.problems)
    return {problem.what.removeprefix("unknown key ").partition(":")[0].strip("'"): problem.code for problem in caught.value.problems}


def refused(**keys: Any) -> dict[str, str]:
    return {key.removeprefix("quantization_parameters."): code for key, code in codes({"quantization_parameters": keys}).items()}


# ---- HGQ
@pytest.mark.parametrize("key", ["use_hgq", "use_high_granularity_quantization"])
def test_one_switch_under_two_names_makes_both_quantizers_hgq(key: str) -> None:
    config = quantization(**{key: True})
    found = config.settings_for("fc", "weighted", "Linear")
    assert config.quantization_parameters.use_hgq
    assert config.learns_bits
    assert (found.weight_quantizer, found.data_quantizer, found.granularity) == ("hgq", "hgq", "per_weight")
    assert load_config(config.to_yaml()) == config == quantization(use_high_granularity_quantization=True)


def test_the_two_names_may_not_disagree() -> None:
    assert refused(use_hgq=True, use_high_granularity_quantization=False) == {"use_hgq": "PQ407"}
    assert not quantization(use_hgq=False, use_high_granularity_quantization=False).quantization_parameters.use_hgq


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (1e-5, 1e-5),
        (0, 0.0),
        ([[0, 5e-7, "log"], [100, 1e-4]], (BetaPoint(0, 5e-7, "log"), BetaPoint(100, 1e-4, "constant"))),
        ([[0, 0, "linear"], [5, 1e-6, "constant"], [9, 0]], (BetaPoint(0, 0, "linear"), BetaPoint(5, 1e-6), BetaPoint(9, 0))),
        ({"target_ebops": 1e4}, BetaController(target_ebops=1e4)),
        ({"target_ebops": 1, "p": 2, "beta_max": 1e-3}, BetaController(target_ebops=1, p=2, beta_max=1e-3)),
    ],
)
def test_what_beta_can_be(written: Any, read: Any) -> None:
    config = quantization(hgq_beta=written)
    assert config.quantization_parameters.hgq_beta == read
    assert type(config.quantization_parameters.hgq_beta) is type(read)
    again = load_config(config.to_yaml())
    assert again == config == pickle.loads(pickle.dumps(config))
    assert type(again.quantization_parameters.hgq_beta) is type(read)


def test_the_controller_begins_as_algorithms_b9_says() -> None:
    made = BetaController(target_ebops=1e4)
    assert (made.init_beta, made.p, made.i, made.d, made.damp, made.warmup_epochs) == (1e-6, 1.0, 2e-3, 0.0, 0.0, 10)
    assert (made.beta_min, made.beta_max) == (0.0, None)


@pytest.mark.parametrize(
    ("written", "where"),
    [
        (-1, ""),
        ("much", ""),
        (True, ""),
        (float("nan"), ""),
        ([], ""),
        ([0, 1e-6, "log"], ""),
        ([[0]], ""),
        ([[0, 1e-6, "log", 3]], ""),
        ([[2, 1e-6]], ""),
        ([[0, 1e-6], [5, 1e-5], [5, 1e-4]], ""),
        ([[0, 0, "log"], [5, 1]], ""),
        ([[0, 1, "log"], [5, 0]], ""),
        ([[0, -1e-6]], ".0.1"),
        ([[0, 1e-6, "cubic"]], ".0.2"),
        ([[0.5, 1e-6]], ".0.0"),
        ({}, ".target_ebops"),
        ({"target_ebops": 0}, ".target_ebops"),
        ({"target_ebops": 9, "i": 0}, ".i"),
        ({"target_ebops": 9, "damp": 1}, ".damp"),
        ({"target_ebops": 9, "beta_min": 1e-3, "beta_max": 1e-4}, ".beta_max"),
        ({"target_ebops": 9, "init_beta": 1e-3, "beta_max": 1e-4}, ".init_beta"),
    ],
)
def test_what_beta_can_not_be(written: Any, where: str) -> None:
    assert refused(hgq_beta=written) == {f"hgq_beta{where}": "PQ407"}


def test_keys_of_the_controller_are_suggested() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'quantization_parameters\.hgq_beta\.target_ebop'") as caught:
        quantization(hgq_beta={"target_ebop": 9, "target_ebops": 9})
    assert caught.value.remedy == "did you mean 'target_ebops'?"


def test_the_other_settings_of_hgq() -> None:
    defaults = quantization().quantization_parameters
    assert (defaults.hgq_gamma, defaults.group_grad_norm, defaults.ebops_sign) == (1e-8, False, "weights_unsigned")
    made = quantization(hgq_gamma=3e-4, group_grad_norm=True, ebops_sign="hgq2").quantization_parameters
    assert (made.hgq_gamma, made.group_grad_norm, made.ebops_sign) == (3e-4, True, "hgq2")
    assert refused(hgq_gamma=-1, group_grad_norm="sqrt", ebops_sign="never") == dict.fromkeys(
        ("hgq_gamma", "group_grad_norm", "ebops_sign"), "PQ407"
    )


# ---- budget
def test_a_budget_needs_bits_that_are_learned_and_sets_beta_itself() -> None:
    assert codes({"budget": {"ebops": 9}}) == {"budget.ebops": "PQ407"}
    assert load_config({"layers": {"fc": {"weight_quantizer": "hgq"}}, "budget": {"ebops": 9}}).budget.ebops == 9
    for beta in ([[0, 1e-6]], {"target_ebops": 9}):
        section = {"use_hgq": True, "hgq_beta": beta}
        assert codes({"quantization_parameters": section, "budget": {"ebops": 9}}) == {"quantization_parameters.hgq_beta": "PQ407"}
    number = {"use_hgq": True, "hgq_beta": 1e-6}
    assert load_config({"quantization_parameters": number, "budget": {"ebops": 9}}).quantization_parameters.hgq_beta == 1e-6


def test_budget_and_schedule_replace_each_other_in_order() -> None:
    limited = load_config("hgq", overrides={"budget.ebops": 5000})
    assert (limited.budget.ebops, limited.quantization_parameters.hgq_beta) == (5000, 3e-5)
    steered = load_config(limited, overrides={"quantization_parameters.hgq_beta": {"target_ebops": 9}})
    assert (steered.budget.ebops, steered.quantization_parameters.hgq_beta) == (None, BetaController(target_ebops=9))
    assert load_config("hgq_budget", overrides={"quantization_parameters.hgq_beta": 1e-7}).budget.ebops == 20000


@pytest.mark.parametrize("key", ["ebops", "tolerance"])
def test_limits_that_can_not_be(key: str) -> None:
    assert codes({"preset": "hgq_budget", "budget": {key: 0}}) == {f"budget.{key}": "PQ407"}


# ---- kinds and granularity
def test_a_kind_for_all_weights_and_all_values() -> None:
    found = quantization(weight_quantizer="lsq", data_quantizer="pact", data_granularity="per_channel", weight_range="mse").settings_for(
        "x"
    )
    assert (found.weight_quantizer, found.data_quantizer) == ("lsq", "pact")
    assert (found.data_granularity, found.weight_range) == ("per_channel", "mse")
    assert quantization(dynamic_data_quantization=True).settings_for("x").data_quantizer == "dynamic"
    assert not quantization(weight_quantizer="lsq").learns_bits
    assert quantization(data_quantizer="hgq").learns_bits
    assert not quantization(data_quantizer="hgq", enable_quantization=False).learns_bits


def test_kinds_that_contradict_each_other() -> None:
    assert refused(use_hgq=True, weight_quantizer="tqt") == {"weight_quantizer": "PQ407"}
    assert refused(use_hgq=True, data_quantizer="calibrated") == {"data_quantizer": "PQ407"}
    assert refused(use_hgq=True, dynamic_data_quantization=True) == {"dynamic_data_quantization": "PQ407"}
    assert refused(data_quantizer="tqt", dynamic_data_quantization=True) == {"dynamic_data_quantization": "PQ407"}
    assert refused(weight_quantizer="pact", data_granularity="per_weight") == dict.fromkeys(
        ("weight_quantizer", "data_granularity"), "PQ407"
    )
    assert quantization(use_hgq=True, weight_quantizer="hgq", data_quantizer="hgq").quantization_parameters.use_hgq
    assert quantization(data_quantizer="dynamic", dynamic_data_quantization=True).settings_for("x").data_quantizer == "dynamic"


@pytest.mark.parametrize(
    ("keys", "flat", "map_"),
    [
        ({}, "per_tensor", "per_tensor"),
        ({"granularity": "per_weight"}, "per_tensor", "per_tensor"),
        ({"use_hgq": True}, "per_element", "per_channel"),
        ({"use_hgq": True, "granularity": "per_channel"}, "per_channel", "per_channel"),
        ({"use_hgq": True, "granularity": "per_tensor"}, "per_tensor", "per_tensor"),
        ({"use_hgq": True, "data_granularity": "per_element"}, "per_element", "per_element"),
        ({"data_granularity": "per_channel"}, "per_channel", "per_channel"),
    ],
)
def test_who_shares_a_format_of_data(keys: dict[str, Any], flat: str, map_: str) -> None:
    found = quantization(**keys).settings_for("x")
    assert (found.data_granularity_for(2), found.data_granularity_for(4)) == (flat, map_)


STATIC = {"default_weight_integer_bits": 0, "default_weight_fractional_bits": 5}


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        ({}, FixedFormat(1, 0, 5)),
        ({"granularity": "per_tensor"}, FixedFormat(1, 0, 5)),
        ({"granularity": "per_channel"}, None),
        ({"granularity": "per_weight"}, None),
        ({"use_hgq": True}, None),
        ({"weight_quantizer": "dynamic"}, None),
    ],
)
def test_the_papers_weight_bits_name_a_width_where_the_binary_point_moves(keys: dict[str, Any], made: FixedFormat | None) -> None:
    config = quantization(**STATIC, **keys, **({"hgq_beta": 1e-6} if "use_hgq" in keys else {}))
    found = config.settings_for("x")
    assert (found.weight_format, found.weight_bits) == (made, 6)
    assert len(config.notes) == (made is None)
    assert load_config(config.to_yaml()).settings_for("x") == found


@pytest.mark.parametrize(
    "keys", [{"dynamic_data_quantization": True}, {"use_hgq": True, "hgq_beta": 1e-6}, {"data_quantizer": "calibrated"}]
)
def test_the_papers_data_bits_name_a_width_where_the_binary_point_moves(keys: dict[str, Any]) -> None:
    config = quantization(default_data_integer_bits=2, default_data_fractional_bits=5, **keys)
    found = config.settings_for("x")
    assert (found.data_format, found.data_bits) == (None, 8)
    (note,) = config.notes
    assert (note.severity, "gives the width 8" in note.what) == ("info", True)


def test_a_static_format_laid_over_a_preset_is_static() -> None:
    found = load_config("fixed8", overrides={f"quantization_parameters.{key}": value for key, value in STATIC.items()})
    assert found.settings_for("x").weight_format == FixedFormat(1, 0, 5)
    back = load_config(found, overrides={"quantization_parameters.default_weight_bits": 6})
    assert (back.settings_for("x").weight_format, back.settings_for("x").granularity) == (None, "per_channel")


def test_unsigned_data_for_all_is_worth_a_note() -> None:
    unsigned = {"default_data_keep_negatives": 0, "default_data_integer_bits": 0, "default_data_fractional_bits": 7}
    (note,) = quantization(**unsigned).notes
    assert (note.severity, "ufixed<7,0>" in note.what) == ("info", True)
    assert quantization(**{**unsigned, "default_data_keep_negatives": 1}).notes == ()
    assert quantization(**unsigned, enable_quantization=False).notes == ()


def test_learned_bits_that_cost_nothing_are_worth_a_note() -> None:
    (note,) = quantization(use_hgq=True).notes
    assert (note.severity, "hgq_beta is 0" in note.what) == ("info", True)
    assert load_config("hgq_budget").notes == ()


# ---- modes and switches
def test_wrapping_modes_that_hardware_can_not_match() -> None:
    assert refused(overflow_mode_data="WRAP_SM", overflow_mode_parameters="WRAP_SM") == dict.fromkeys(
        ("overflow_mode_data", "overflow_mode_parameters"), "PQ407"
    )
    assert quantization(overflow_mode_data="WRAP_SM", round_mode="TRN").settings_for("x").data_overflow == "WRAP_SM"
    for mode in ("SAT", "SAT_SYM", "SAT_ZERO", "WRAP"):
        assert quantization(overflow_mode_data=mode, overflow_mode_parameters=mode).settings_for("x").weight_overflow == mode


def test_switches_reach_every_place() -> None:
    usual, other = (
        quantization().settings_for("x"),
        quantization(quantize_input=False, quantize_output=True, use_real_tanh=False, use_relu_multiplier=True).settings_for("x"),
    )
    assert (usual.quantize_input, usual.quantize_output, usual.real_tanh, usual.relu_multiplier) == (True, False, True, False)
    assert (other.quantize_input, other.quantize_output, other.real_tanh, other.relu_multiplier) == (False, True, False, True)


def test_the_share_of_training_with_fixed_statistics() -> None:
    assert Config().training_parameters.batchnorm_freeze == 0.1
    assert load_config({"training_parameters": {"batchnorm_freeze": 0}}).training_parameters.batchnorm_freeze == 0
    for wrong in (-0.1, 1.5, "late"):
        assert codes({"training_parameters": {"batchnorm_freeze": wrong}}) == {"training_parameters.batchnorm_freeze": "PQ407"}


def test_every_way_to_calibrate() -> None:
    for method in ("minmax", "ema", "percentile", "mse", "kl"):
        assert load_config({"calibration": {"method": method}}).calibration.method == method
    assert codes({"calibration": {"method": "median"}}) == {"calibration.method": "PQ407"}
