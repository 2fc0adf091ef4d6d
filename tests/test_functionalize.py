"""Functionalize: torch.nn's layers become functions of their parameters; everything that is more than its class stays a module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pquant_fx.errors import PassError
from pquant_fx.graph.dialect import OPS
from pquant_fx.graph.info import info
from pquant_fx.graph.passes import Pipeline
from pquant_fx.passes.canonicalize import canonicalize
from pquant_fx.passes.functionalize import functionalize
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.trace import trace

FLAT = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
LINE = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1))
MAP = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(2))


def build(model: nn.Module, x: torch.Tensor) -> GraphModule:
    gm = trace(model, {"input": x}).graph_module
    pipeline = Pipeline((canonicalize, functionalize, propagate_shapes))
    pipeline(gm, (x,))
    assert not pipeline(gm), "a second run changes nothing"
    torch.testing.assert_close(gm.eval()(x), model.eval()(x))
    torch.testing.assert_close(gm(x[:1]), model(x[:1]))
    return gm


def modules(gm: GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]


CASES = [
    (nn.Linear(8, 3), FLAT, (F.linear,)),
    (nn.Linear(8, 3, bias=False), FLAT, (F.linear, None)),
    (nn.Conv1d(4, 6, 3, 2, 1, 2, 2), LINE, (F.conv1d, (2,), (1,), (2,), 2)),
    (nn.Conv2d(4, 6, (3, 1), padding="same", bias=False), MAP, (F.conv2d, None, (1, 1), (1, 0), (1, 1), 1)),
    (nn.Conv2d(4, 6, 3, padding="valid"), MAP, (F.conv2d, (1, 1), (0, 0), (1, 1), 1)),
    (nn.ReLU(inplace=True), FLAT, (F.relu,)),
    (nn.ReLU6(), FLAT, (F.relu6,)),
    (nn.LeakyReLU(0.25), FLAT, (F.leaky_relu, 0.25)),
    (nn.Hardtanh(-0.5, 2.0), FLAT, (F.hardtanh, -0.5, 2.0)),
    (nn.PReLU(8), FLAT, (F.prelu,)),
    (nn.Tanh(), FLAT, (torch.tanh,)),
    (nn.Sigmoid(), FLAT, (torch.sigmoid,)),
    (nn.GELU(), FLAT, (F.gelu,)),
    (nn.GELU("tanh"), FLAT, (F.gelu,)),
    (nn.ELU(0.5, inplace=True), FLAT, (F.elu, 0.5)),
    (nn.CELU(2.0), FLAT, (F.celu, 2.0)),
    (nn.Softplus(2.0, 10.0), FLAT, (F.softplus, 2.0, 10.0)),
    *[(layer(), FLAT, (f,)) for layer, f in ((nn.SiLU, F.silu), (nn.SELU, F.selu), (nn.Mish, F.mish), (nn.Softsign, F.softsign))],
    *[(layer(), FLAT, (f,)) for layer, f in ((nn.LogSigmoid, F.logsigmoid), (nn.Hardsigmoid, F.hardsigmoid), (nn.Hardswish, F.hardswish))],
    (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, bias=False), LINE, (F.conv_transpose1d, None, (2,), (1,), (1,), 2, (1,))),
    (nn.ConvTranspose2d(4, 2, 2, (2, 1), dilation=(1, 2)), MAP, (F.conv_transpose2d, (2, 1), (0, 0), (0, 0), 1, (1, 2))),
    (nn.MaxPool1d(3, 2, 1), LINE, (F.max_pool1d, (3,), (2,), (1,), (1,), False)),
    (nn.MaxPool2d(2, ceil_mode=True), MAP, (F.max_pool2d, (2, 2), (2, 2), (0, 0), (1, 1), True)),
    (nn.AvgPool1d(4), LINE, (F.avg_pool1d, (4,), (4,), (0,), False, True)),
    (nn.AvgPool2d((2, 4), count_include_pad=False, padding=1), MAP, (F.avg_pool2d, (2, 4), (2, 4), (1, 1), False, False)),
    (nn.AdaptiveAvgPool2d((3, 4)), MAP, (F.avg_pool2d, (2, 2), (2, 2), (0, 0), False, True)),
    (nn.AdaptiveAvgPool1d(1), LINE, (F.avg_pool1d, (12,), (12,), (0,), False, True)),
    (nn.AdaptiveMaxPool2d(2), MAP, (F.max_pool2d, (3, 4), (3, 4), (0, 0), (1, 1), False)),
    (nn.Flatten(), MAP, (torch.reshape, (-1, 192))),
    (nn.Unflatten(1, (2, 4)), FLAT, (torch.reshape, (-1, 2, 4))),
    (nn.ZeroPad2d((1, 0, 2, 0)), MAP, (F.pad, (1, 0, 2, 0), "constant", 0)),
    (nn.ConstantPad1d(2, 0.0), LINE, (F.pad, (2, 2), "constant", 0)),
]


@pytest.mark.parametrize(("layer", "x", "expected"), CASES, ids=lambda v: str(v)[:40] if isinstance(v, nn.Module) else "")
def test_a_layer_becomes_a_canonical_function(layer: nn.Module, x: torch.Tensor, expected: tuple) -> None:
    gm = build(nn.Sequential(layer), x)
    node = next(n for n in gm.graph.nodes if n.op == "call_function")
    assert (node.target, *(a for a in node.args if not isinstance(a, torch.fx.Node))) == expected
    assert node.target in OPS
    assert [n.target for n in gm.graph.nodes if n.op == "get_attr"] == [f"0.{n}" for n, _ in layer.named_parameters()]
    assert (info(node).path, info(node).site) == ("0", 1)
    assert all(info(n).shape is not None for n in gm.graph.nodes if n.op != "output")


class Doubled(nn.ReLU):
    def forward(self, x):
        return super().forward(x) * 2


def hooked() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda m, i, o: o + 1)
    return layer


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (hooked(), FLAT),
        (parametrizations.weight_norm(nn.Linear(8, 8)), FLAT),
        (nn.BatchNorm1d(8), FLAT),
        (nn.Dropout(0.5), FLAT),
        (nn.Softmax(0), FLAT),
        (nn.GroupNorm(2, 8), FLAT),
        (nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), LINE),
        (nn.AdaptiveAvgPool1d(5), LINE),
        (nn.ConstantPad1d(2, 1.0), LINE),
        (nn.RReLU(), FLAT),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_layer_that_is_more_stays_a_module(layer: nn.Module, x: torch.Tensor) -> None:
    assert modules(build(nn.Sequential(layer), x)) == ["0"]


def test_hooks_are_kept_and_run_once_per_call() -> None:
    model = nn.Sequential(hooked())
    torch.testing.assert_close(build(model, FLAT)(FLAT), model(FLAT))


def test_subclasses_are_traced_and_plain_ones_functionalized() -> None:
    class Renamed(nn.Linear):
        pass

    gm = build(nn.Sequential(Renamed(8, 8), Doubled()), FLAT)
    assert modules(gm) == []


def test_a_weight_used_at_two_sites_is_read_at_each_and_stays_one_parameter() -> None:
    fc = nn.Linear(8, 8)
    gm = build(nn.Sequential(fc, nn.ReLU(), fc), FLAT)
    reads = [n for n in gm.graph.nodes if n.op == "get_attr"]
    assert [(n.target, info(n).site) for n in reads] == [("0.weight", 1), ("0.bias", 1), ("0.weight", 2), ("0.bias", 2)]
    assert gm.get_submodule("0") is gm.get_submodule("2")


def test_it_needs_canonicalize_first() -> None:
    with pytest.raises(PassError) as error:
        Pipeline((functionalize, canonicalize))
    assert error.value.code == "PQ602"


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_propagate_shapes_fills_what_passes_left_open_and_changes_nothing() -> None:
    gm = build(nn.Sequential(nn.Conv2d(4, 2, 2, padding="same"), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(96, 3)), MAP)
    text = str(gm.graph)
    for node in gm.graph.nodes:
        if node.op not in ("placeholder", "output"):
            node.meta.pop("pquant_fx")
    assert propagate_shapes(gm) is False
    assert str(gm.graph) == text
    shapes = [info(n).shape for n in gm.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    assert shapes == [(3, 4, 7, 9), (3, 2, 6, 8), (3, 2, 6, 8), (3, 96), (3, 3)]
    assert gm.get_submodule("1").num_batches_tracked == 0
