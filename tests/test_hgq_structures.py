"""The structures of the fixed-point tests with learned bits: a slice of them for each way to configure HGQ, frozen equal to evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import pquant_fx as pq
from pquant_fx.quantize import LearnedQuantizer
from tests.structures_fixed import FIXED, names

ALL = [*names("structures_fixed"), *names("structures_fixed_constants"), *names("structures_fixed_maps")]
CONFIGS: dict[str, Any] = {
    "per weight": "hgq",
    "per channel, WRAP": {"preset": "hgq", "quantization_parameters": {"overflow_mode_data": "WRAP", "granularity": "per_channel"}},
    "per element": {"preset": "hgq", "layers": {"*": {"data_granularity": "per_element"}}},
    "shared joins": {"preset": "hgq", "joins": {"policy": "shared"}},
    "requests and outputs": {"preset": "hgq", "layers": {"*": {"input_bits": 6, "quantize_output": True}}},
}
CASES = [(name, list(CONFIGS)[n % len(CONFIGS)]) for n, name in enumerate(ALL) if n % 4 == 0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's, about the user's model
@pytest.mark.parametrize(("name", "config"), CASES)
def test_frozen_equals_evaluated(name: str, config: str) -> None:
    torch.manual_seed(0)
    case = FIXED[name]
    x = case.inputs(8)
    inputs = x if isinstance(x, tuple) else tuple(x.values()) if isinstance(x, dict) else (x,)
    model = pq.compile(case.model(), CONFIGS[config], x)
    for module in model.modules():
        if isinstance(module, LearnedQuantizer):
            module.begin_learning()
    results = [t for t in tree_leaves(model.train()(*inputs)) if isinstance(t, Tensor)]
    loss = torch.stack([t.square().mean() for t in results]).sum() + 1e-5 * model.ebops_plan()()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss.backward()
    optimizer.step()
    model.calibrate([inputs])
    with torch.no_grad():
        expected = tree_leaves(model.eval()(*inputs))
    found = tree_leaves(model.freeze()(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
