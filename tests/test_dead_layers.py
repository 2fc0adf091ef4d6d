"""A layer of which a method removed everything is named when its mask is fixed, with the way out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.errors import PQuantWarning

X, Y = torch.ones(32, 6), torch.zeros(32, dtype=torch.int64)


def trained(rule: dict[str, Any], **training: Any) -> pq.CompiledModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 0, "epochs": 1, "fine_tuning_epochs": 0, "batch_size": 16, **training},
        "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5},
        "layers": {"0": {"pruning": rule}},
    }
    model = pq.compile(net, config, X)
    model.fit((X, Y))
    return model


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        ({"pruning_method": "autosparse", "threshold_init": 4.0}, "a lower threshold_init"),
        ({"pruning_method": "cs", "threshold_init": -1.0}, "a higher threshold_init or a lower threshold_decay"),
    ],
)
@pytest.mark.parametrize("fine_tuning", [0, 1])
def test_a_dead_layer_is_named_with_its_sparsity_and_a_remedy(rule: dict[str, Any], remedy: str, fine_tuning: int) -> None:
    with pytest.warns(PQuantWarning) as caught:
        trained(rule, fine_tuning_epochs=fine_tuning)
    (text,) = [str(w.message) for w in caught]
    assert f"layer '0' is dead: '{rule['pruning_method']}' removed all 48 weights of '0.weight' (sparsity 1)" in text
    assert remedy in text
    assert "`prune: false`" in text


def test_layers_that_live_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained({"pruning_method": "autosparse", "threshold_init": -4.0})
        trained({"pruning_method": "dst", "threshold_init": 9.0})  # it gives all-but-gone layers their thresholds back
