"""Transposed convolutions: against torch and loops, folded with BatchNorm, the same bits everywhere."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import LoweringError
from pquant_fx.graph.interval_arrays import correlate, spread, turned
from pquant_fx.graph.interval_rules import RULES
from pquant_fx.graph.intervals import Interval, constant
from pquant_fx.graph.shape_rules import shape_of_call
from pquant_fx.lower.hls4ml.convert import check
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.lower.hls4ml.transposed import TRANSPOSED_READERS
from pquant_fx.lower.integer_ops import SUMS_OF_PRODUCTS, Codes

FUNCTIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


@st.composite
def geometries(draw: Any, n: int) -> tuple[Any, ...]:
    """Image size, kernel, stride, padding, output_padding, groups, dilation that torch accepts."""
    size, kernel, stride, dilation = (tuple(draw(st.integers(1, 4)) for _ in range(n)) for _ in range(4))
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation))
    reach = [(a - 1) * s + d * (k - 1) + 1 + m for a, s, d, k, m in zip(size, stride, dilation, kernel, more)]
    padding = tuple(draw(st.integers(0, (r - 1) // 2)) for r in reach)
    return size, kernel, stride, padding, more, draw(st.sampled_from([1, 2])), dilation


@given(st.data(), st.integers(1, 2), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_it_is_the_convolution_of_the_spread_out_input(data: Any, n: int, seed: int) -> None:
    size, kernel, *options = data.draw(geometries(n))
    stride, padding, more, groups, dilation = options
    rng = np.random.default_rng(seed)
    x, w, b = rng.integers(-9, 9, (2, 4, *size)), rng.integers(-9, 9, (4, 3, *kernel)), rng.integers(-99, 99, 3 * groups)
    expected = FUNCTIONS[n](*(torch.from_numpy(a).double() for a in (x, w, b)), *options).numpy()
    column = b.reshape(-1, *(1,) * n)
    plain = correlate(spread(x, kernel, stride, padding, more, dilation), turned(w, groups), (1,) * n, (0,) * n, dilation, groups)
    assert np.array_equal(plain + column, expected)
    for floating in (False, True):
        made = SUMS_OF_PRODUCTS[FUNCTIONS[n]](floating, Codes(x, 1), Codes(w, 2), Codes(b, 3), *options)
        assert (np.array_equal(made.codes, expected), made.f) == (True, 3)
    metas = [torch.empty(a.shape, device="meta") for a in (x, w, b)]
    shape = shape_of_call(FUNCTIONS[n], (*metas, *options), {})
    assert shape is not None
    assert tuple(shape.shape) == expected.shape


def test_bounds_are_reached_and_hold_for_every_input() -> None:
    """Brute force over every corner of the input's box, on a map with gaps, overlaps and groups."""
    rng = np.random.default_rng(1)
    low = rng.integers(-4, 1, (1, 2, 3))
    x = Interval(2, low, low + rng.integers(0, 4, low.shape))
    w, b = rng.integers(-3, 4, (2, 1, 2)) / 4, rng.integers(-5, 5, 2) / 8
    options = ((2,), (1,), (1,), 2, (2,))
    value, sums = RULES[F.conv_transpose1d](x, constant(w), constant(b), *options)
    corners = np.array(list(itertools.product(*zip(x.low.ravel(), x.high.ravel())))).reshape(-1, 2, 3) / 4
    met = F.conv_transpose1d(*(torch.from_numpy(np.asarray(a, dtype=np.float64)) for a in (corners, w, b)), *options).numpy()
    assert np.array_equal(np.ldexp(value.low[0], -value.f), met.min(0))
    assert np.array_equal(np.ldexp(value.high[0], -value.f), met.max(0))
    assert sums is not None
    assert (sums.low <= value.low).all()
    assert (sums.high >= value.high).all()


LAYERS = {
    "upsampling": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 4)),
    "groups": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (2, 1), groups=2, dilation=(2, 1)), (4, 5, 4)),
    "line": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, output_padding=2, groups=2, bias=False), (4, 7)),
    "cropped": (lambda: nn.ConvTranspose1d(4, 2, 2, padding=1), (4, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bits", [8, 14])
def test_layers_freeze_to_the_same_bits(name: str, bits: int) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    net, x = nn.Sequential(make(), nn.ReLU()).double(), torch.randn(60, *shape, dtype=torch.float64)
    quantization = {"default_weight_bits": bits, "default_data_bits": bits}
    model = pq.compile(net, {"preset": "fixed8", "quantization_parameters": quantization}, x).eval()
    weight = model.graph_module.pq.get_submodule("_0.weight_quantizer")
    assert weight.kif(net[0].weight)[2].shape == (1, net[0].weight.shape[1], *(1 for _ in shape[1:])), "one format an output channel"
    frozen = model.freeze()
    with torch.no_grad():
        assert torch.equal(model(x), frozen(x))
        assert float((net(x) - model(x)).abs().max() / net(x).abs().max()) < 6 * 2.0**-bits
    targets = ("integer", "onnx", "qonnx") if frozen.dtype == torch.float32 else ("integer", "onnx")
    assert (len(targets) == 3) == (bits == 8)
    report = frozen.verify((x * 2).float(), targets)
    assert report.ok, str(report)
    frozen.to_qonnx(strict=True) if bits == 8 else None


@pytest.mark.parametrize("name", ["upsampling", "groups", "line"])
@pytest.mark.parametrize("seen", [False, True])
def test_batchnorm_folds_into_it(name: str, seen: bool) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(6)
    net, x = nn.Sequential(layer, norm, nn.ReLU()), torch.randn(60, *shape)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.bias.uniform_(-1, 1)
        for _ in range(20 if seen else 0):
            net.train()(2 * x + 1)
    model = pq.compile(net, "fixed8", x)
    assert sum("conv_transpose" in str(n.target) for n in model.graph_module.graph.nodes) == 1
    loss = model.train()(x).square().mean()
    loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p is not layer.bias)
    frozen = model.eval().freeze()
    assert torch.equal(model(x), frozen(x))
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    if seen:
        exact = net.eval()(x).detach()
        assert float((exact - frozen(x)).abs().max() / exact.abs().max()) < 0.05


def applied(ops: list[Any], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the importer makes of a node, on one sample: a convolution, then elements put in their places."""
    conv = ops[0]
    half = len(conv.strides)
    padded = np.pad(x, [(0, 0), *((conv.pads[n], conv.pads[n + half]) for n in range(half))])
    function = F.conv1d if half == 1 else F.conv2d
    made = function(*(torch.from_numpy(a.copy()) for a in (padded[None], conv.weight, conv.bias)), conv.strides)[0].numpy()
    assert made.shape == conv.shape
    for op in ops[1:]:
        made = made.reshape(-1)[op.index].reshape(op.shape)
    return made


@given(st.data(), st.integers(1, 2), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_the_importer_makes_a_convolution_of_all_phases(data: Any, n: int, seed: int) -> None:
    size, kernel, *options = data.draw(geometries(n))
    stride, padding, more, groups, dilation = options
    rng = np.random.default_rng(seed)
    x, w, b = rng.integers(-9, 9, (2, *size)), rng.integers(-9, 9, (2, 2, *kernel)), rng.integers(-99, 99, 2 * groups)
    expected = FUNCTIONS[n](*(torch.from_numpy(a).double() for a in (x[None], w, b)), *options)[0].numpy()
    attributes = {"strides": stride, "pads": padding * 2, "group": groups, "dilations": dilation, "output_padding": more}
    proto = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="t", **attributes)
    ops = TRANSPOSED_READERS["ConvTranspose"](Node(proto, "t", {"x": x.shape}, {"w": w, "b": b}))
    assert ops[-1].output == "y"
    assert np.array_equal(applied(ops, x.astype(float)), expected)


def test_a_negative_result_is_refused_by_name() -> None:
    x = torch.randn(20, 2, 4, 4)
    even = nn.ConvTranspose2d(2, 4, 3, padding=1, groups=2, dilation=(2, 1))
    assert check(pq.compile(even, "fixed8", x).freeze().to_qonnx()) == []
    proto = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="t", pads=[3, 3], kernel_shape=[2])
    with pytest.raises(LoweringError) as caught:
        TRANSPOSED_READERS["ConvTranspose"](Node(proto, "t", {"x": (1, 3)}, {"w": np.ones((1, 1, 2))}))
    assert (caught.value.code, "crops" in str(caught.value), caught.value.place.node) == ("PQ202", True, "t")
