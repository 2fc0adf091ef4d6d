"""Nearest upsampling by whole factors: what becomes the dialect's operator, what is refused, the same bits everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.interval_arrays import upsample as upsampled
from pquant_fx.graph.moves import upsample

EQUAL = {
    "scale": lambda x: F.interpolate(x, scale_factor=2),
    "scales": lambda x: F.interpolate(x, scale_factor=(1.0, 3.0), mode="nearest-exact"),
    "size": lambda x: F.interpolate(x, size=(6, 4)),
    "recomputed": lambda x: F.interpolate(x, scale_factor=2.0, recompute_scale_factor=True),
    "layer": nn.Upsample(scale_factor=(2, 2)),
    "named layer": nn.UpsamplingNearest2d(size=(3, 8)),
}
OPAQUE = {
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "no whole factor": lambda x: F.interpolate(x, size=(4, 4)),
    "smaller": lambda x: F.interpolate(x, scale_factor=0.5),
    "2.4 of a line of three, cut to six": lambda x: F.interpolate(x, scale_factor=(2.4, 2.0)),
}


class Net(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.relu(x))


@given(st.integers(1, 2), st.data())
@settings(max_examples=40, deadline=None)
def test_it_repeats_elements(n: int, data: Any) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    factors = data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    x = torch.arange(2 * 3 * int(np.prod(sizes)), dtype=torch.float64).reshape(2, 3, *sizes)
    made = upsample(x, factors)
    for place in np.ndindex(*made.shape[2:]):
        assert torch.equal(made[(..., *place)], x[(..., *(p // f for p, f in zip(place, factors)))])
    assert np.array_equal(upsampled(x.numpy(), factors), made.numpy())


@pytest.mark.parametrize("name", EQUAL)
def test_spellings_become_one_operator(name: str) -> None:
    net, x = Net(EQUAL[name]), torch.randn(20, 2, 3, 4)
    if name == "size":
        x = torch.randn(20, 2, 3, 2)
    model = pq.compile(net, "fixed8", x)
    assert [n.target for n in model.graph_module.graph.nodes if n.op == "call_function"] == [F.relu, upsample]
    frozen = model.eval().freeze()
    assert torch.equal(model(x), frozen(x))
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    assert float((net(x) - frozen(x)).abs().max()) < 0.05


@pytest.mark.parametrize("name", OPAQUE)
def test_everything_else_is_refused(name: str) -> None:
    x = torch.randn(20, 2, 3, 4)
    report = pq.check(Net(OPAQUE[name]), x)
    assert [(p.code, "nearest" in p.remedy) for p in report.problems] == [("PQ201", True)]


def test_a_factor_of_one_is_nothing() -> None:
    model = pq.compile(Net(nn.Upsample(scale_factor=1)), "fixed8", torch.randn(20, 2, 3, 4))
    assert upsample not in [n.target for n in model.graph_module.graph.nodes]


class Wide(nn.Module):
    """A sum of more than 24 bits is upsampled, then a convolution with fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.interpolate(self.conv(x), scale_factor=(3, 2))
        return y, self.head(F.relu(y))


@pytest.mark.parametrize("bits", [8, 14])
def test_in_double_where_float32_is_too_narrow(bits: int) -> None:
    torch.manual_seed(0)
    quantization = {"default_weight_bits": bits, "default_data_bits": bits}
    x = torch.randn(30, 4, 4, 3)
    model = pq.compile(Wide(), {"preset": "fixed8", "quantization_parameters": quantization}, x)
    frozen = model.eval().freeze()
    assert (frozen.dtype == torch.float64) == (bits == 14)
    assert frozen.verify(x * 2, ("integer", "onnx", "qonnx")).ok


def test_removed_channels_go_through_it() -> None:
    torch.manual_seed(0)
    net = Wide()
    with torch.no_grad():
        net.conv.weight[2], net.conv.bias[2] = 0, 0
    net.forward = lambda x: None  # type: ignore[method-assign]

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = net.conv, net.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(F.interpolate(self.conv(x), scale_factor=2)))

    x = torch.randn(30, 4, 4, 3)
    frozen = pq.compile(Only(), "fixed8", x).eval().freeze()
    assert [(layer.layer, layer.removed_outputs) for layer in frozen.removed.layers if layer.removed_outputs] == [("conv", (2,))]
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
