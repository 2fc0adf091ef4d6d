"""Reading configurations: presets, files, text, overrides, round trips, and files that can not be read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pquant_fx as pq
from pquant_fx.config import Config, load_config, preset_names, preset_titles
from pquant_fx.config.yaml_text import from_text, to_text
from pquant_fx.configs import load, names
from pquant_fx.errors import ConfigError, PQuantWarning
from tests.models import MLP


def problem(source: Any, **options: Any) -> Any:
    with pytest.raises(ConfigError) as caught:
        load_config(source, **options)
    return caught.value.problems[0]


def test_shipped_presets() -> None:
    dense = ("fixed8", "fixed_per_tensor", "fixed_per_weight", "float", "hgq", "hgq_budget")
    pruned = ("activation_pruning", "autosparse", "cs", "dst", "mdmm", "pdp", "wanda")
    assert names() == preset_names() == tuple(preset_titles()) == tuple(sorted((*dense, *pruned, *TABLE_6)))
    assert all(20 < len(title) < 140 and not title.startswith("#") for title in preset_titles().values())
    assert not load("float").quantization_parameters.enable_quantization
    fixed = load("fixed8")
    assert (fixed.quantization_parameters.default_data_bits, fixed.quantization_parameters.default_weight_bits) == (8, 8)
    assert (fixed.training_parameters.epochs, fixed.training_parameters.pretraining_epochs) == (10, 0)
    assert not fixed.pruning_parameters.enable_pruning
    assert load_config("fixed8") == fixed


# name -> method, its settings, epochs of the stages, granularity: Table 6 of the PQuantML paper, without FITCompress
TABLE_6: dict[str, Any] = {
    "dst_openml_per_tensor": ("dst", {"alpha": 1e-4}, (0, 1500, 500), "per_tensor"),
    "dst_openml_per_weight": ("dst", {"alpha": 1.5e-4}, (0, 200, 100), "per_weight"),
    "pdp_openml_per_tensor": ("pdp", {"sparsity": 0.94}, (100, 2000, 200), "per_tensor"),
    "pdp_openml_per_channel": ("pdp", {"sparsity": 0.94}, (100, 500, 100), "per_channel"),
    "pdp_cernbox_per_tensor": ("pdp", {"sparsity": 0.93}, (100, 500, 500), "per_tensor"),
    "dst_cernbox_per_tensor": ("dst", {"alpha": 1e-4}, (0, 500, 300), "per_tensor"),
    "dst_cernbox_per_weight": ("dst", {"alpha": 1.5e-4}, (0, 200, 100), "per_weight"),
    "dst_plf_per_tensor": ("dst", {"alpha": 2.5e-5}, (0, 600, 500), "per_tensor"),
}


@pytest.mark.parametrize("name", TABLE_6)
def test_variants_are_what_the_paper_says_and_compile(name: str) -> None:
    method, settings, epochs, granularity = TABLE_6[name]
    config = load(name)
    training, quantization, pruning = config.training_parameters, config.quantization_parameters, config.pruning_parameters
    assert (training.pretraining_epochs, training.epochs, training.fine_tuning_epochs) == epochs
    assert (training.learning_rate, training.batch_size) == (1e-3, 1024)
    assert (quantization.granularity, quantization.weight_bits, quantization.data_bits) == (granularity, 8, 8)
    assert pruning.pruning_method == method
    assert {key: getattr(pruning, key) for key in settings} == settings
    assert config.pending == ()
    model = pq.compile(MLP(), name, torch.randn(32, 16))
    assert len([m for m in model.modules() if isinstance(m, pq.Mask)]) == 4


def test_every_kind_of_source(tmp_path: Path) -> None:
    data = {"preset": "fixed8", "training_parameters": {"epochs": 3}, "layers": {"conv1": {"weight_bits": 4}}}
    expected = load_config(data)
    text = to_text(data)
    (tmp_path / "c.yaml").write_text(text)
    (tmp_path / "c.yml").write_text(text)
    (tmp_path / "c.json").write_text(json.dumps(data))
    sources = [text, tmp_path / "c.yaml", str(tmp_path / "c.yml"), str(tmp_path / "c.json"), expected]
    assert all(load_config(source) == expected for source in sources)
    assert (expected.training_parameters.epochs, expected.training_parameters.batch_size) == (3, 128)
    assert data["preset"] == "fixed8"  # the caller's dict is left alone


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip_and_give_the_same_text(name: str) -> None:
    config = load_config(name)
    assert config.notes == config.pending == ()
    assert load_config(config).settings_for("x") == load_config(config.to_yaml()).settings_for("x")
    assert load_config(config.to_yaml()) == config
    assert config.to_yaml() == load_config(name).to_yaml()
    assert "\t" not in config.to_yaml()


def test_overrides_are_dotted_and_win() -> None:
    config = load_config(
        {"preset": "fixed8", "layers": {"layer1.*": {"weight_bits": 4, "data_bits": 6}}},
        overrides={
            "training_parameters.epochs": 3,
            "layers.layer1.*.weight_bits": 5,
            "layers.layer1.0.conv1.data_bits": 7,
            "joins.layers.layer1.*": "shared",
            "pruning_parameters.sparsity": 0.5,
            "inputs.x.shape": [16],
        },
    )
    assert config.training_parameters.epochs == 3
    assert list(config.layers) == ["layer1.*", "layer1.0.conv1"]
    found = config.settings_for("layer1.0.conv1", "weighted", "Conv2d", 1)
    assert (found.weight_bits, found.data_bits, found.prune) == (5, 7, True)
    assert config.join_policy("layer1.0") == "shared"
    assert config.input_shapes() == {"x": (16,)}


def test_an_override_replaces_what_it_excludes() -> None:
    static = load_config(
        "fixed8",
        overrides={"quantization_parameters.default_data_integer_bits": 2, "quantization_parameters.default_data_fractional_bits": 5},
    )
    assert static.quantization_parameters.default_data_bits is None
    back = load_config(static, overrides={"quantization_parameters.default_data_bits": 6})
    assert (back.quantization_parameters.default_data_bits, back.quantization_parameters.data_format) == (6, None)
    rule = load_config({"layers": {"fc": {"weight_bits": 4}}}, overrides={"layers.fc.weight_format": "fixed<5,1>"})
    assert rule.settings_for("fc").weight_bits == 5
    other = load_config(
        {"pruning_parameters": {"sparsity": 0.4, "scope": "global"}},
        overrides={"pruning_parameters.pruning_method": "dst", "pruning_parameters.enable_pruning": False},
    )
    assert other.pruning_parameters.pruning_method == "dst"
    assert load_config("fixed8", overrides={"quantization_parameters.use_hgq": False}) == load_config("fixed8")


def test_overriding_a_config_keeps_what_was_left_to_default() -> None:
    for source in ("fixed8", load_config("fixed8")):
        assert load_config(source, overrides={"pruning_parameters.sparsity": 0.5}).pruning_parameters.enable_pruning
    explicit = load_config({"pruning_parameters": {"enable_pruning": False}})
    assert not load_config(explicit, overrides={"pruning_parameters.sparsity": 0.5}).pruning_parameters.enable_pruning


def test_a_rule_laid_over_a_rule_comes_last() -> None:
    base = load_config({"layers": {"conv1": {"weight_bits": 3}, "*": {"weight_bits": 4}}})
    assert base.settings_for("conv1").weight_bits == 4
    assert load_config(base, overrides={"layers.conv1.weight_bits": 3}).settings_for("conv1").weight_bits == 3


def test_users_own_training_keys_are_kept_and_typos_warned_about() -> None:
    with pytest.warns(PQuantWarning, match="did you mean 'epochs'") as caught:
        config = load_config(
            {"training_parameters": {"epoch": 7, "optimizer": "adam", "milestones": [3, 5], "lr_decay": 1e-3, "none": None}}
        )
    assert len(caught) == 1
    assert config.training_parameters.model_extra == {"epoch": 7, "optimizer": "adam", "milestones": [3, 5], "lr_decay": 1e-3, "none": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PQuantWarning)
        assert load_config(config.to_yaml()) == config


def test_own_training_values_must_fit_into_a_file() -> None:
    found = problem({"training_parameters": {"schedule": object(), "nested": {"f": print}}})
    assert (found.code, found.what.partition(":")[0]) == ("PQ407", "training_parameters.schedule")


def test_numbers_without_a_dot_are_numbers() -> None:
    config = load_config("training_parameters:\n  learning_rate: 1e-3\n  own: 2E5\n  text: '1e-3'\n")
    assert config.training_parameters.learning_rate == 1e-3
    assert config.training_parameters.model_extra == {"own": 2e5, "text": "1e-3"}
    assert load_config(config.to_yaml()) == config


# ---- what can not be read
def test_unknown_presets_name_the_closest() -> None:
    found = problem("fixd8")
    assert (found.code, "did you mean 'fixed8'?" in found.remedy) == ("PQ405", True)
    assert problem({"preset": "flaot"}).code == "PQ405"
    assert problem({"preset": 8}).code == "PQ407"


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("training_parameters: {}\n")
    assert problem(tmp_path / "nett.yaml").code == "PQ407"
    assert "net.yaml" in problem(tmp_path / "nett.yaml").remedy
    assert problem(str(tmp_path / "nowhere" / "c.yaml")).code == "PQ407"
    (tmp_path / "folder.yaml").mkdir()
    assert problem(tmp_path / "folder.yaml").code == "PQ407"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert problem(tmp_path / "binary.yaml").code == "PQ407"
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert "list" in problem(tmp_path / "list.yaml").what
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == Config()
    assert problem(7).code == "PQ407"


def test_syntax_errors_and_findings_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training_parameters:\n  epochs: 3\n  rounds: [1\n")
    assert str(problem(path).place.line).startswith(f"{path}:")
    path.write_text(
        "# comment\ntraining_parameters:\n  epochs: x\nquantization_parameters:\n  defualt_data_bits: 3\n"
        "layers:\n  conv1: {weight_bits: 99}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert {(p.code, p.place.line) for p in caught.value.problems} == {
        ("PQ406", f"{path}:5"),
        ("PQ407", f"{path}:3"),
        ("PQ407", f"{path}:7"),
    }
    path.write_text("training_parameters:\n  epochs: 3\n  epochs: 4\n")
    assert (problem(path).code, problem(path).place.line) == ("PQ407", f"{path}:3")
    (tmp_path / "c.json").write_text('{"training_parameters": {\n "epochs": }}')
    assert problem(tmp_path / "c.json").place.line == f"{tmp_path / 'c.json'}:2"


# ---- properties
awkward = st.sampled_from(
    ["1e5", "-.5E-3", "1.", "1_0", "0x1f", "0o7", "~", "null", "on", "2024-01-01", "12:30", "=", "<<", "a: b", "# c", ".inf", "+1e9"]
)


def plain_data(infinity: bool) -> st.SearchStrategy[Any]:
    """Whatever YAML can write; infinity is no value of a parameter."""
    numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=infinity)
    return st.recursive(
        awkward | st.none() | st.booleans() | numbers | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward | st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )


@given(plain_data(infinity=True))
def test_yaml_text_round_trips_any_plain_data(data: Any) -> None:
    assert from_text(to_text(data), "text")[0] == data


bits = st.integers(1, 32)
rule = st.fixed_dictionaries(
    {},
    optional={
        "weight_bits": bits,
        "data_format": st.sampled_from(["fixed<8,3>", "ap_ufixed<4,-1,TRN,WRAP>", "fixed< 6 , 2 , RND_CONV >"]),
        "weight_rounding": st.sampled_from(["TRN", "RND", "RN_ZERO"]),
        "granularity": st.sampled_from(["per_tensor", "per_channel", "per_weight"]),
        "input_format": st.sampled_from(["fixed<8,3>", "ufixed<4,0>"]),
        "weight_quantizer": st.sampled_from(["dynamic", "tqt", "lsq", "hgq"]),
        "n_parallel": st.integers(1, 9),
        "quantize": st.booleans(),
        "sparsity": st.floats(0, 0.99),
    },
)
beta = st.one_of(
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(1, 9), st.floats(1e-9, 1), st.sampled_from(["linear", "log", "constant"])), max_size=3).map(
        lambda points: [[0, 1e-7, "log"], *([sum(p[0] for p in points[: n + 1]), *point[1:]] for n, point in enumerate(points))]
    ),
    st.fixed_dictionaries({"target_ebops": st.floats(1, 1e6)}, optional={"damp": st.floats(0, 0.5), "warmup_epochs": st.integers(0, 9)}),
)
configs = st.fixed_dictionaries(
    {},
    optional={
        "preset": st.sampled_from(preset_names()),
        "training_parameters": st.fixed_dictionaries({"epochs": st.integers(0, 500)}, optional={"my own": plain_data(infinity=False)}),
        "quantization_parameters": st.one_of(
            st.fixed_dictionaries({"default_data_bits": bits, "round_mode": st.sampled_from(["TRN", "RND_CONV"])}),
            st.fixed_dictionaries({"default_weight_integer_bits": st.integers(-3, 3), "default_weight_fractional_bits": st.integers(4, 8)}),
            st.fixed_dictionaries({"hgq_beta": beta, "use_hgq": st.just(True), "ebops_sign": st.sampled_from(["hgq2", "always"])}),
        ),
        "pruning_parameters": st.fixed_dictionaries(
            {"pruning_method": st.just("magnitude"), "sparsity": st.floats(0, 0.99), "scope": st.sampled_from(["layer", "global"])}
        ),
        "layers": st.dictionaries(st.text(min_size=1, max_size=10), rule, max_size=3),
        "inputs": st.dictionaries(
            st.text(max_size=5), st.fixed_dictionaries({"shape": st.lists(st.integers(1, 64), max_size=3)}), max_size=2
        ),
        "calibration": st.fixed_dictionaries({"method": st.sampled_from(["minmax", "ema", "percentile", "mse", "kl"])}),
    },
)


@settings(max_examples=60)
@given(configs)
def test_any_valid_config_round_trips(data: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PQuantWarning)
        config = load_config(data)
        again = load_config(config.to_yaml())
        assert again == config
        assert again.settings_for("x", "weighted") == config.settings_for("x", "weighted")
        assert again.to_yaml() == config.to_yaml()
        assert load_config(config, overrides={"training_parameters.epochs": 1}).training_parameters.epochs == 1
