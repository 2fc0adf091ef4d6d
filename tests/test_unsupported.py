"""What has no exact integer meaning is named all at once, with its place and a remedy."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pquant_fx.errors import LoweringError
from pquant_fx.formats import FixedFormat
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.support import unsupported
from pquant_fx.quantize.quantizers import CalibratedQuantizer
from tests.frozen_graphs import FrozenNet


def test_every_unsupported_node_is_listed_with_place_and_remedy() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2, 6, 6), 1, 1, 6)
    odd = net.call(F.avg_pool2d, x, (3, 3), (1, 1), (1, 1), False, True, path="pool")
    cosine = net.call(torch.cos, odd, path="gate")
    behind = net.call(torch.mean, cosine, (2, 3), True, path="squeeze")
    tenth = net.call(operator.mul, x, 0.1, path="scale")
    third = net.call(operator.truediv, x, 3, path="divide")
    slope = net.call(F.leaky_relu, x, 0.01, path="leaky")
    wide = net.quantize(net.call(torch.cos, x, path="other"), 1, 1, 4, name="wide")
    border = net.call(F.avg_pool2d, wide, (2, 2), (2, 2), (1, 1), False, False, path="border")
    ceil = net.call(F.avg_pool2d, wide, (4, 4), (4, 4), (0, 0), True, True, path="ceil")
    gm = net.done((behind, tenth, third, slope, border, ceil))
    problems = unsupported(gm)
    found = {p.place.module: p.code for p in problems}
    expected = {"pool", "squeeze", "scale", "divide", "leaky", "border", "ceil"}
    assert found == {**dict.fromkeys(expected, "PQ202"), "gate": "PQ201", "other": "PQ201"}
    assert all(p.place.node and p.place.line and p.remedy for p in problems)
    with pytest.raises(LoweringError) as caught:
        analyse(gm).require()
    assert len(caught.value.problems) == 9
    with pytest.raises(LoweringError, match="cos"):
        analyse(gm)[cosine]
    with pytest.raises(LoweringError):
        analyse(gm)[behind]


@pytest.mark.parametrize(
    ("function", "rest"),
    [
        (torch.permute, ((1, 0, 2),)),
        (torch.cat, None),
        (torch.mean, ((0,), False)),
        (operator.getitem, ((slice(0, 1), slice(None)),)),
        (torch.reshape, ((-1, 2),)),
        (operator.add, "parameter"),
        (torch.matmul, "square"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_operators_that_mix_samples_are_refused(function: Any, rest: Any) -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2, 4), 1, 1, 2)
    if function is torch.cat:
        made = net.call(function, (x, x), 0)
    elif rest == "parameter":
        made = net.call(function, x, net.parameter("c", torch.ones(1, 1, 2, 4)))
    elif rest == "square":
        flat = net.quantize(net.input("y", 2), 1, 1, 2)
        made = net.call(function, flat, net.quantize(net.input("z", 2), 1, 1, 2))
    else:
        made = net.call(function, x, *rest)
    gm = net.done(made)
    assert [(p.code, p.place.node) for p in unsupported(gm)] == [("PQ202", made.name)]


def test_values_used_before_a_quantizer_are_named_and_moved_ones_are_not() -> None:
    net = FrozenNet()
    x, y = net.input("x", 2, 4), net.input("y", 4)
    moved = net.quantize(net.call(torch.reshape, x, (-1, 8)), 1, 1, 6)
    used = net.call(operator.add, y, 1.0, path="early")
    gm = net.done((moved, used, y))
    assert [(p.code, p.place.node) for p in unsupported(gm)] == [("PQ202", used.name), ("PQ202", "y")]
    assert unsupported(gm, quantized=False) == []


def test_float_graphs_are_judged_by_operators_and_options_only() -> None:
    net = FrozenNet()
    x = net.input("x", 2, 6, 6)
    w = net.parameter("conv.weight", torch.randn(3, 2, 3, 3))
    y = net.call(F.conv2d, x, w, None, (1, 1), (0, 0), (1, 1), 1, path="conv")
    pool = net.call(F.avg_pool2d, net.call(torch.cos, y), (3, 3), (1, 1), (0, 0), False, True, path="pool")
    gm = net.done(pool)
    assert [p.code for p in unsupported(gm, quantized=False)] == ["PQ201", "PQ202"]
    assert [(p.code, p.place.node) for p in unsupported(gm)][:2] == [("PQ202", "conv_weight"), ("PQ202", "conv2d")]


def test_bad_formats_and_values_are_problems_with_codes() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 4), 1, 1, 6)
    nan = net.parameter("bad", torch.tensor([1.0, float("nan"), 0.0, 0.0]))
    poisoned = net.call(operator.add, x, nan, path="bad")
    misfit = net.call(F.relu, x)
    net._add("pq.waiting", CalibratedQuantizer(8))
    waiting = net.graph.call_module("pq.waiting", (misfit,))
    gm = net.done((poisoned, waiting))
    net.root.pq.x.quantizer.set_format(torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3))
    gm.pq.x.quantizer = net.root.pq.x.quantizer
    codes = {p.code for p in unsupported(gm)}
    assert codes == {"PQ305", "PQ306", "PQ307"}
    assert "PQ307" not in {p.code for p in unsupported(gm, quantized=False)}


def test_values_too_wide_for_integers_are_refused_with_the_node() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, 20, 3)
    square = net.call(operator.mul, x, x)
    cube = net.call(operator.mul, square, x)
    gm = net.done(net.quantize(cube, 1, 3, 4, name="out"))
    problem = unsupported(gm)
    assert [(p.code, p.place.node) for p in problem] == [("PQ303", cube.name)]
    assert analyse(gm).format(square) == FixedFormat(1, 41, 6)
    assert "PQ303" in str(problem[0])
