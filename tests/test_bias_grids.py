"""Biases are rounded to the lsb of the accumulator they are added to, found through whatever lies between."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant_fx.quantize.calibration import calibrate
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, DynamicQuantizer, FixedQuantizer
from tests.calibration_graphs import block, data, graph


def test_bias_grids_are_those_of_the_accumulators() -> None:
    gm, x = block(), data()
    calibrate(gm, [(x,)])
    f_x, f_r = float(gm.xq.f), float(gm.rq.f)  # type: ignore[arg-type, union-attr]
    f_conv = gm.conv_wq.kif(gm.conv.weight)[2].flatten()  # type: ignore[operator, union-attr]
    f_fc = gm.fc_wq.kif(gm.fc.weight)[2].flatten()  # type: ignore[operator, union-attr]
    assert torch.equal(gm.conv_bq.f, f_conv + f_x)  # type: ignore[arg-type, union-attr]
    assert torch.equal(gm.fc_bq.f, f_fc + f_r + 2)  # type: ignore[arg-type, union-attr]  # an average of four: two bits
    assert f_conv.unique().numel() > 1
    conv = F.conv2d(gm.xq(x).double(), gm.conv_wq(gm.conv.weight).double(), gm.conv_bq(gm.conv.bias).double())  # type: ignore[operator, union-attr]
    codes = conv * (f_conv + f_x).reshape(1, 3, 1, 1).double().exp2()
    assert torch.equal(codes, codes.round()), "sums and biases meet on one grid"


@pytest.mark.parametrize(
    ("operation", "f"),
    [
        (lambda x: F.relu(x), 6),
        (lambda x: F.max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), False), 6),
        (lambda x: torch.cat((x, x), 1), 6),
        (lambda x: operator.add(x, x), 6),
        (lambda x: operator.sub(x, 0.125), 6),
        (lambda x: operator.sub(x, 2.0**-9), 9),
        (lambda x: operator.mul(x, x), 12),
        (lambda x: operator.mul(x, 0.25), 8),
        (lambda x: torch.mean(x, (2, 3), True), 10),
        (lambda x: torch.sum(x, (2, 3), True), 6),
        (lambda x: F.pad(x, (1, 1), "constant", 0), 6),
        (lambda x: x[:, 0:1], 6),
        (lambda x: F.leaky_relu(x, 0.125), 9),
        (lambda x: F.hardtanh(x, -1.0, 0.5), 6),
        (lambda x: F.relu6(x), 6),
        (lambda x: operator.neg(x), 6),
        (lambda x: F.avg_pool2d(x, (1, 4), (1, 4), (0, 0), False, True), 8),
    ],
)
def test_lsb_through_operations(operation: Callable[[Tensor], Tensor], f: int) -> None:
    """The bias of a layer sees the lsb of its data through whatever lies between."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.wq, self.bq = FixedQuantizer(1, 1, 6), FixedQuantizer(1, 0, 3), AccumulatorQuantizer()
            shape = operation(torch.zeros(2, 4, 4, 4)).shape
            self.weight, self.bias = nn.Parameter(torch.randn(5, shape[1], 1, 1)), nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(operation(self.q(x)), self.wq(self.weight), self.bq(self.bias), (1, 1), (0, 0), (1, 1), 1)

    x = torch.randn(2, 4, 4, 4)
    gm = graph(Net(), x)
    calibrate(gm, [x])
    assert gm.bq.f.unique().tolist() == [f + 3]  # type: ignore[operator, union-attr]


def test_bias_without_a_data_lsb() -> None:
    """An unquantized operand, and an average over three: the weight's width stands in; a lone bias gets 16 bits."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.wq = FixedQuantizer(1, 1, 6), DynamicQuantizer(8)
            self.one, self.two, self.three, self.four = (AccumulatorQuantizer() for _ in range(4))
            self.weight, self.bias = nn.Parameter(torch.tensor([[0.6, 0.1, 0.2]])), nn.Parameter(torch.tensor([5.0]))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            mean = torch.mean(self.q(x), (1,), True)
            a = F.linear(x, self.wq(self.weight), self.one(self.bias))
            b = operator.add(mean, self.two(self.bias))
            c = F.linear(x, self.weight, self.three(self.bias))
            d = operator.add(self.q(x), self.four(self.bias))
            return a, b, c, d

    x = torch.randn(4, 3)
    gm = graph(Net(), x)
    calibrate(gm, [x])
    assert [float(getattr(gm, n).f) for n in ("one", "two", "three", "four")] == [7 + 8, 12, 12, 6]


def test_a_shared_bias_takes_the_finest_grid() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coarse, self.fine = FixedQuantizer(1, 4, 3), FixedQuantizer(1, 1, 6)
            self.wq, self.bq = FixedQuantizer(1, 0, 3), AccumulatorQuantizer()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            w, b = self.wq(self.weight), self.bq(self.bias)
            return F.linear(self.coarse(x), w, b) + F.linear(self.fine(x), w, b)

    x = torch.randn(4, 3)
    gm = graph(Net(), x)
    calibrate(gm, [x])
    assert gm.bq.f.unique().tolist() == [9]  # type: ignore[operator, union-attr]
