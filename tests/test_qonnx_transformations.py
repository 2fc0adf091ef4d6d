"""qonnx's own clean-up and its conversion to channels-last, with which hardware flows begin, change no bit of our files."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.lower.onnx.qonnx import to_qonnx
from pquant_fx.lower.onnx.run import run_qonnx
from tests.models import MLP, Bottleneck, Concat, ConvBN, Depthwise, ResidualDigits


class Convolutions1d(nn.Module):
    """(N, 3, 16) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 6, 3, stride=2), nn.Linear(18, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.max_pool1d(x, 2).flatten(1))


MODELS = {
    "MLP": (MLP, (16,)),
    "Concat": (Concat, (8,)),
    "ConvBN": (ConvBN, (1, 8, 8)),
    "Bottleneck": (lambda: Bottleneck(2, 4, 2), (2, 8, 8)),
    "Depthwise": (Depthwise, (4, 8, 8)),
    "ResidualDigits": (ResidualDigits, (1, 8, 8)),
    "Convolutions1d": (Convolutions1d, (3, 16)),
}


@pytest.mark.parametrize("preset", ["fixed8", "fixed_per_tensor"])
@pytest.mark.parametrize("name", MODELS)
def test_clean_up_and_channels_last(name: str, preset: str) -> None:
    make, sample = MODELS[name]
    torch.manual_seed(0)
    x = torch.randn(6, *sample)
    frozen = pq.compile(make(), preset, x).freeze()
    given = torch.cat([x, 8 * x, (x * 64).round() / 64 + 2**-7])
    expected = frozen(given).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cleaned = _cleaned(to_qonnx(frozen.graph_module, batch=len(given), strict=True))
        assert np.array_equal(run_qonnx(cleaned.model, [given.numpy()])[0], expected)
        assert np.array_equal(pq.from_qonnx(cleaned.model)(given).numpy(), expected)
        if len(sample) != 3:
            return
        from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean

        turned = cleaned.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True))
        found = run_qonnx(turned.model, [given.permute(0, 2, 3, 1).numpy()])[0]
    assert "qonnx.custom_op.channels_last" in {n.domain for n in turned.graph.node}
    assert np.array_equal(found if found.ndim == 2 or found.shape == expected.shape else found.transpose(0, 3, 1, 2), expected)


def _cleaned(model: Any) -> Any:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    return cleanup_model(ModelWrapper(model))
