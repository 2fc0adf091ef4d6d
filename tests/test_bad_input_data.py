"""Data that does not fit the model: shapes, types, counts, names, NaN. Refused wherever data enters, always the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pquant_fx as pq
from tests.refused import at, line_of, refused


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.fc(x))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, gain):
        return self.fc(x) * gain


X, Y = torch.linspace(-1, 1, 20).reshape(5, 4), torch.linspace(0, 1, 15).reshape(5, 3)
FORWARD = ("", line_of(Net.forward))


def compiled(net: nn.Module | None = None, x: Any = X) -> pq.CompiledModel:
    return pq.compile(Net() if net is None else net, "fixed8", x)


# ---- example inputs
@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        (np.zeros((5, 4)), "ndarray", "torch.Tensor"),
        ("x", "str", "torch.Tensor"),
        ({"x": None}, "NoneType", "torch.Tensor"),
        ([1.0, 2.0], "2 example inputs", "one tensor for each"),
        ((X, X), "2 example inputs", "one tensor for each"),
        ({"y": X}, "no argument 'y'", "its arguments are: x"),
        ({"x": X, "mask": X}, "no argument 'mask'", "its arguments are: x"),
        (torch.zeros(0, 4), "no sample", r"batch first: .* \(1, 16\)"),
        (torch.tensor(1.0), "no sample", "batch first"),
        (X.to(torch.complex64), "complex", "real numbers"),
        (X.to_sparse(), "sparse", "dense"),
        (X.to("meta"), "meta", "dense"),
    ],
)
def test_example_inputs_of_a_wrong_kind(given: Any, what: str, remedy: str) -> None:
    error = refused(lambda: compiled(x=given), pq.InputError, "PQ409", what, remedy)
    assert at(error) == FORWARD


def test_missing_example_inputs() -> None:
    error = refused(lambda: compiled(x=None), pq.ConfigError, "PQ407", "shape", "inputs: {x: {shape:")
    assert at(error) == FORWARD
    for given in ((), {}):
        error = refused(lambda given=given: compiled(x=given), pq.TraceError, "PQ409", "no example inputs", "tensor per input")
        assert at(error) == FORWARD
    error = refused(lambda: compiled(Two(), X), pq.TraceError, "PQ409", "'gain'", "'gain': tensor")
    assert at(error) == ("", line_of(Two.forward))
    error = refused(lambda: compiled(Two(), (X, Y[:2])), pq.TraceError, "PQ409", "x: 5, gain: 2", "axis 0")
    assert at(error) == ("", line_of(Two.forward))


@pytest.mark.parametrize("given", [torch.zeros(5, 7), torch.zeros(4), X.double(), X.half(), X > 0, torch.ones(5, 4, dtype=torch.long)])
def test_example_inputs_that_the_model_itself_refuses(given: Tensor) -> None:
    error = refused(lambda: compiled(x=given), pq.TraceError, "PQ107", "RuntimeError", "inputs")
    assert at(error) == ("fc", line_of(Net, "torch.relu"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_example_inputs_that_hold_no_numbers(bad: float) -> None:
    x = X.clone()
    x[1, 2] = bad
    error = refused(lambda: compiled(x=x), pq.InputError, "PQ305", "NaN or infinity", "clean")
    assert at(error) == FORWARD


# ---- data at every door
DOORS: dict[str, Callable[[Any], Any]] = {
    "call": lambda v: compiled()(v),
    "calibrate": lambda v: compiled().calibrate([v]),
    "calibration": lambda v: pq.compile(Net(), "fixed8", X, calibration=[v]),
    "fit": lambda v: compiled().fit([(v, Y)]),
    "frozen": lambda v: compiled().freeze()(v),
    "integer": lambda v: compiled().freeze().integer(v),
    "verify": lambda v: compiled().freeze().verify(v, ("integer",)),
}
EXACT = ("frozen", "integer", "verify")  # these take real numbers of any type


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("shape", [(5, 7), (5, 1, 4), (5,), (5, 4, 4)])
def test_other_shapes(door: str, shape: tuple[int, ...]) -> None:
    error = refused(lambda: DOORS[door](torch.zeros(shape)), pq.InputError, "PQ409", r"'x' has shape .* compiled for \(N, 4\)", "reshape")
    assert at(error) == FORWARD
    assert error.problems[0].place.node == "x"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_other_types(door: str, dtype: torch.dtype) -> None:
    given = X.to(dtype)
    if door in EXACT and not dtype.is_complex:
        assert DOORS[door](given) is not None
        return
    remedy = "real numbers" if dtype.is_complex else "x.to"
    error = refused(lambda: DOORS[door](given), pq.InputError, "PQ409", f"'x' is {dtype}", remedy)
    assert at(error) == FORWARD


def test_what_is_no_tensor() -> None:
    model = compiled()
    for value in (None, "x", object()):
        for run in (model, model.freeze(), model.freeze().integer):
            error = refused(lambda run=run, value=value: run(value), pq.InputError, "PQ409", f"is a {type(value).__name__}", "Tensor")
            assert at(error) == FORWARD
    refused(lambda: model.calibrate(None), pq.TrainingError, "PQ410", "NoneType", "tensor of samples")
    refused(lambda: model.fit(3), pq.TrainingError, "PQ410", "int", "pair of tensors")


def test_wrong_counts_and_names() -> None:
    model = compiled()
    for run in (model, model.freeze(), model.freeze().integer):
        refused(lambda run=run: run(X, X), pq.InputError, "PQ409", "2 inputs", "takes x")
        error = refused(lambda run=run: run(), pq.InputError, "PQ409", "'x' is missing", "takes x")
        assert at(error) == FORWARD
        refused(lambda run=run: run(X, x=X), pq.InputError, "PQ409", "twice", "once")
        error = refused(lambda run=run: run(y=X), pq.InputError, "PQ409", "no input 'y'", "takes x")
        assert len(error.problems) == 2
    two = compiled(Two(), (X, Y))
    error = refused(lambda: two(X, Y[:2]), pq.InputError, "PQ409", "numbers of samples .*x: 5, gain: 2", "one entry a sample")
    error = refused(lambda: two(X[:, :2], Y[:, :2]), pq.InputError, "PQ409")
    assert [p.place.node for p in error.problems] == ["x", "gain"]
    refused(lambda: two.calibrate([{"x": X}]), pq.InputError, "PQ409", "x", "forward's names")


@pytest.mark.parametrize("door", [d for d in DOORS if d not in ("call", "frozen")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_holds_no_numbers(door: str, bad: float) -> None:
    x = X.clone()
    x[3, 1] = bad
    kind = pq.InputError if door in EXACT else pq.CalibrationError
    error = refused(lambda: DOORS[door](x), kind, "PQ305", "'x' holds NaN or infinity", "clean|remove")
    assert at(error) == FORWARD


def test_no_samples() -> None:
    model = compiled()
    refused(lambda: model.calibrate([]), pq.CalibrationError, "PQ410", "no data", "at least one")
    refused(lambda: model.calibrate([torch.zeros(0, 4)]), pq.CalibrationError, "PQ410", "no data", "at least one")
    refused(lambda: model.calibrate(torch.zeros(0, 4)), pq.TrainingError, "PQ410", "no sample")
    refused(lambda: model.fit((torch.zeros(0, 4), torch.zeros(0, 3))), pq.TrainingError, "PQ410", "no sample")
    refused(lambda: model.freeze().verify(torch.zeros(0, 4)), pq.InputError, "PQ409", "no sample", "at least one")
    assert model(torch.zeros(0, 4)).shape == (0, 3)


def test_refused_data_changes_nothing() -> None:
    model = compiled()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for bad in (torch.zeros(5, 7), X * float("nan"), X.double()):
        for call in (lambda bad=bad: model.calibrate([X * 9, bad]), lambda bad=bad: model.fit([(bad, Y)])):
            refused(call, pq.CalibrationError if bad.isnan().any() else pq.InputError, "PQ305" if bad.isnan().any() else "PQ409")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_loss_that_is_not_a_number() -> None:
    model = compiled()
    refused(
        lambda: model.fit((X, Y), loss=lambda o, t: (o * float("nan")).sum()), pq.TrainingError, "PQ411", "nan in epoch 1", "learning_rate"
    )
