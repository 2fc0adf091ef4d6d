"""BatchNorm that can not fold stays an affine operator: scale and offset are what is quantized, and many bits are as good as float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq


class Pretrained(nn.Module):
    """Convolutions with BatchNorms that fold, one behind a sum, one behind a value with two consumers, one on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.c1, self.bn1 = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.after_sum, self.forked, self.fc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.c1(self.bn0(x))))
        y = self.bn2(self.c2(x)) + x
        y = F.relu(self.after_sum(y))
        y = self.forked(y) + y
        return self.fc(y.mean((2, 3)))


def pretrained() -> nn.Module:
    """Statistics far from 0 and 1, gammas of both signs and of very different size, one of them 0."""
    torch.manual_seed(3)
    net = Pretrained()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.3, 2.0)
            nn.init.uniform_(module.running_var, 0.01, 9.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            with torch.no_grad():
                module.weight[0], module.weight[1] = 0.0, 1e-3
                module.num_batches_tracked.fill_(100)
    return net.eval()


WIDE = {
    "default_weight_bits": 24,
    "default_data_bits": 24,
}


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_weight"])
def test_24_bits_in_float64_are_float(granularity: str) -> None:
    """Below 0.05 % of the largest output (the seed system: 57 %, because it loses the statistics)."""
    net = pretrained().double()
    x = 3 * torch.randn(64, 3, 8, 8, dtype=torch.float64)
    config = {"preset": "fixed8", "quantization_parameters": {**WIDE, "granularity": granularity}}
    model = pq.compile(net, config, x)
    with torch.no_grad():
        expected, found = net(x), model.eval()(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 5e-4
    assert not torch.equal(found, expected)  # it is quantized


def test_scale_and_offset_are_quantized_never_gamma_and_beta() -> None:
    net = pretrained()
    model = pq.compile(net, "fixed8", 3 * torch.randn(64, 3, 8, 8))
    frozen = model.freeze().graph_module
    norm: Any = net.get_submodule("after_sum")
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    offset = norm.bias - norm.running_mean * scale
    values = {n: b for n, b in frozen.named_buffers() if "after_sum" in n and n.endswith("value")}
    (found_scale,) = (v.flatten() for n, v in values.items() if "weight" in n)
    (found_offset,) = (v.flatten() for n, v in values.items() if "bias" in n)
    # each channel has its own format: 7 bits of each scale, whatever its size (within 2^16 of the largest)
    assert torch.allclose(found_scale.double(), scale.detach().double(), rtol=2**-7, atol=0)
    step = 2.0 ** -float(frozen.get_submodule("pq.after_sum.bias_quantizer").kif()[2].min())
    assert float((found_offset - offset.detach()).abs().max()) <= step / 2


@pytest.mark.parametrize("preset", ["fixed8", "hgq"])
def test_the_frozen_network_is_the_evaluated_one(preset: str) -> None:
    model = pq.compile(pretrained(), preset, x := 3 * torch.randn(32, 3, 8, 8))
    with torch.no_grad():
        assert torch.equal((frozen := model.freeze())(x), model.eval()(x))
        assert torch.equal(frozen.integer(x).float(), model(x))


@pytest.mark.parametrize("data", ["far", "near"])
def test_learned_weight_formats_begin_with_the_statistics_of_the_data(data: str) -> None:
    """A fresh network: the folded weight's first format must not rest on the placeholders mean 0 and variance 1."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(64, 2, 6, 6) * (30 if data == "far" else 0.03)
    wide = {"default_weight_bits": 8, "default_data_bits": 8}
    model = pq.compile(net, {"preset": "hgq", "quantization_parameters": wide}, x)
    variance = F.conv2d(x, net[0].weight).var((0, 2, 3), correction=0)
    assert torch.allclose(model.get_buffer("1.running_var"), variance, rtol=0.05)
    assert int(model.get_buffer("1.num_batches_tracked")) == 0
    with torch.no_grad():
        saturated = model.train()(x)
    expected = F.relu(F.batch_norm(F.conv2d(x, net[0].weight), None, None, training=True))
    assert float((saturated - expected.detach()).abs().mean() / expected.detach().abs().mean()) < 0.05
