"""Zeros that count: which of them save a multiplier, against a plain loop over the multipliers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.errors import ConfigError


def frozen(weights: dict[str, Tensor] | None = None) -> pq.FrozenModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6))
    with torch.no_grad():
        for name, value in (weights or {}).items():
            net.get_parameter(name).copy_(value)
    x = torch.randn(8, 2, 4, 4)
    return pq.compile(net, "fixed8", x).freeze()


def sparse(*shape: int, share: float = 0.6) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(*shape) + 0.5) * (torch.rand(*shape) > share)


def test_every_zero_saves_a_multiplier_when_weights_are_constants() -> None:
    w = sparse(4, 2, 3, 3)
    found = frozen({"0.weight": w}).zeros()
    conv, linear = found.rows
    assert (conv.layer, conv.weights, conv.zeros, conv.saved) == ("0", 72, int((w == 0).sum()), int((w == 0).sum()))
    assert conv.multipliers == 72
    assert linear.saved == linear.zeros
    assert found.warnings == ()


def test_weights_in_memory_save_nothing_and_that_is_said() -> None:
    found = frozen({"0.weight": sparse(4, 2, 3, 3)}).zeros("resource", 8)
    assert [row.saved for row in found.rows] == [0, 0]
    assert [row.multipliers for row in found.rows] == [9, 12]
    assert found.warnings[0].startswith("0: ")
    assert "save nothing" in found.warnings[0]
    assert "memory" in str(found)


@pytest.mark.parametrize("factor", [1, 2, 6, 24])
def test_a_shared_multiplier_goes_when_all_it_serves_are_zero(factor: int) -> None:
    w = sparse(4, 2, 3, 3, share=0.85)
    w[2, :, :2] = 0
    w[2, 0, 2, 2] = 1
    row = frozen({"0.weight": w}).zeros("resource_unrolled", {"0": factor}).rows[0]
    flat = [float(w[o, c, y, x]) for o in range(4) for y in range(3) for x in range(3) for c in range(2)]
    served = [flat[n : n + factor] for n in range(0, len(flat), factor)]
    assert (row.multipliers, row.saved) == (len(served), sum(not any(group) for group in served))
    assert row.saved > 0 or factor == 24


def test_scattered_zeros_that_save_nothing_are_named() -> None:
    w = torch.ones(6, 16)
    w[:, ::2] = 0
    found = frozen({"3.weight": w}).zeros("resource_unrolled", {"3": 4})
    assert found.rows[1].saved == 0
    assert found.warnings == ("3: 48 zeros save nothing: no 4 weights that share a multiplier are all zero",)


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("fast",), "PQ405", "strategy 'fast'"),
        (("resource", 5), "PQ407", "reuse factor of 5"),
        (("resource", {"9": 2}), "PQ405", "layer '9'"),
    ],
)
def test_what_is_not_there(arguments: tuple[object, ...], code: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        frozen().zeros(*arguments)
    assert caught.value.code == code


def test_golden_table() -> None:
    w = torch.zeros(6, 16)
    w[0] = 1  # what no output reads would be removed with its channel
    lines = str(frozen({"3.weight": w, "0.weight": torch.ones(4, 2, 3, 3)}).zeros()).splitlines()
    assert "Zeros, strategy latency" in lines[0]
    assert [line.split("│")[1:8] for line in lines if line.startswith("│ 3")] == [
        [" 3     ", "      96 ", "    80 ", " 83.3% ", "     1 ", "          96 ", "    80 "]
    ]
    assert "80 of 168 multipliers saved" in lines[-1]
