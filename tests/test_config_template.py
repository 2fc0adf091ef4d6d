"""The template: a YAML that names every layer, loads, and changes nothing until it is edited."""

from __future__ import annotations

import pytest

from pquant_fx.config import load_config, preset_names
from pquant_fx.config.template import LayerRow, template_text

ROWS = [
    LayerRow("conv1", "Conv2d", 1, "weighted", (2, 8, 8, 8)),
    LayerRow("act", "ReLU", 1, "activation", (2, 8, 8, 8)),
    LayerRow("act", "ReLU", 2, "activation", (2, 8, 4, 4)),
    LayerRow("layer1.0", "relu", 1, "activation", (2, 8, 4, 4)),
    LayerRow("layer1.0", "relu", 1, "activation", (2, 8, 4, 4)),
    LayerRow("layer1.0", "add", 1, "arithmetic", (2, 8, 4, 4)),
    LayerRow("layer1", "relu", 1, "activation", (2, 8, 4, 4)),
    LayerRow("layer1", "relu", 2, "activation", (2, 8, 4, 4)),
    LayerRow("head.fc", "Linear", 1, "weighted", None),
    LayerRow("add", "add", 1, "arithmetic", (2, 10)),
]


@pytest.mark.parametrize("preset", preset_names())
def test_a_template_loads_and_resolves_like_its_preset(preset: str) -> None:
    base = load_config(preset)
    config = load_config(template_text(ROWS, {"x": (1, 8, 8)}, preset))
    for row in ROWS:
        place = (row.path, row.kind, row.type_name, row.site)
        assert config.settings_for(*place) == base.settings_for(*place)
    assert config.input_shapes() == {"x": (1, 8, 8)}
    assert config.unmatched_rules([(row.path, row.type_name, row.site) for row in ROWS]) == ()
    rest = {"inputs", "layers"}
    assert {k: v for k, v in config.to_dict().items() if k not in rest} == {k: v for k, v in base.to_dict().items() if k not in rest}
    assert load_config(config.to_yaml()) == config


def test_each_place_has_a_rule_of_its_own() -> None:
    config = load_config(template_text(ROWS, {}, "fixed8"))
    places = [(row.path, row.type_name, row.site) for row in dict.fromkeys(ROWS)]
    assert len(config.layers) == len(places)
    for pattern in config.layers:
        edited = load_config(config, overrides={f"layers.{pattern}.data_bits": 3})
        assert sum(edited.settings_for(path, "", type_name, site).data_bits == 3 for path, type_name, site in places) == 1


def test_turning_pruning_on_prunes_a_templates_layers() -> None:
    text = template_text(ROWS, {}, "fixed8")
    config = load_config(text, overrides={"pruning_parameters.sparsity": 0.5})
    assert config.settings_for("conv1", "weighted", "Conv2d", 1).prune


def test_an_empty_network_has_an_empty_template() -> None:
    assert load_config(template_text([], {}, "fixed8")) == load_config("fixed8")
