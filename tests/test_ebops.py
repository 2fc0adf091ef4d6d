"""EBOPs by numbers: the vectors of the specification (B.5, B.6) and the formula of every operator."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.estimate import EbopsPlan, exact_ebops
from pquant_fx.estimate.bits import constant_format
from pquant_fx.graph.means import scaled_pool, scaled_sum
from tests.frozen_graphs import FrozenNet


def full(*shape: int, bits: int = 3) -> Tensor:
    """Codes that use all their bits: 101 for three."""
    return torch.full(shape, float((1 << (bits - 1)) | 1))


def one(target: Any, shape: tuple[int, ...], arguments: Any, bits: int = 6, signed: int = 0) -> GraphModule:
    """One operator on x of `bits` magnitude bits; arguments(net, x) gives what it takes."""
    net = FrozenNet()
    x = net.quantize(net.input("x", *shape), signed, bits, 0, name="x")
    return net.done(net.call(target, *arguments(net, x)))


def both(gm: GraphModule, **options: Any) -> float:
    """The exact count, which the surrogate has to agree with."""
    exact = exact_ebops(gm, **options).total
    assert float(EbopsPlan(gm, **options)()) == pytest.approx(exact, rel=1e-6)
    return exact


# ---- B.5
@pytest.mark.parametrize(("code", "bits"), [(0, 0), (1, 1), (12, 2), (5, 3), (80, 3), (127, 7), (-12, 2), (-128, 1), (2**40 + 1, 41)])
@pytest.mark.parametrize("f", [-3, 0, 9])
def test_enclosed_bits_of_a_code(code: int, bits: int, f: int) -> None:
    found, (k, i, fraction) = constant_format([code * 2.0**-f])
    assert found.tolist() == [bits]
    assert k.tolist() == [float(code < 0)]
    if code:
        assert (i + fraction).tolist() == [bits]
        assert code * 2.0**-f * 2.0 ** float(fraction) % 2 == 1  # the lsb is the last bit that is set


# ---- B.6
def test_dense_vector() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 3), 0, torch.tensor([[3.0, -9.0, 5.0]]), 0)  # 3, 0 and 5 bits
    w = net.parameter("w", torch.tensor([[9.0, 2.0, 0.0], [1.0, 65.0, 5.0]]) * torch.tensor([1.0, -1.0, 1.0]), 1, 8, 0)
    assert [int(v) for v in constant_format([9, 2, 0, 1, 65, 5])[0]] == [4, 1, 0, 1, 7, 3]
    assert exact_ebops(net.done(net.call(F.linear, x, w, None))).total == 3 * 4 + 3 * 1 + 5 * 3 == 30


@pytest.mark.parametrize(("padding", "groups", "expected"), [(0, 1, 5184), (1, 1, 14400), (0, 2, 1296)])
def test_convolution_vectors(padding: int, groups: int, expected: int) -> None:
    shape = (4, 2, 3, 3) if groups == 1 else (2, 1, 3, 3)
    gm = one(F.conv2d, (2, 4, 4), lambda n, x: (x, n.parameter("w", full(*shape), 1, 3, 0), None, (1, 1), (padding,) * 2, (1, 1), groups))
    assert both(gm) == expected


def constant(net: FrozenNet, *shape: int, bits: int = 3) -> Node:
    return net.parameter(f"c{len(net.graph.nodes)}", full(*shape, bits=bits), 1, bits, 0)


N = 3 * 4 * 4  # elements of the maps below, of 6 bits
FORMULAS = {
    "bias": (F.linear, (3,), lambda n, x: (x, constant(n, 5, 3), constant(n, 5, bits=4)), 5 * 3 * 6 * 3 + 5 * 4),
    "bias of a map": (
        F.conv2d,
        (3, 4, 4),
        lambda n, x: (x, constant(n, 2, 3, 1, 1), constant(n, 2, bits=4), (1, 1), (0, 0), (1, 1), 1),
        2 * 3 * 16 * 18 + 2 * 16 * 4,
    ),
    "rows of a dense layer": (F.linear, (7, 3), lambda n, x: (x, constant(n, 5, 3), None), 7 * 5 * 3 * 18),
    "transposed": (
        F.conv_transpose1d,
        (2, 3),
        lambda n, x: (x, constant(n, 2, 3, 3), constant(n, 3, bits=4), (2,), (0,), (0,), 1, (1,)),
        2 * 3 * 3 * 3 * 18 + 3 * 7 * 4,  # 3 inputs reach 3 outputs each; 7 positions
    ),
    "cropped transposed": (
        F.conv_transpose1d,
        (2, 3),
        lambda n, x: (x, constant(n, 2, 3, 3), None, (2,), (1,), (0,), 1, (1,)),
        2 * 3 * (3 * 3 - 2) * 18,  # the first and the last product fall outside
    ),
    "matmul": (torch.matmul, (2, 3), lambda n, x: (x, n.call(torch.permute, x, (0, 2, 1))), 2 * 3 * 2 * 36),
    "matmul with a constant": (torch.matmul, (2, 3), lambda n, x: (x, constant(n, 3, 5)), 2 * 3 * 5 * 18),
    "add": (operator.add, (3, 4, 4), lambda n, x: (x, x), 0.65 * N * 6),
    "add of different bits": (
        operator.add,
        (3,),
        lambda n, x: (x, n.quantize(n.input("y", 3), 0, 9, 0, name="y")),
        0.65 * 3 * 9,
    ),
    "add that broadcasts": (
        operator.add,
        (3, 4),
        lambda n, x: (x, n.quantize(n.input("y", 3, 1), 0, 9, 0, name="y")),
        0.65 * 12 * 9,
    ),
    "add a constant": (operator.add, (3, 4, 4), lambda n, x: (constant(n, 3, 1, 1), x), N * 3),
    "add a number": (operator.add, (3, 4, 4), lambda n, x: (x, -2.5), N * 3),
    "subtract": (operator.sub, (3, 4, 4), lambda n, x: (x, x), N * 6),
    "subtract a constant": (operator.sub, (3, 4, 4), lambda n, x: (x, constant(n, 1)), N * 3),
    "subtract from a constant": (operator.sub, (3, 4, 4), lambda n, x: (1.0, x), N * 6),
    "negate": (operator.neg, (3, 4, 4), lambda n, x: (x,), N * 6),
    "rows with a format for each feature and weight": (
        F.linear,
        (7, 3),
        lambda n, x: (
            n.quantize(x, 0, torch.tensor([4.0, 5.0, 6.0]), 0, name="rows"),
            n.parameter(
                "w", torch.tensor([[5.0, 3.0, 1.0], [9.0, 5.0, 7.0]]), 1, torch.tensor([[3.0, 2, 1], [4, 3, 3]]), torch.zeros(2, 3)
            ),
            None,
        ),
        7 * (4 * (3 + 4) + 5 * (2 + 3) + 6 * (1 + 3)),
    ),
    "maximum": (torch.maximum, (3, 4, 4), lambda n, x: (x, x), N * 6),
    "multiply": (operator.mul, (3, 4, 4), lambda n, x: (x, x), N * 36),
    "affine": (operator.mul, (3, 4, 4), lambda n, x: (x, constant(n, 3, 1, 1)), N * 18),
    "times a number": (operator.mul, (3, 4, 4), lambda n, x: (0.75, x), N * 6 * 2),
    "shift": (operator.mul, (3, 4, 4), lambda n, x: (x, -0.25), 0),
    "divide by 2^n": (operator.truediv, (3, 4, 4), lambda n, x: (x, 8), 0),
    "sum": (torch.sum, (3, 4, 4), lambda n, x: (x, (2, 3), False), 0.65 * (N - 3) * 6),
    "mean": (torch.mean, (3, 4, 4), lambda n, x: (x, (1, 2), True), 0.65 * (N - 4) * 6),
    "mean of three": (scaled_sum, (3, 4, 4), lambda n, x: (x, (1,), True, 0.34375), 0.65 * (N - 16) * 6 + 16 * 8 * 4),
    "windows of three": (scaled_pool, (3, 3, 4), lambda n, x: (x, (3, 1), (3, 1), (0, 0), False, True, 0.34375), 36 * 6 + 12 * 8 * 4),
    "maximum over an axis": (torch.amax, (3, 4, 4), lambda n, x: (x, (1,), True), (N - 16) * 6),
    "average pooling": (F.avg_pool2d, (3, 4, 4), lambda n, x: (x, (2, 2), (2, 2), (0, 0), False, True), N * 6),
    "max pooling": (F.max_pool2d, (3, 4, 4), lambda n, x: (x, (2, 2), (2, 2), (0, 0), (1, 1), False), N * 6),
    "ReLU": (F.relu, (3, 4, 4), lambda n, x: (x,), 0),
    "ReLU6": (F.relu6, (3, 4, 4), lambda n, x: (x,), N * 6),
    "hard tanh": (F.hardtanh, (3, 4, 4), lambda n, x: (x, -1, 1), 2 * N * 6),
    "leaky ReLU": (F.leaky_relu, (3, 4, 4), lambda n, x: (x, 0.375), N * 6 * 2),
    "leaky ReLU by a shift": (F.leaky_relu, (3, 4, 4), lambda n, x: (x, 0.125), 0),
    "PReLU": (F.prelu, (3, 4, 4), lambda n, x: (x, constant(n, 3)), N * 18),
    "concatenate": (torch.cat, (3, 4, 4), lambda n, x: ((x, x), 1), 0),
    "pad": (F.pad, (3, 4, 4), lambda n, x: (x, (1, 1), "constant", 0), 0),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_operators_cost_what_the_table_says(name: str) -> None:
    target, shape, arguments, expected = FORMULAS[name]
    assert both(one(target, shape, arguments)) == pytest.approx(expected)


def test_a_table_costs_its_contents() -> None:
    """A sigmoid of 5 stored bits with results of 9, more than it needs: 1e-4 * 2^5 * 9 for each element, compiled and frozen."""
    config = {"preset": "fixed8", "layers": {"act": {"data_format": "fixed<9,3>"}}, "inputs": {"x": {"format": "fixed<5,2>"}}}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(x)
            return y * y

    model = pq.compile(Net(), config, torch.randn(16, 6))
    for count in (model.ebops(), model.freeze().ebops(), model.ebops_plan().by_node()):
        assert [row.ebops for row in count.rows] == pytest.approx([6 * 1e-4 * 2**5 * 9, 6 * 9 * 9])
