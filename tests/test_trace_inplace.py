"""Writes in place: each case gives the original's values, or is refused; never a third thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant_fx.errors import TraceError
from pquant_fx.graph.passes import Pipeline
from pquant_fx.passes.canonicalize import canonicalize
from pquant_fx.passes.functionalize import functionalize
from pquant_fx.trace import trace

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def augmented(x: Tensor) -> Tensor:
    y = x * 1
    y += x
    y -= 0.5
    y *= y
    y /= 3
    return y


def alias_by_name(x: Tensor) -> Tensor:
    y = x * 1
    z = y
    y.add_(1)
    return z * y


def relu_of_a_residual(x: Tensor) -> Tensor:
    y = x - 0.25
    return F.relu(y, inplace=True) + y


def view_made_after_the_write(x: Tensor) -> Tensor:
    y = x * 1
    y.mul_(2)
    return y.view(-1, 2, 4).sum(1)


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 1
    z = y.view(-1, 2, 4)
    z.add_(1)
    return z


def out_argument(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    return y


def accumulator(x: Tensor) -> Tensor:
    total = torch.zeros(8)
    total = total + x
    for n in range(3):
        total += x * n
    return total


def a_constant_written(x: Tensor) -> Tensor:
    total = torch.zeros(3, 8)
    total.add_(1)
    total = total + 0 * x.sum()
    return total[0] + x


def clamp_and_fill(x: Tensor) -> Tensor:
    y = (x * 4).clamp_(-1, 2)
    z = x.clone()
    z.zero_()
    return y + z


def unsqueezed(x: Tensor) -> Tensor:
    y = x * 1
    y.unsqueeze_(1)
    return y + 1


def the_base_after_a_written_view(x: Tensor) -> Tensor:
    y = x * 1
    y.view(-1, 2, 4).add_(1)
    return y + 0


def a_half_after_the_whole(x: Tensor) -> Tensor:
    y = x * 1
    a, _ = y.chunk(2, 1)
    y.add_(1)
    return a + 0


def the_input_through_identity(x: Tensor) -> Tensor:
    y = F.dropout(x, 0.5, False)
    y += 1
    return y + x


def copied_into(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    return y


def indexed(x: Tensor) -> Tensor:
    y = x * 1
    y[:, 1:3] += 1
    return y


def data_assigned(x: Tensor) -> Tensor:
    y = x * 1
    y.data = x
    return y


SAME = [
    augmented,
    alias_by_name,
    relu_of_a_residual,
    view_made_after_the_write,
    written_through_a_view,
    out_argument,
    accumulator,
    a_constant_written,
    clamp_and_fill,
    unsqueezed,
    the_input_through_identity,
]
REFUSED = [the_base_after_a_written_view, a_half_after_the_whole, copied_into, indexed, data_assigned]


def compiled(f: Callable[[Tensor], Tensor]) -> nn.Module:
    class Net(nn.Module):
        def forward(self, x):
            return f(x)

    gm = trace(Net(), {"x": X}).graph_module
    Pipeline((canonicalize, functionalize))(gm, (X,))
    return gm


@pytest.mark.parametrize("f", SAME, ids=lambda f: f.__name__)
def test_a_write_becomes_a_value(f: Callable[[Tensor], Tensor]) -> None:
    gm = compiled(f)
    x = X.clone()
    torch.testing.assert_close(gm(x), f(X.clone()), rtol=0, atol=0)
    assert torch.equal(x, X)
    assert torch.equal(gm(x), gm(x))


@pytest.mark.parametrize("f", REFUSED, ids=lambda f: f.__name__)
def test_a_write_that_others_would_see_is_refused_with_its_line(f: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TraceError) as error:
        compiled(f)
    assert error.value.code == "PQ105"
    lines = range(f.__code__.co_firstlineno, f.__code__.co_firstlineno + 5)
    assert error.value.place.line in [f"test_trace_inplace.py:{n}" for n in lines]


class InplaceLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = x - 0.5
        z = self.layer(y)
        return z + y


@pytest.mark.parametrize("layer", [nn.ReLU(True), nn.SiLU(True), nn.Dropout(0.5, True), nn.Hardtanh(inplace=True)], ids=str)
def test_an_inplace_layer_writes_what_it_was_given(layer: nn.Module) -> None:
    model = InplaceLayer(layer)
    gm = trace(model, {"x": X}).graph_module
    Pipeline((canonicalize, functionalize))(gm, (X,))
    for training in (False, True):
        torch.manual_seed(0)
        expected = model.train(training)(X)
        torch.manual_seed(0)
        torch.testing.assert_close(gm.train(training)(X), expected, rtol=0, atol=0)
