"""Whole models, trained for a few steps: torch, integer, onnxruntime, qonnx and the C simulation of hls4ml give the same bits."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

import pquant_fx as pq
from tests.whole_models import WHOLE

pytestmark = pytest.mark.hls

STREAMED = ("jet MLP", "DeepSet", "MobileNet block", "squeeze-excite block")


def trained(name: str) -> tuple[pq.CompiledModel, torch.Tensor]:
    torch.manual_seed(sum(map(ord, name)))
    build, shape = WHOLE[name]
    x = torch.randn(128, *shape)
    model = pq.compile(build(), "fixed8", x).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        loss = sum(v.square().mean() for v in tree_leaves(model(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    saturating, tied = x[:20] * 50, torch.round(x[:20] * 8) / 16
    return model.eval(), torch.cat([x[:60], saturating, tied, torch.zeros(1, *shape)])


@pytest.mark.parametrize("name", WHOLE)
def test_every_engine_gives_the_bits_of_torch(name: str) -> None:
    model, x = trained(name)
    report = model.freeze().verify(x, ("integer", "onnx", "qonnx", "hls4ml"))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", STREAMED)
def test_as_streams(name: str) -> None:
    model, x = trained(name)
    report = model.freeze().verify(x, ("hls4ml",), io_type="io_stream")
    assert report.ok, str(report)
