"""Each metric of MDMM reaches its pattern from a dense start on real digits: at most 1 % of the magnitude is left outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.demo_network import load_digits
from pquant_fx.prune import MDMMMask

FPGA = {"metric_type": "FPGAAwareSparsity", "rf": 2, "precision": 18, "target_sparsity": 0.6, "disable_pruning_for_layers": ["0"]}
QUICK = {"pruning_method": "mdmm", "constraint_lr": 0.04}  # 300 steps, not 10,000
CASES: dict[str, dict[str, Any]] = {
    "structured": {"metric_type": "StructuredSparsity", "target_sparsity": 0.5, "disable_pruning_for_layers": ["6"]},
    "2:4": {"metric_type": "NMSparsity", "nm": "2:4", "disable_pruning_for_layers": ["0"]},
    "paca": {"metric_type": "PACAPatternSparsity", "target_sparsity": 0.55, "disable_pruning_for_layers": ["Linear"]},
    "dsp": {**FPGA, "target_resource": "DSP"},
    "dsp+bram": {**FPGA, "target_resource": "DSP+BRAM", "scope": "global"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_pattern_is_reached_before_the_mask_is_fixed(name: str) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    )
    training = {"pretraining_epochs": 0, "epochs": 18, "fine_tuning_epochs": 6, "batch_size": 64, "learning_rate": 5e-3}
    settings = {"preset": "float", "training_parameters": training, "pruning_parameters": {**QUICK, **CASES[name]}}
    x, y = digits.x, digits.y
    model = pq.compile(net, settings, x[:64])
    model.fit((x, y))
    masks = [m for m in model.modules() if isinstance(m, MDMMMask)]
    assert masks
    assert max(float(m.violation) for m in masks) <= 1e-2
    assert all(m.is_fixed and float(m.mask.mean()) < 0.75 for m in masks)
    model.eval()
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).float().mean())
    assert accuracy > 0.85
