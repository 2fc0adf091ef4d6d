"""Shape formulas against torch's own meta kernels: same shape, dtype and strides, or no answer at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pquant_fx.graph.shape_rules import same_layout, shape_of_call, shape_of_layer

number = st.integers(1, 4)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def agree(ours: torch.Tensor | None, theirs: torch.Tensor) -> None:
    assert ours is not None
    assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@settings(max_examples=60, deadline=None)
@given(number, number, number, number, st.integers(0, 2), number)
def test_convolutions(n: int, channels: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
    x = meta(n, channels, 17, 14)
    layer = nn.Conv2d(channels, 5, kernel, stride, padding, dilation, device="meta")
    expected = layer(x)
    agree(shape_of_layer(layer, x, lambda w: w), expected)
    agree(shape_of_call(F.conv2d, (x, layer.weight, None, stride), {"padding": padding, "dilation": dilation}), expected)
    agree(shape_of_layer(nn.Conv1d(14, 3, kernel, device="meta"), meta(n, 14, 9), lambda w: w), meta(n, 3, 9 - kernel + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), number, st.integers(0, 1), st.booleans())
def test_pools(kernel: int, stride: int, padding: int, average: bool) -> None:
    x = meta(2, 3, 11, 13)
    function, layer = (F.avg_pool2d, nn.AvgPool2d) if average else (F.max_pool2d, nn.MaxPool2d)
    expected = function(x, kernel, stride, padding)
    agree(shape_of_call(function, (x, kernel), {"stride": stride, "padding": padding}), expected)
    agree(shape_of_layer(layer(kernel, stride, padding), x, lambda w: w), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 2), min_size=1, max_size=3), st.booleans())
def test_reductions(axes: list[int], keep: bool) -> None:
    x = meta(2, 3, 4)
    if len({a % 3 for a in axes}) == len(axes):
        agree(shape_of_call(torch.mean, (x, axes, keep), {}), torch.mean(x, axes, keep))


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_elementwise_keeps_the_layout(axes: tuple[int, ...]) -> None:
    x = meta(2, 3, 4).permute(axes)
    agree(same_layout(x), torch.relu(x))
    agree(shape_of_call(F.relu, (x,), {"inplace": False}), torch.relu(x))
    agree(shape_of_call(torch.Tensor.add, (x, x), {}), x + x)


def test_joins() -> None:
    agree(shape_of_call(torch.cat, ([meta(2, 3), meta(2, 4)], -1), {}), meta(2, 7))
    agree(shape_of_call(F.linear, (meta(2, 5, 3), meta(4, 3)), {}), meta(2, 5, 4))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.linear, (meta(2, 3), meta(4, 5))),
        (F.conv2d, (meta(2, 3, 5, 5), meta(4, 2, 3, 3))),
        (torch.Tensor.add, (meta(2, 3), meta(3))),
        (torch.Tensor.add, (meta(2, 3), meta(2, 3).double())),
        (torch.cat, ([meta(2, 3), meta(3, 3)], 1)),
        (F.relu, (meta(8, 8)[:, ::2],)),
        (F.max_pool2d, (meta(3, 5, 5), 2)),
        (F.avg_pool2d, (meta(1, 3, 5, 5), 7)),
        (torch.mean, (meta(2, 3),)),
        (torch.relu, (torch.empty(3, dtype=torch.int32, device="meta"),)),
    ],
)
def test_what_is_not_plain_is_left_to_torch(function: object, args: tuple) -> None:
    assert shape_of_call(function, args, {}) is None  # type: ignore[arg-type]


def test_tracing_a_convolutional_network_imports_no_symbolic_algebra() -> None:
    code = """
import sys, torch
from torch import nn
from pquant_fx.trace import trace
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(36, 5))
trace(net, {"input": torch.zeros(2, 1, 8, 8)})
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
