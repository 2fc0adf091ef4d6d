"""PDP in whole networks: what settings may be, targets that are reached, frozen networks equal to what evaluation saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.config import load_config
from pquant_fx.errors import ConfigError
from tests.models import ConvBN, digits_like


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"sparsity": 1.0}, "sparsity"),
        ({"temperature": 0}, "temperature"),
        ({"epsilon": 0}, "epsilon"),
        ({"nm": "4:2"}, "nm"),
        ({"nm": "2:4", "structured_pruning": True}, "nm"),
    ],
)
def test_settings_that_can_not_be(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "pdp", **section}})
    assert [(p.code, p.what.partition(":")[0]) for p in caught.value.problems] == [("PQ407", f"pruning_parameters.{key}")]


def test_a_decay_of_thresholds_is_refused_by_compile() -> None:
    config = load_config({"pruning_parameters": {"pruning_method": "pdp", "threshold_decay": 1e-9}})
    assert [(p.code, p.what.partition(":")[0]) for p in config.pending] == [("PQ407", "pruning_parameters.threshold_decay")]
    rule = {"pruning": {"pruning_method": "pdp", "threshold_decay": 1e-9}}
    with pytest.raises(ConfigError, match="threshold_decay") as caught:
        pq.compile(nn.Sequential(nn.Linear(4, 4)), {"pruning_parameters": {"sparsity": 0.5}, "layers": {"0": rule}}, torch.randn(4, 4))
    assert (caught.value.code, caught.value.problems[0].place.module) == ("PQ407", "0")


def test_a_goal_beside_a_pattern() -> None:
    config = {"preset": "fixed8", "pruning_parameters": {"pruning_method": "pdp", "nm": "2:4"}, "layers": {"0": {"sparsity": 0.5}}}
    with pytest.raises(ConfigError, match="2:4") as caught:
        pq.compile(nn.Sequential(nn.Linear(4, 4)), config, torch.randn(4, 4))
    assert (caught.value.code, caught.value.problems[0].place.module) == ("PQ407", "0")


@pytest.mark.parametrize("section", [{}, {"structured_pruning": True}, {"nm": "1:2"}])
def test_a_network_ends_at_its_target_and_freezes_to_what_it_was(section: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x, y = digits_like(128, 64)
    x = x.reshape(-1, 1, 8, 8)
    training = {"pretraining_epochs": 1, "epochs": 3, "fine_tuning_epochs": 0, "batch_size": 32}
    pruning = {"pruning_method": "pdp", "sparsity": 0.5, "scope": "layer", **section}
    config = {"preset": "fixed8", "training_parameters": training, "pruning_parameters": pruning}
    model = pq.compile(ConvBN(), config, x)
    skipped = [note.place.module for note in model.notes if note.code == "PQ608"]
    assert skipped == (["head"] if "structured_pruning" in section else [])  # its outputs are those of the network
    rows = list(model.fit((x, y)))
    assert rows[0].sparsity == 0.0
    assert rows[-1].sparsity == pytest.approx(320 / 676 if "nm" in section else 0.5, abs=0.002)  # one input channel is no pair
    assert torch.equal(model.freeze()(x), model.eval()(x))
