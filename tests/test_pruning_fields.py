"""Every field of PQuantML's configuration page about pruning and its training: another value gives another network, or is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.config import METHODS, TrainingParameters
from pquant_fx.errors import ConfigError
from pquant_fx.train.pruning import masks_of

Section = dict[str, Any]
# what a method needs to prune something in the 12 steps of this file
BASE: dict[str, Section] = {
    "magnitude": {"sparsity": 0.5, "interval": 1},
    "cs": {"threshold_init": 0.001, "threshold_decay": 1e-3},
    "dst": {"threshold_init": 0.1, "alpha": 1e-2},
    "pdp": {"sparsity": 0.5, "temperature": 1e-2},
    "wanda": {"sparsity": 0.5, "t_start_collecting_batch": 0, "t_delta": 1},
    "autosparse": {"threshold_init": -2.0},
    "activation_pruning": {"threshold": 0.45, "t_start_collecting_batch": 0, "t_delta": 1},
    "mdmm": {"target_sparsity": 0.5, "interval": 1},
}
_GROUPS = {"metric_type": "StructuredSparsity"}
# method -> field -> (another value, what both networks have besides)
FIELDS: dict[str, dict[str, tuple[Any, Section]]] = {
    "cs": {"final_temp": (2.0, {}), "threshold_init": (-0.1, {}), "threshold_decay": (0.1, {})},
    "dst": {
        "alpha": (0.5, {}),
        "max_pruning_pct": (0.2, {}),
        "threshold_init": (0.2, {}),
        "threshold_type": ("layerwise", {}),
        "threshold_decay": (0.5, {}),
    },
    "pdp": {
        "epsilon": (1.0, {}),
        "sparsity": (0.8, {}),
        "temperature": (1e-5, {}),
        "structured_pruning": (True, {}),
    },
    "wanda": {
        "M": (4, {"N": 1}),
        "N": (2, {"M": 4}),
        "sparsity": (0.8, {}),
        "t_delta": (3, {}),
        "t_start_collecting_batch": (4, {}),
        "calculate_pruning_budget": (False, {}),
    },
    "autosparse": {
        "alpha": (0.1, {}),
        "alpha_reset_epoch": (1, {}),
        "autotune_epochs": (0, {"autotune_factor": 0.1, "threshold_init": -1.5}),
        "backward_sparsity": (True, {}),
        "threshold_init": (-3.0, {}),
        "threshold_type": ("weightwise", {}),
        "threshold_decay": (0.5, {}),
    },
    "activation_pruning": {
        "threshold": (0.1, {}),
        "t_delta": (3, {"max_removed": 1.0, "threshold": 0.5}),
        "t_start_collecting_batch": (9, {}),
    },
    "mdmm": {
        "constraint_type": ("LessThanOrEqual", {"target_value": 0.3}),
        "target_value": (0.3, {}),
        "metric_type": ("StructuredSparsity", {}),
        "target_sparsity": (0.8, {}),
        "rf": (4, _GROUPS),
        "epsilon": (0.5, {"constraint_lr": 1.0}),
        "scale": (100.0, {}),
        "damping": (5.0, {}),
        "use_grad": (True, {}),
        "l0_mode": ("smooth", {"measure": "count"}),
        "scale_mode": ("sum", {}),
    },
}
FIRST: dict[tuple[str, str], Any] = {("wanda", "N"): 1, ("wanda", "M"): 2}
"""Where the first of the two values has to be given."""
UNSTEADY: dict[tuple[str, str], Section] = {("autosparse", "autotune_epochs"): {"learning_rate": 0.3, "epochs": 10}}
"""Where the loss has to rise between epochs."""
SHARED: dict[str, Any] = {"disable_pruning_for_layers": ("2",), "enable_pruning": False}
TRAINING: dict[str, tuple[Any, Section]] = {
    "epochs": (1, {}),
    "fine_tuning_epochs": (2, {}),
    "pretraining_epochs": (2, {}),
    "rewind": ("every-round", {"rounds": 2, "save_weights_epoch": 0}),
    "rounds": (2, {}),
    "save_weights_epoch": (0, {"rewind": "post-training-stage"}),
    "pruning_first": (False, {}),
}


@cache
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def trained(pruning: Section, training: Section | None = None) -> dict[str, Tensor]:
    """Weights and masks after three epochs of four large steps."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    stages = {"pretraining_epochs": 0, "epochs": 3, "batch_size": 16, "learning_rate": 5e-2, **(training or {})}
    quantization = {"default_weight_bits": 3}
    config = {"preset": "fixed8", "training_parameters": stages, "pruning_parameters": pruning, "quantization_parameters": quantization}
    model = pq.compile(net, config, data()[0])
    model.fit(data())
    found = {path: model.get_parameter(path).detach().clone() for _, path in masks_of(model.graph_module)}
    return found | {f"{path} kept": mask.mask.clone() for mask, path in masks_of(model.graph_module)}


def differs(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() != two.keys() or any(not torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.filterwarnings("ignore:layer .* is dead")
@pytest.mark.filterwarnings("ignore:activation pruning has its first statistics")
@pytest.mark.parametrize(("method", "field"), [(m, f) for m, fields in FIELDS.items() for f in fields])
def test_a_field_of_a_method_changes_the_network(method: str, field: str) -> None:
    other, besides = FIELDS[method][field]
    base = {"pruning_method": method, **BASE[method], **besides}
    if (method, field) in FIRST:
        base[field] = FIRST[method, field]
    training = UNSTEADY.get((method, field))
    one = trained(base, training)
    assert not differs(one, trained(base, training))  # the same twice: what differs below differs by the field
    assert differs(one, trained({**base, field: other}, training))


@pytest.mark.parametrize("field", SHARED)
@pytest.mark.parametrize("method", BASE)
def test_a_field_of_all_methods_does_so_for_each(method: str, field: str) -> None:
    base = {"pruning_method": method, **BASE[method]}
    one, two = trained(base), trained({**base, field: SHARED[field]})
    left = [name for name in one if name.endswith("kept") and name not in two]
    assert left == (["2.weight kept"] if field == "disable_pruning_for_layers" else [name for name in one if name.endswith("kept")])


@pytest.mark.parametrize("field", TRAINING)
def test_a_field_of_the_training_does_too(field: str) -> None:
    other, besides = TRAINING[field]
    if field == "save_weights_epoch":
        besides = {**besides, field: 2}
    pruning = {"pruning_method": "magnitude", **BASE["magnitude"]}
    assert differs(trained(pruning, besides), trained(pruning, {**besides, field: other}))


@pytest.mark.parametrize("method", ["magnitude", "pdp", "wanda", "activation_pruning", "mdmm"])
def test_decay_of_thresholds_is_refused_where_there_are_none(method: str) -> None:
    with pytest.raises(ConfigError, match="threshold_decay") as caught:
        trained({"pruning_method": method, **BASE[method], "threshold_decay": 1e-3})
    assert caught.value.code == "PQ407"
    assert caught.value.remedy


def test_no_field_of_the_page_is_forgotten() -> None:
    page = {
        "cs": "final_temp threshold_init",
        "dst": "alpha max_pruning_pct threshold_init threshold_type",
        "pdp": "epsilon sparsity temperature structured_pruning",
        "wanda": "M N sparsity t_delta t_start_collecting_batch calculate_pruning_budget",
        "autosparse": "alpha alpha_reset_epoch autotune_epochs backward_sparsity threshold_init threshold_type",
        "activation_pruning": "threshold t_delta t_start_collecting_batch",
        "mdmm": "constraint_type target_value metric_type target_sparsity rf epsilon scale damping use_grad l0_mode scale_mode",
    }
    for method, fields in page.items():
        assert set(fields.split()) <= set(FIELDS[method]) <= set(METHODS[method].model_fields)
    assert {"disable_pruning_for_layers", "enable_pruning"} == set(SHARED)
    assert {"epochs", "fine_tuning_epochs", "pretraining_epochs", "rewind", "rounds", "save_weights_epoch"} < set(TRAINING)
    assert set(TRAINING) <= set(TrainingParameters.model_fields)
