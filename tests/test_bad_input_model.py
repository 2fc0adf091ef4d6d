"""Models whose code can not become a circuit, and things that are no models: each is named with module, line and remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from tests.refused import at, check, line_of, refused

Forward = Callable[[Any, torch.Tensor], Any]


class Inner(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.fc, self.body = nn.Linear(4, 4), forward

    def forward(self, x):
        return self.body(self, x)


class Outer(nn.Module):
    """The offending code stands in the child `block`."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.block = Inner(forward)

    def forward(self, x):
        return self.block(x)


def branch(m, x):
    y = m.fc(x)
    if y.max() > 0:
        return y
    return x


def repeat(m, x):
    while x.sum() > 1:
        x = x * 0.5
    return m.fc(x)


def read(m, x):
    scale = x.abs().max().item()
    return m.fc(x) * scale


def positive(m, x):
    assert bool((x > 0).all())
    return m.fc(x)


def selected(m, x):
    return m.fc(x)[x > 0]


def through_numpy(m, x):
    return m.fc(torch.from_numpy(x.numpy()))


def samples(m, x):
    return torch.stack([m.fc(row) for row in x])


def counted(m, x):
    return torch.stack([m.fc(x[n]) for n in range(len(x))])


def unpacked(m, x):
    first, second = m.fc(x)
    return first + second


def squeezed(m, x):
    return m.fc(x).squeeze()


def written(m, x):
    mask = x > 0
    y = m.fc(x)
    y[mask] = 0
    return y


def counting(m, x):
    m.fc.bias.add_(1)
    return m.fc(x)


def by_mode(m, x):
    y = m.fc(x)
    if m.training:
        y = y * 2
    return y


def raising(m, x):
    raise KeyError("nothing here")


def misfit(m, x):
    return m.fc(x) @ x


def silent(m, x):
    m.fc(x)


UNTRACEABLE = [
    (branch, "PQ101", "if y.max", "values", "torch.where"),
    (repeat, "PQ101", "while x.sum", "values", "torch.where"),
    (read, "PQ101", ".item()", "values", "torch.where"),
    (positive, "PQ101", "assert", "values", "leaves="),
    (selected, "PQ101", "x > 0", "shape of the result", "torch.where"),
    (through_numpy, "PQ101", "x.numpy()", "values", "leaves="),
    (samples, "PQ106", "for row in x", "takes the batch apart", "whole batch"),
    (counted, "PQ106", "range(len(x))", "batch size", "whole batch"),
    (unpacked, "PQ106", "first, second =", "takes the batch apart", "whole batch"),
    (squeezed, "PQ106", "squeeze()", "number of axes", "name the axes"),
    (written, "PQ105", "y[mask] = 0", "writes into a tensor", "torch.where"),
    (counting, "PQ105", "add_(1)", "'block.fc.bias'", "outside of forward"),
    (by_mode, "PQ104", "y * 2", "self.training", "nn.Dropout"),
    (raising, "PQ107", "raise KeyError", "KeyError", "inputs of this shape"),
    (misfit, "PQ107", "@ x", "RuntimeError", "inputs of this shape"),
]


@pytest.mark.parametrize(("forward", "code", "text", "what", "remedy"), UNTRACEABLE, ids=lambda v: getattr(v, "__name__", ""))
def test_code_that_can_not_be_traced(forward: Forward, code: str, text: str, what: str, remedy: str) -> None:
    x = torch.randn(3, 4)
    error = refused(lambda: pq.compile(Outer(forward), "fixed8", x), pq.TraceError, code, what, remedy)
    assert at(error) == ("block", line_of(forward, text))
    report = pq.check(Outer(forward), x)
    assert not report.ok
    check(report.problems[0], code, what, remedy)
    assert at(report.problems[0]) == ("block", line_of(forward, text))


def test_everything_is_listed_at_once() -> None:
    net = nn.Sequential(Outer(branch), Outer(written), Outer(counted))
    error = refused(lambda: pq.compile(net, "fixed8", torch.randn(3, 4)), pq.TraceError, "PQ101")
    found = {(p.code, p.place.module, p.place.line) for p in error.problems}
    assert found == {
        ("PQ101", "0.block", line_of(branch, "if y.max")),
        ("PQ105", "1.block", line_of(written, "y[mask]")),
        ("PQ106", "2.block", line_of(counted, "range(len(x))")),
    }


def test_a_model_that_returns_nothing() -> None:
    error = refused(lambda: pq.compile(Outer(silent), "fixed8", torch.randn(3, 4)), pq.TraceError, "PQ107", "no tensor", "return")
    assert at(error) == ("", line_of(Outer.forward))


# ---- what is no model, or none that can be read
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.fc(x))


@pytest.mark.parametrize(
    ("model", "what", "remedy"),
    [
        (Net, "class Net", r"Net\(\.\.\.\)"),
        (lambda x: x, "function", "nn.Module"),
        (None, "NoneType", "nn.Module"),
        ("net", "str", "nn.Module"),
        (Net().state_dict(), "OrderedDict", "nn.Module"),
    ],
)
def test_what_is_no_module(model: Any, what: str, remedy: str) -> None:
    refused(lambda: pq.compile(model, "fixed8", torch.randn(3, 4)), pq.InputError, "PQ409", what, remedy)
    refused(lambda: pq.template(model, torch.randn(3, 4)), pq.InputError, "PQ409", what, remedy)
    check(pq.check(model, torch.randn(3, 4)).problems[0], "PQ409", what, remedy)


def test_compiled_and_wrapped_models_name_what_to_pass_instead() -> None:
    x = torch.randn(3, 4)
    compiled = pq.compile(Net(), "fixed8", x)
    for model in (compiled, compiled.freeze()):
        refused(lambda model=model: pq.compile(model, "fixed8", x), pq.InputError, "PQ409", "already", "original")
    refused(lambda: pq.compile(nn.DataParallel(Net()), "fixed8", x), pq.TraceError, "PQ107", "DataParallel", "model.module")
    refused(lambda: pq.compile(torch.compile(Net(), backend="eager"), "fixed8", x), pq.TraceError, "PQ107", "torch.compile", "_orig_mod")


class Reserved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pq = nn.Linear(4, 2)

    def forward(self, x):
        return self.pq(x)


class NoInit(nn.Module):
    def __init__(self) -> None:
        pass

    def forward(self, x):
        return x


def test_models_that_are_not_ready() -> None:
    x = torch.randn(3, 4)
    error = refused(lambda: pq.compile(Reserved(), "fixed8", x), pq.TraceError, "PQ107", "'pq'", "rename")
    assert error.problems[0].place.module == "pq"
    refused(lambda: pq.compile(NoInit(), "fixed8", x), pq.TraceError, "PQ107", "NoInit.__init__", "super")
    refused(lambda: pq.compile(nn.Module(), "fixed8", x), pq.TraceError, "PQ107", "forward")
    lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    error = refused(lambda: pq.compile(lazy, "fixed8", x), pq.TraceError, "PQ107", "lazy", "run the model once")
    assert {p.place.module for p in error.problems} == {"1", "2"}
    lazy(x)
    pq.compile(lazy, "fixed8", x)


def test_a_layer_that_leaves_nothing() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 9)

        def forward(self, x):
            return self.conv(x)

    error = refused(lambda: pq.compile(Small(), "fixed8", torch.randn(2, 1, 4, 4)), pq.TraceError, "PQ107", "Kernel size", "shape")
    assert at(error) == ("conv", line_of(Small, "self.conv(x)"))
