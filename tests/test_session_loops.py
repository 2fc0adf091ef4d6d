"""Loops around a session: accumulated gradients are one step, bfloat16 autocast leaves decisions and extra losses in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import pquant_fx as pq
from tests.models import MLP, digits_like
from tests.resumable import differences

TRAINING = {"pretraining_epochs": 1, "epochs": 3, "fine_tuning_epochs": 1}
EPOCHS, STEPS = 5, 4
CONFIGS = {
    "hgq": {"preset": "hgq", "training_parameters": TRAINING, "quantization_parameters": {"hgq_beta": 1e-4}},
    "magnitude": {
        "preset": "fixed8",
        "training_parameters": TRAINING,
        "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5, "interval": 1},
    },
}


def trained(name: str, parts: int = 1, autocast: bool = False) -> tuple[pq.CompiledModel, list[dict[str, float]], list[torch.Tensor]]:
    """Plain gradient descent: the sum of the gradients is all that a step sees."""
    torch.manual_seed(0)
    x, y = digits_like(STEPS * 64)
    model = pq.compile(MLP(), CONFIGS[name], x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rows, extras = [], []
    with pq.session(model, EPOCHS, STEPS, optimizer) as s:
        for _ in range(EPOCHS):
            model.train()
            for a, b in zip(x.split(64), y.split(64)):
                optimizer.zero_grad()
                for n, (c, d) in enumerate(zip(a.chunk(parts), b.chunk(parts))):
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        loss = F.cross_entropy(model(c), d) / parts
                        if n == 0:
                            extra = s.loss()
                            extras.append(extra.detach())
                            loss = loss + extra
                    loss.backward()
                optimizer.step()
                s.step()
            rows.append(s.epoch_end())
    return model, rows, extras


@pytest.mark.parametrize("name", CONFIGS)
def test_accumulated_gradients_are_one_step(name):
    whole, rows, _ = trained(name)
    parts, rows_of_parts, _ = trained(name, parts=4)
    assert [row["sparsity"] for row in rows] == [row["sparsity"] for row in rows_of_parts]
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert differences(whole.state_dict(), trained(name)[0].state_dict()) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_autocast(name):
    model, rows, extras = trained(name, autocast=True)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())
    assert all(extra.dtype == torch.float32 and bool(extra.isfinite()) for extra in extras)
    assert any(float(extra) > 0 for extra in extras) == (name == "hgq")
    if name == "hgq":
        first = trained(name)[2]
        after = STEPS  # the first step of training: its weights saw bfloat16 in pre-training only
        assert float(extras[after]) == pytest.approx(float(first[after]), rel=0.05)
        assert rows[-1]["ebops"] == model.ebops().total == model.freeze().ebops().total
    else:
        assert rows[-1]["sparsity"] == pytest.approx(0.5, abs=0.01)
    x, y = digits_like(STEPS * 64)
    assert float((model.eval()(x).argmax(1) == y).double().mean()) > 0.5
