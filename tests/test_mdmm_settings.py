"""Every setting of MDMM changes what it says, contradictions are refused, and the preset's variants load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pquant_fx as pq
from pquant_fx.config import MDMMPruning, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.prune import MDMMMask, Member
from pquant_fx.prune.multipliers import ascended, ascent
from tests.mdmm_masks import AT_ONCE, begun, penalty


def test_use_grad_lets_the_optimizer_move_the_multiplier() -> None:
    w = torch.tensor([1.0, 1.0, 1.0, 5.0], requires_grad=True)
    for constraint in ("Equality", "LessThanOrEqual"):
        plain = begun(w, 0.5, constraint_type=constraint, **AT_ONCE)
        mask = begun(w, 0.5, constraint_type=constraint, use_grad=True, **AT_ONCE)
        assert isinstance(mask.multiplier, nn.Parameter)
        optimizer = torch.optim.SGD([mask.multiplier], lr=1e-3)
        for step in range(1, 4):
            optimizer.zero_grad()
            penalty(mask, w).backward()
            optimizer.step()
            for m in (mask, plain):
                MDMMMask.step([Member(m, w)], step, 10)
            assert mask.multiplier.tolist() == pytest.approx(plain.multiplier.tolist(), rel=1e-5)
        assert plain.multiplier.item() == pytest.approx(3 * 1e-2 * 2 / 8)
        optimizer = torch.optim.Adam([mask.multiplier], lr=0.5)
        penalty(mask, w).backward()
        optimizer.step()
        assert mask.multiplier.item() > 0.4  # Adam's own step, not constraint_lr's


def test_ascent_is_the_identity_with_its_gradient_turned_and_at_rest_zero() -> None:
    value = torch.tensor([2.0, 3.0], requires_grad=True)
    out = ascent(value, torch.tensor([False, True]))
    assert torch.equal(out, value)
    (out * torch.tensor([5.0, 7.0])).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [-5.0, 0.0]


def test_epsilon_is_the_violation_that_is_not_followed() -> None:
    assert ascended(torch.tensor([1.0, 1.0]), torch.tensor([0.1, 0.2]), 1.0, False, 0.15).tolist() == pytest.approx([1.0, 1.2])
    w = torch.tensor([1.0, 1.0, 1.0, 5.0])
    for epsilon, moved in ((0.3, 0.0), (0.2, 1e-2 * 2 / 8)):
        mask = begun(w, 0.5, **{**AT_ONCE, "epsilon": epsilon})
        MDMMMask.step([Member(mask, w)], 1, 10)
        assert mask.multiplier.item() == pytest.approx(moved)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 10 * 0.25**2 / 2),
        ({"scale": 2.0}, 2 * 0.25**2 / 2),
        ({"damping": 3.0}, 10 * 3 * 0.25**2 / 2),
        ({"target_value": 0.1}, 10 * 0.15**2 / 2),
        ({"target_sparsity": 0.25}, 10 * 0.125**2 / 2),
        ({"scale_mode": "sum"}, 10 * (4 * 0.25) ** 2 / 2),
        ({"constraint_type": "LessThanOrEqual", "target_value": 0.3}, 0.0),
        ({"constraint_type": "GreaterThanOrEqual", "target_value": 0.3}, 10 * 0.05**2 / 2),
        ({"constraint_type": "LessThanOrEqual", "slack": True, "target_value": 0.3}, 0.0),
        ({"metric_type": "StructuredSparsity"}, 10 * (2**0.5 / (2**0.5 + 26**0.5)) ** 2 / 2),
        ({"metric_type": "NMSparsity", "nm": "1:2"}, 10 * (2 / 8) ** 2 / 2),
    ],
)
def test_each_setting_changes_the_term(changed: dict[str, Any], expected: float) -> None:
    w = torch.tensor([[1.0, 1.0], [1.0, 5.0]])
    mask = begun(w, **{**AT_ONCE, "target_sparsity": 0.5, **changed})
    assert penalty(mask, w).item() == pytest.approx(expected, abs=1e-6)


def test_constraint_lr_and_slack() -> None:
    w = torch.tensor([1.0, 1.0, 1.0, 5.0])
    mask = begun(w, 0.5, constraint_lr=0.5, **AT_ONCE)
    MDMMMask.step([Member(mask, w)], 1, 10)
    assert mask.multiplier.item() == pytest.approx(0.5 * 10 * 0.25)
    slack = begun(w, 0.5, constraint_type="LessThanOrEqual", target_value=0.3, slack=True, **AT_ONCE)
    assert slack.slack is not None
    assert slack.slack.item() == pytest.approx(0.05**0.5)
    assert slack.violation.item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"constraint_type": "Bounds"}, "upper_value"),
        ({"upper_value": 0.5}, "upper_value"),
        ({"constraint_type": "Bounds", "target_value": 0.5, "upper_value": 0.2}, "upper_value"),
        ({"slack": True}, "slack"),
        ({"target_value": 1.5}, "target_value"),
        ({"constraint_type": "GreaterThanOrEqual"}, "constraint_type"),
        ({"scale": 0.0}, "scale"),
        ({"constraint_lr": 0.0, "damping": 0.0}, "constraint_lr"),
        ({"metric_type": "NMSparsity", "measure": "count"}, "measure"),
        ({"metric_type": "NMSparsity", "l0_mode": "smooth"}, "l0_mode"),
        ({"measure": "tail", "l0_mode": "smooth"}, "l0_mode"),
        ({"l0_mode": "smooth", "epsilon": 0.0}, "epsilon"),
        ({"metric_type": "StructuredSparsity", "scope": "global"}, "scope"),
        ({"metric_type": "FPGAAwareSparsity", "precision": 8}, "precision"),
        ({"metric_type": "FPGAAwareSparsity", "target_resource": "BRAM"}, "rf"),
        ({"metric_type": "FPGAAwareSparsity", "target_resource": "BRAM", "rf": 2, "bram_width": 9}, "bram_width"),
        ({"threshold_decay": 0.1}, "threshold_decay"),
        ({"target_sparsity": 1.0}, "target_sparsity"),
        ({"nm": "5:4"}, "nm"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "mdmm", **options}})
    assert caught.value.code == "PQ407"
    assert f"pruning_parameters.{key}" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(("sparsity", "options"), [(1.0, {}), (0.5, {"metric_type": "NMSparsity"})])
def test_goals_that_can_not_be(sparsity: float, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        MDMMMask(torch.randn(4, 4), MDMMPruning(**options), None, sparsity)
    assert caught.value.code == "PQ407"


# ---- files
def variants() -> list[str]:
    text = (Path(__file__).parent.parent / "configs" / "mdmm.yaml").read_text()
    return re.findall(r"^#     (\{.*\})$", text, re.MULTILINE)


@pytest.mark.parametrize("variant", variants())
def test_the_variants_of_the_preset_load(variant: str) -> None:
    asked = yaml.safe_load(variant)
    config = load_config({"preset": "mdmm", "pruning_parameters": asked})
    assert config.pending == config.notes == ()
    found = config.pruning_parameters.model_dump()
    assert {key: found[key] for key in asked} == {key: tuple(v) if isinstance(v, list) else v for key, v in asked.items()}


def test_there_is_a_variant_of_each_kind() -> None:
    assert {yaml.safe_load(v)["metric_type"] for v in variants()} == set(MDMMPruning.model_fields["metric_type"].annotation.__args__)


def test_a_plain_configuration_of_pquant_ml_gets_the_tail_and_smooth_counting_the_count() -> None:
    assert not MDMMPruning().counts
    assert MDMMPruning(l0_mode="smooth").counts
    assert MDMMPruning(measure="count").counts


# ---- layers
def test_a_layer_may_have_its_own_goal_or_metric() -> None:
    own = {"pruning_method": "mdmm", "metric_type": "NMSparsity", "nm": "1:4"}
    rules = {"0": {"sparsity": 0.5}, "2": {"pruning": own}, "4": {"prune": False}}
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    x = torch.randn(4, 8)
    model = pq.compile(net, {"preset": "mdmm", "layers": rules}, x)
    masks = [m for m in model.modules() if isinstance(m, MDMMMask)]
    assert [m.goal for m in masks] == [0.5, 0.75, 0.9]
    with pytest.raises(ConfigError) as caught:
        pq.compile(net, {"preset": "mdmm", "layers": {"2": {"pruning": own, "sparsity": 0.5}}}, x)
    assert caught.value.code == "PQ407"
    assert caught.value.problems[0].place is not None
