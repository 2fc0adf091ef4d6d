"""What a trace keeps: the user's model and tree, modes, structure, names, provenance; and what it costs."""

from __future__ import annotations

import copy
import linecache
import time
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pquant_fx.errors import TraceError
from pquant_fx.graph.info import info
from pquant_fx.graph.passes import Pipeline
from pquant_fx.passes.canonicalize import canonicalize
from pquant_fx.passes.functionalize import functionalize
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.trace import bind_examples, trace

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.bn = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.BatchNorm1d(8)
        self.alias, self.unused = self.fc, nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        for _ in range(2):
            x = self.act(self.fc(x))
        return F.dropout(self.drop(self.bn(self.alias(x))), 0.5, self.training)


def test_the_users_model_is_not_touched() -> None:
    model = Shared().train()
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    attributes = {path: dict(m.__dict__) for path, m in model.named_modules()}
    rng = torch.get_rng_state()
    trace(model, {"x": X})
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {path: dict(m.__dict__) for path, m in model.named_modules()} == attributes
    assert model.act.inplace
    assert model.training
    assert not model.bn.training


def test_the_graph_module_holds_the_whole_tree() -> None:
    model = Shared()
    gm = trace(model, {"x": X}).graph_module
    assert set(gm.state_dict()) == set(model.state_dict())
    gm.load_state_dict(model.state_dict(), strict=True)
    assert gm.fc is gm.alias
    assert [n for n, _ in gm.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_call_sites_are_counted_by_module() -> None:
    gm = trace(Shared(), {"x": X}).graph_module
    assert [(info(n).path, info(n).site) for n in gm.graph.nodes if n.target == "fc"] == [("fc", 1), ("fc", 2), ("fc", 3)]
    assert [info(n).site for n in gm.graph.nodes if n.target == "act"] == [1, 2]


def test_provenance_is_the_users_line_and_the_example_shape() -> None:
    gm = trace(Shared(), {"x": X}).graph_module
    record = next(info(n) for n in gm.graph.nodes if n.target == "act")
    line = next(n for n, text in enumerate(linecache.getlines(__file__), 1) if "x = self.act(self.fc(x))" in text)
    assert record.line == f"test_trace.py:{line}"
    assert record.shape == (4, 8)
    assert record.dtype == "float32"


def test_names_and_text_are_the_same_in_every_trace() -> None:
    model = Shared()
    texts = {str(trace(model, {"x": X[:n]}).graph_module.graph) for n in (1, 2, 4)}
    assert len(texts) == 1


def test_modes_follow_train_and_eval() -> None:
    model = Shared()
    gm = trace(model, {"x": X}).graph_module
    torch.testing.assert_close(gm.eval()(X), model.eval()(X), rtol=0, atol=0)
    torch.manual_seed(1)
    expected = model.train()(X)
    torch.manual_seed(1)
    torch.testing.assert_close(gm.train()(X), expected, rtol=0, atol=0)


def test_monte_carlo_dropout_stays_on_in_eval() -> None:
    class Mc(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True)

    gm = trace(Mc(), {"x": X}).graph_module.eval()
    assert (gm(X) == 0).any()


Pair = namedtuple("Pair", "a b")


@dataclass
class Outputs:
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [lambda a, b: (a, b), lambda a, b: [a, {"b": b}], Pair, Outputs, lambda a, b: {"a": a, "n": (b, None, 3)}],
    ids=["tuple", "nested", "namedtuple", "dataclass", "constants"],
)
def test_outputs_keep_their_structure(wrap) -> None:
    class Net(nn.Module):
        def forward(self, x):
            return wrap(x + 1, x * 2)

    result, expected = trace(Net(), {"x": X}).graph_module(X), wrap(X + 1, X * 2)
    assert type(result) is type(expected)
    torch.testing.assert_close(
        vars(result) if isinstance(result, Outputs) else result,
        vars(expected) if isinstance(expected, Outputs) else expected,
    )


def test_varargs_keywords_and_defaults() -> None:
    class Net(nn.Module):
        def forward(self, x, *rest, scale=None, shift):
            return x + sum(rest) + shift if scale is None else x * scale

    named = {**bind_examples(Net(), (X, X * 2, X * 3)), "shift": X}
    assert list(named) == ["x", "rest_1", "rest_2", "shift"]
    result = trace(Net(), named)
    assert result.input_names == ("x", "rest_1", "rest_2", "shift")
    torch.testing.assert_close(result.graph_module(X, X * 2, X * 3, X), X * 7)
    assert [(n.code, n.severity) for n in result.notes] == [("PQ103", "info")]
    assert "'scale' has default None" in result.notes[0].what


def test_inputs_are_sample_shapes() -> None:
    assert trace(Shared(), {"x": X}).inputs == {"x": (8,)}


def test_leaf_classes_stay_whole_even_when_they_can_not_be_traced() -> None:
    class Wild(nn.Module):
        def forward(self, x):
            return x * (2 if float(x.sum()) > 0 else 3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wild = Wild()

        def forward(self, x):
            return self.wild(x) + 1

    gm = trace(Net(), {"x": X}, leaves=(Wild,)).graph_module
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["wild"]
    torch.testing.assert_close(gm(X), Net()(X))


def test_a_subclass_of_a_torch_layer_is_traced_into() -> None:
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Scaled(8, 3), nn.Linear(3, 2))
    gm = trace(model, {"input": X}).graph_module
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["1"]
    torch.testing.assert_close(gm(X), model(X))


def test_parameters_reached_in_any_way_stay_parameters() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.ws = nn.Linear(8, 8), nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(2)])

        def forward(self, x):
            w = dict(self.named_parameters())["fc.weight"]
            for p in self.ws:
                x = x @ p
            return F.linear(x, w) + self.fc._parameters["bias"]

    gm = trace(Net(), {"x": X}).graph_module
    assert [n.target for n in gm.graph.nodes if n.op == "get_attr"] == ["ws.0", "ws.1", "fc.weight", "fc.bias"]


def test_no_grad_in_forward_keeps_its_gradients() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            with torch.no_grad():
                y = self.a(x)
            return self.b(y) + x

    gm = trace(Net(), {"x": X}).graph_module
    gm(X).sum().backward()
    assert gm.a.weight.grad is None
    assert gm.b.weight.grad is not None


def test_random_values_are_drawn_anew() -> None:
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(8)

    gm = trace(Noise(), {"x": X}).graph_module
    assert not torch.equal(gm(X), gm(X))


def test_factories_follow_device_dtype_and_batch() -> None:
    class Net(nn.Module):
        def forward(self, x):
            b, n = x.shape
            return torch.cat([x, torch.ones(b, 2, dtype=x.dtype, device=x.device)], 1) + torch.arange(n + 2)

    gm = trace(Net(), {"x": X}).graph_module
    y = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(gm(y), Net()(y), rtol=0, atol=0)


def test_custom_autograd_functions_keep_their_backward() -> None:
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, grad):
            return grad * 3

    class Net(nn.Module):
        def forward(self, x):
            return Round.apply(x) * 2

    x = X.clone().requires_grad_()
    gm = trace(Net(), {"x": X}).graph_module
    gm(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 6))


def test_shapes_are_traced_without_running_numbers() -> None:
    """2^40 multiplications would take minutes."""
    model = nn.Sequential(nn.Conv2d(1024, 1024, 3, padding=1, device="meta"), nn.ReLU()).to_empty(device="cpu")
    start = time.perf_counter()
    trace(model, {"input": torch.empty(1, 1, 1, 1).expand(64, 1024, 128, 128)})
    assert time.perf_counter() - start < 10


class Deep(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)) for _ in range(n)])

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def test_cost_grows_linearly_with_depth() -> None:
    def seconds(n: int) -> float:
        model = Deep(n)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            Pipeline((canonicalize, functionalize, propagate_shapes))(trace(model, {"x": X}).graph_module)
            best = min(best, time.process_time() - start)
        return best

    seconds(2)
    assert seconds(200) <= 12 * seconds(20)


def test_globals_are_restored_after_a_failed_trace() -> None:
    class Bad(nn.Module):
        def forward(self, x):
            raise KeyError("gone")

    before = (nn.Module.__call__, nn.Module.__setattr__, torch.autograd.Function.__dict__["apply"], torch.zeros, torch.is_grad_enabled())
    with pytest.raises(TraceError, match="KeyError"):
        trace(Bad(), {"x": X})
    assert (
        nn.Module.__call__,
        nn.Module.__setattr__,
        torch.autograd.Function.__dict__["apply"],
        torch.zeros,
        torch.is_grad_enabled(),
    ) == before
    assert not torch._C._is_torch_function_mode_enabled()
