"""Every refusal and note of the tracer: its code, the module path, the user's line, the remedy; all problems at once."""

from __future__ import annotations

import linecache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pquant_fx.errors import Problem, TraceError
from pquant_fx.trace import bind_examples, trace

X = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Calls `inner` so that problems lie in a module with a path."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), inner)

    def forward(self, x):
        return self.body(x)


class Branch(nn.Module):
    def forward(self, x):
        if x.max() > 0:  # line of PQ101
            x = x * 2
        return x


class Item(nn.Module):
    def forward(self, x):
        return x * x.mean().item()  # line of PQ101


class Mask(nn.Module):
    def forward(self, x):
        return x[x > 0]  # line of PQ101


class Training(nn.Module):
    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x)  # line of PQ104
        return x


class Scale(nn.Module):
    def forward(self, x):
        return x * (2.0 if self.training else 1.0)  # line of PQ104


class Write(nn.Module):
    def forward(self, x):
        y = x * 1
        y[:, 0] = 0  # line of PQ105
        return y


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1  # line of PQ105
        return x + self.steps


class Stale(nn.Module):
    def forward(self, x):
        y = x * 1
        z = y.view(-1, 40)
        y.add_(1)
        return z + 1  # line of PQ105


class LostStatistics(nn.Module):
    """Its second call reads statistics that the first one moved in training, although nothing uses that one's result."""

    def __init__(self):
        super().__init__()
        self.layers, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(8)

    def forward(self, x):
        self.norm(self.layers(x))  # line of PQ105
        return self.norm(x)


class OverBatch(nn.Module):
    def forward(self, x):
        return torch.stack([row * 2 for row in x])  # line of PQ106


class RangeBatch(nn.Module):
    def forward(self, x):
        y = x
        for _ in range(x.size(0)):  # line of PQ106
            y = y + 1
        return y


class BatchTest(nn.Module):
    def forward(self, x):
        if x.shape[0] == 1:  # line of PQ106
            return x
        return x * 2


class Squeeze(nn.Module):
    def forward(self, x):
        return x.mean((1, 2), keepdim=True).squeeze() * 2  # line of PQ106


class Raises(nn.Module):
    def forward(self, x):
        return F.linear(x, torch.zeros(2, 7))  # line of PQ107


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(5, 5)]

    def forward(self, x):
        return self.layers[0](x)  # line of PQ107


class Vmapped(nn.Module):
    def forward(self, x):
        return torch.vmap(lambda row: row * 2)(x) + 1  # line of PQ107


class Checkpointed(nn.Module):
    def forward(self, x):
        return checkpoint(F.relu, x, use_reentrant=True)  # line of PQ107


CASES = [
    *((c, "PQ101") for c in (Branch, Item, Mask)),
    *((c, "PQ104") for c in (Training, Scale)),
    *((c, "PQ105") for c in (Write, Counter, Stale)),
    *((c, "PQ106") for c in (OverBatch, RangeBatch, BatchTest, Squeeze)),
    *((c, "PQ107") for c in (Raises, Hidden, Vmapped, Checkpointed)),
]


def line_of(cls: type, code: str) -> str:
    """`file:line` of the comment that marks the line in the class."""
    text = linecache.getlines(__file__)
    start = next(n for n, t in enumerate(text) if t.startswith(f"class {cls.__name__}("))
    return f"test_trace_diagnostics.py:{next(n for n in range(start, len(text)) if f'# line of {code}' in text[n]) + 1}"


@pytest.mark.parametrize(("cls", "code"), CASES, ids=[c.__name__ for c, _ in CASES])
def test_a_refusal_names_code_module_line_and_remedy(cls: type[nn.Module], code: str) -> None:
    with pytest.raises(TraceError) as error:
        trace(Net(cls()), {"x": X})
    found: Problem = error.value.problems[0]
    assert (found.code, found.place.module, found.place.line) == (code, "body.1", line_of(cls, code))
    assert found.remedy
    assert found.severity == "error"


def test_an_unused_call_that_moves_statistics_which_another_reads_is_refused() -> None:
    with pytest.raises(TraceError) as error:
        trace(Net(LostStatistics()), {"x": X})
    found: Problem = error.value.problems[0]
    assert (found.code, found.place.module, found.place.line) == ("PQ105", "body.1.norm", line_of(LostStatistics, "PQ105"))


# fails by itself; has a shape that depends on values; is no module of the model; mixes the batch in; warns as it runs
NEVER_A_LEAF = (Raises, Mask, Hidden, Squeeze, Checkpointed)
LEAVES = [c for c, code in CASES if code != "PQ104" and c not in NEVER_A_LEAF]


@pytest.mark.parametrize("cls", LEAVES, ids=lambda c: c.__name__)
def test_a_refused_module_can_be_kept_whole(cls: type[nn.Module]) -> None:
    model = Net(cls()).eval()
    gm = trace(model, {"x": X}, leaves=(cls,)).graph_module.eval()
    torch.testing.assert_close(gm(X), model(X))


def test_all_problems_are_reported_at_once() -> None:
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = Branch(), Write(), RangeBatch()

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    with pytest.raises(TraceError) as error:
        trace(Many(), {"x": X})
    assert [(p.code, p.place.module) for p in error.value.problems] == [("PQ101", "a"), ("PQ105", "b"), ("PQ106", "c")]


def test_an_endless_loop_over_a_refused_test_ends() -> None:
    class Endless(nn.Module):
        def forward(self, x):
            while not x.sum() > 0:
                x = x + 1
            return x

    with pytest.raises(TraceError) as error:
        trace(Endless(), {"x": X})
    assert [p.code for p in error.value.problems] == ["PQ101"]


def test_shape_tests_are_noted_once_with_their_line() -> None:
    class Tests(nn.Module):
        def forward(self, x):
            for _ in range(3):
                assert x.shape[1] == 8
            return x if x.ndim > 2 else x * 2

    notes = trace(Tests(), {"x": X}).notes
    assert [n.code for n in notes] == ["PQ102", "PQ102"]
    assert "'assert x.shape[1] == 8' specialised to True" in notes[0].what
    assert (notes[0].place.line or "").startswith("test_trace_diagnostics.py:")


def test_attributes_set_in_forward_are_noted_and_not_kept() -> None:
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = None

        def forward(self, x):
            self.last = x * 2
            return self.last

    result = trace(Keeps(), {"x": X})
    assert [(n.code, n.severity) for n in result.notes] == [("PQ105", "info")]


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        ({}, "no example inputs"),
        ({"x": X, "y": X}, "no argument 'y'"),
        ({"y": X}, "'x' of forward has no example"),
        ({"x": [1.0]}, "is a list"),
        ({"x": X[:0]}, "empty batch"),
    ],
)
def test_wrong_examples_are_refused(examples: dict, text: str) -> None:
    with pytest.raises(TraceError, match=text) as error:
        trace(Net(nn.ReLU()), examples)
    assert error.value.code == "PQ409"


def test_too_many_examples_are_refused() -> None:
    with pytest.raises(TraceError, match="takes 1: x"):
        bind_examples(Net(nn.ReLU()), (X, X))


def test_a_model_with_our_reserved_name_is_refused() -> None:
    model = Net(nn.ReLU())
    model.pq = nn.Linear(2, 2)
    with pytest.raises(TraceError, match="attribute 'pq'"):
        trace(model, {"x": X})


def test_lazy_parameters_are_refused_with_their_module() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(TraceError) as error:
        trace(model, {"input": X})
    assert (error.value.code, error.value.place.module) == ("PQ107", "1")


def test_an_output_that_no_graph_can_hold_is_refused() -> None:
    class Box:
        def __init__(self, value):
            self.value = value

    class Boxes(nn.Module):
        def forward(self, x):
            return Box(x + 1)

    with pytest.raises(TraceError, match="returns a Box") as error:
        trace(Boxes(), {"x": X})
    assert error.value.code == "PQ107"
