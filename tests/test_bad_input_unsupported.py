"""Operators, options and numbers without an exact integer meaning: listed by `check` before training, refused by `freeze` after."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from tests.refused import at, check, line_of, refused

VECTOR, IMAGE, SERIES = (4,), (2, 8, 8), (5, 4)


class Around(nn.Module):
    """One layer under test, called on a line of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        return y if isinstance(y, torch.Tensor) else y[0]


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


UNSUPPORTED = {
    "softmax": (nn.Softmax(0), VECTOR, "PQ201", "Softmax", "one axis of a sample"),
    "tanhshrink": (nn.Tanhshrink(), VECTOR, "PQ201", "Tanhshrink", "nn.PReLU"),
    "groupnorm": (nn.GroupNorm(2, 4), VECTOR, "PQ201", "GroupNorm", "nn.LayerNorm"),
    "rnn": (nn.RNN(4, 3, batch_first=True), SERIES, "PQ201", "RNN", "nn.LSTM"),
    "lstm": (nn.LSTM(4, 3), SERIES, "PQ201", "LSTM has no exact integer meaning: its batch is not the first axis", "batch_first=True"),
    "attention": (nn.TransformerEncoderLayer(4, 2, 8), SERIES, "PQ201", "TransformerEncoderLayer", "batch_first=True"),
    "transposed": (nn.ConvTranspose3d(2, 3, 2, 2), (2, 3, 3, 3), "PQ201", "ConvTranspose3d", "two spatial axes"),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE, "PQ201", "Upsample", "mode='nearest'"),
    "upsample by a half": (nn.Upsample(scale_factor=1.5), IMAGE, "PQ201", "Upsample", "whole factor"),
    "reflection": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), IMAGE, "PQ201", "Conv2d", "padding_mode='zeros'"),
    "conv3d": (nn.Conv3d(2, 3, 1), (2, 3, 3, 3), "PQ201", "Conv3d", "two spatial axes"),
    "indices": (nn.MaxPool2d(2, return_indices=True), IMAGE, "PQ201", "MaxPool2d", "return_indices=False"),
    "average without its padding": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE, "PQ202", "fewer elements", "count_include_pad"),
    "uneven average": (nn.AdaptiveAvgPool2d(5), IMAGE, "PQ201", "AdaptiveAvgPool2d", "divides the input's"),
    "bounds": (nn.Hardtanh(-0.3, 0.7), VECTOR, "PQ202", "-0.3 is not exact", "power of two"),
    "batch statistics": (nn.BatchNorm1d(4, track_running_stats=False), VECTOR, "PQ202", "track_running_stats", "keep running statistics"),
    "fourier": (Fourier(), VECTOR, "PQ201", "fft", "sums, products"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_layers_that_no_target_has(name: str) -> None:
    layer, shape, code, what, remedy = UNSUPPORTED[name]
    x = torch.randn(3, *shape)
    report = pq.check(Around(layer), x)
    assert not report.ok
    problem = report.problems[0]
    check(problem, code, what, remedy)
    assert problem.place.node
    assert at(problem) == ("layer", line_of(Fourier, "fft.fft") if name == "fourier" else line_of(Around, "self.layer(x)"))
    with pytest.raises(pq.PQuantError) as caught:
        pq.compile(Around(layer), "fixed8", x).freeze()
    assert caught.value.problems == report.problems
    pq.compile(Around(layer), "float", x)  # such layers train


class Many(nn.Module):
    """Four findings of two codes, on four lines."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.Hardshrink()
        self.pool, self.clip = nn.AvgPool2d(2, ceil_mode=True), nn.Hardtanh(-0.3, 0.7)

    def forward(self, x):
        y = self.act(self.conv(x))
        y = self.pool(y)
        y = self.clip(y)
        return F.softmax(y.flatten(1), 0)


def test_everything_is_listed_at_once() -> None:
    x = torch.randn(3, 1, 9, 9)
    model = pq.compile(Many(), "fixed8", x)
    error = refused(model.freeze, pq.LoweringError, "PQ201")
    assert error.problems == pq.check(Many(), x, target="qonnx").problems
    found = [(p.code, *at(p)) for p in error.problems]
    assert found == [
        ("PQ201", "act", line_of(Many, "self.act(self.conv(x))")),
        ("PQ202", "pool", line_of(Many, "self.pool(y)")),
        ("PQ202", "clip", line_of(Many, "self.clip(y)")),
        ("PQ201", "", line_of(Many, "F.softmax")),
    ]
    assert all(p.remedy for p in error.problems)
    model(x).sum().backward()  # and it still trains


class Gate(nn.Module):
    def forward(self, x):
        return x * (x.mean() > 0)


def test_a_leaf_trains_but_is_not_frozen() -> None:
    model = pq.compile(Around(Gate()), "fixed8", torch.randn(3, 4), leaves=(Gate,))
    error = refused(model.freeze, pq.LoweringError, "PQ201", "Gate", "`leaves`")
    assert at(error) == ("layer", line_of(Around, "self.layer(x)"))


class Bounded(nn.Module):
    def forward(self, x):
        return F.hardtanh(0.25 * x + 0.5, 0, 1) + torch.maximum(x, -x) + F.leaky_relu(x, 0.125)


class Free(nn.Module):
    def forward(self, x):
        y = torch.clamp(x, 0.5)
        y = y + torch.abs(x)
        return torch.where(x > 0, y, x)


def test_the_alternatives_that_messages_name_are_accepted() -> None:
    x = torch.randn(3, 4)
    error = refused(pq.compile(Free(), "fixed8", x).freeze, pq.LoweringError, "PQ201", "clamp", "F.hardtanh")
    lines = {p.place.line: p.remedy for p in error.problems}
    assert "torch.maximum(x, -x)" in lines[line_of(Free, "torch.abs")]
    assert "torch.maximum" in lines[line_of(Free, "torch.where")]
    assert pq.compile(Bounded(), "fixed8", x).freeze().verify(x, ("integer", "onnx")).ok


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(5, 4, max_norm=1.0), nn.Linear(4, 2)

    def forward(self, tokens):
        return self.fc(self.table(tokens))


def test_integer_inputs() -> None:
    tokens = torch.randint(0, 5, (3, 6))
    model = pq.compile(Words(), "fixed8", tokens)
    assert model(tokens).shape == (3, 6, 2)
    error = refused(model.freeze, pq.LoweringError, "PQ201", "Embedding", "max_norm")
    assert at(error) == ("table", line_of(Words, "self.table(tokens)"))
    error = refused(lambda: model(tokens.float()), pq.InputError, "PQ409", "float32, the example was torch.int64", "x.to")
    assert at(error) == ("", line_of(Words.forward))


# ---- numbers
class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.relu(self.bn(self.fc(x)))


@pytest.mark.parametrize(("name", "module"), [("fc.weight", "fc"), ("fc.bias", "fc"), ("bn.running_mean", "bn"), ("bn.weight", "bn")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_and_buffers_that_are_no_numbers(name: str, module: str, bad: float) -> None:
    x, expected = torch.randn(3, 4), (module, line_of(Normed, "torch.relu"))
    net = Normed()
    net.state_dict()[name].view(-1)[1] = bad
    error = refused(lambda: pq.compile(net, "fixed8", x), pq.InputError, "PQ305", f"'{name}'", "checkpoint")
    assert at(error) == expected
    assert error.problems[0].place.node
    healthy = pq.compile(Normed(), "fixed8", x)
    healthy.state_dict()[name].view(-1)[1] = bad
    assert at(refused(healthy.freeze, pq.LoweringError, "PQ305", f"'{name}'", "checkpoint")) == expected
    error = refused(lambda: healthy.calibrate(x), pq.CalibrationError, "PQ305", f"'{name}'", "checkpoint")
    assert at(error) == expected


def test_a_model_that_computes_nan_is_named_where_it_begins() -> None:
    net = Normed()
    net.bn.running_var.fill_(-1.0)
    error = refused(lambda: pq.compile(net, "fixed8", torch.randn(3, 4)), pq.InputError, "PQ305", "gives NaN", "negative variance")
    assert at(error) == ("bn", line_of(Normed, "torch.relu"))


@pytest.mark.parametrize("name", ["fc.weight", "bn.weight"])
def test_zero_layers_are_exact(name: str) -> None:
    net, x = Normed(), torch.randn(16, 4)
    with torch.no_grad():
        net.get_parameter(name).zero_()
    frozen = pq.compile(net, "fixed8", x).freeze()
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    assert torch.equal(frozen(x), frozen(x[:1]).expand(16, -1))


@pytest.mark.parametrize(("scale", "code"), [(1e30, "PQ303"), (1e-40, "PQ306")])
def test_numbers_beyond_any_circuit(scale: float, code: str) -> None:
    x = torch.linspace(-1, 1, 12).reshape(3, 4) * scale
    error = refused(pq.compile(Around(nn.Linear(4, 3)), "fixed8", x).freeze, pq.LoweringError, code, "bits")
    assert at(error) == ("layer", line_of(Around, "self.layer(x)"))


def test_formats_on_a_bare_shape_are_not_frozen() -> None:
    model = pq.compile(Normed(), {"preset": "fixed8", "inputs": {"x": {"shape": [4]}}})
    refused(model.freeze, pq.LoweringError, "PQ307", "bare input shape", r"calibrate\(batches\)")
    assert isinstance(model.calibrate(torch.randn(8, 4)).freeze(), pq.FrozenModel)


def test_every_public_door_documents_its_errors() -> None:
    doors: list[Any] = [pq.compile, pq.check, pq.template, pq.CompiledModel.calibrate, pq.CompiledModel.freeze, pq.FrozenModel.integer]
    assert all("Raises" in (inspect.getdoc(door) or "") for door in doors)
