"""Table activations: every entry against Python's own mathematics, and the same bits from every engine for every code."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.dialect import module_of, op_of
from pquant_fx.graph.tables import TABLE_FUNCTIONS, Tabulated, lookup
from pquant_fx.graph.values import output_of

ENGINES = ("integer", "onnx", "qonnx")


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def exponential_unit(x: float, alpha: float = 1.0, inner: float = 1.0) -> float:
    return x if x > 0 else alpha * math.expm1(x / inner)


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


SELU = (1.0507009873554804934193349852946, 1.6732632423543772848170429916717)
REFERENCE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[float], float]]] = {
    "tanh": (torch.tanh, math.tanh),
    "sigmoid": (nn.Sigmoid(), logistic),
    "gelu": (nn.GELU(), lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), gelu_tanh),
    "silu": (nn.SiLU(), lambda x: x * logistic(x)),
    "elu": (nn.ELU(0.7), lambda x: exponential_unit(x, 0.7)),
    "selu": (nn.SELU(), lambda x: SELU[0] * exponential_unit(x, SELU[1])),
    "celu": (nn.CELU(0.5), lambda x: exponential_unit(x, 0.5, 0.5)),
    "mish": (F.mish, lambda x: x * math.tanh(math.log1p(math.exp(x)))),
    "softplus": (nn.Softplus(2.0, 15.0), lambda x: x if 2 * x > 15 else math.log1p(math.exp(2 * x)) / 2),
    "softsign": (nn.Softsign(), lambda x: x / (1 + abs(x))),
    "logsigmoid": (nn.LogSigmoid(), lambda x: min(x, 0.0) - math.log1p(math.exp(-abs(x)))),
    "hardsigmoid": (nn.Hardsigmoid(), lambda x: min(max(x / 6 + 0.5, 0.0), 1.0)),
    "hardswish": (nn.Hardswish(), lambda x: x * min(max(x + 3, 0.0), 6.0) / 6),
    "exp": (torch.exp, math.exp),
    "erf": (torch.erf, math.erf),
    "reciprocal": (torch.reciprocal, lambda x: 1 / x if x else math.inf),
}


class Around(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.act = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)


def every_code() -> torch.Tensor:
    """All codes of fixed<9,4>, the ties between them, and numbers beyond them."""
    codes = torch.arange(-256, 256) / 32
    return torch.cat([codes, codes + 1 / 64, torch.tensor([-1e6, 1e6, 9.0, -9.0])]).reshape(-1, 1)


def table_of(frozen: Any) -> tuple[torch.Tensor, int, int]:
    """(entries, f, low) of the only lookup."""
    node = next(n for n in frozen.graph_module.graph.nodes if n.target is lookup)
    return frozen.formats.constants[node.args[1]], *node.args[2:]


@pytest.mark.parametrize("name", REFERENCE)
def test_entries_are_the_rounded_function_and_all_engines_read_them(name: str) -> None:
    function, reference = REFERENCE[name]
    x = every_code()
    x = x[x > 0].reshape(-1, 1) if name == "reciprocal" else x  # infinite calibration data is refused
    model = pq.compile(Around(function), {"preset": "fixed8", "inputs": {"x": {"format": "fixed<9,4>"}}}, x).eval()
    frozen = model.freeze()
    entries, f, low = table_of(frozen)
    assert (f, low, len(entries)) == (5, -256, 512)
    result = module_of(model.graph_module, output_of(model.graph_module).args[0])
    k, i, fraction = (int(t) for t in result.kif())
    top = 2 ** (i + fraction) - 1
    for n, entry in enumerate(entries.tolist()):
        exact = float(np.float32(reference((n + low) / 32)))
        code = math.inf if math.isinf(exact) else math.floor(exact * 2**fraction + 0.5)
        assert entry == min(max(code, -k * (top + 1)), top) * 2.0**-fraction
    with torch.no_grad():
        assert torch.equal(model(every_code()), frozen(every_code()))
    report = frozen.verify(every_code(), ENGINES)
    assert report.ok, str(report)
    frozen.to_qonnx(strict=True)


def test_every_function_of_the_table_is_tested_here() -> None:
    """But those that only a softmax and a norm make: they are in test_softmax and test_expand_norms."""
    assert {t.name for t in TABLE_FUNCTIONS.values()} == {name.split()[0] for name in REFERENCE} | {
        "exp_neg",
        "inverse_root",
        "inverse_sum",
    }
    for function, entry in TABLE_FUNCTIONS.items():
        x = torch.linspace(0 if entry.non_negative is None or entry.name in ("exp_neg", "inverse_root") else -8, 8, 200)[1:]
        assert bool((function(x) >= 0).all()) == (entry.non_negative is not False)
        low, high = entry.bounds or (-math.inf, math.inf)
        assert low <= float(function(x).min())
        assert float(function(x).max()) <= high


def test_training_is_torch_and_evaluation_is_float64_rounded_once() -> None:
    leaf, x = Tabulated("gelu", (), {"approximate": "tanh"}), torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(leaf.train()(x), F.gelu(x, approximate="tanh"))
    assert torch.equal(leaf.eval()(x), F.gelu(x.double(), approximate="tanh").float())
    assert torch.equal(leaf(x.double()), leaf(x).double())
    assert not torch.equal(leaf(x), F.gelu(x, approximate="tanh"))
    assert not leaf.state_dict()


class Two(nn.Module):
    """A table behind a layer, and one whose result several readers take."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(5, 6), nn.Linear(6, 4), nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.a(x))
        return torch.cat([self.b(y), F.silu(y) * y], 1)


def test_a_network_with_tables_trains_copies_and_freezes() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    model = pq.compile(Two(), "fixed8", x).train()
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    names = {op.name: n for n in model.graph_module.graph.nodes if (op := op_of(n)) is not None and op.kind == "table"}
    assert set(names) == {"tanh", "silu"}
    assert all(isinstance(module_of(model.graph_module, n), Tabulated) for n in names.values())
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    frozen = model.freeze()
    assert torch.equal(frozen(x), model(x))
    assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))
    assert sum(n.target is lookup for n in frozen.graph_module.graph.nodes) == 2
    assert frozen.verify(x * 3, ENGINES).ok
    assert not any("table" in key for key in model.state_dict())


def test_a_float_network_keeps_torchs_functions() -> None:
    model = pq.compile(Two(), "float", torch.randn(8, 5))
    assert [n.target for n in model.graph_module.graph.nodes if (op := op_of(n)) is not None and op.kind == "table"] == [torch.tanh, F.silu]


def test_a_float64_network_has_the_same_tables() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 5, dtype=torch.float64)
    model = pq.compile(Two().double(), {"preset": "fixed8", "quantization_parameters": {"default_data_bits": 12}}, x).eval()
    frozen = model.freeze()
    assert torch.equal(frozen(x), model(x))
    assert frozen.verify(x.float(), ("integer", "onnx")).ok


# ---- bad input
def test_a_table_of_too_many_entries_is_refused_by_name() -> None:
    model = pq.compile(Around(torch.tanh), {"preset": "fixed8", "inputs": {"x": {"format": "fixed<17,4>"}}}, torch.randn(50, 1))
    with pytest.raises(pq.LoweringError, match="table of 2\\^17 entries") as caught:
        model.freeze()
    assert (caught.value.code, caught.value.place.module) == ("PQ303", "")
    assert "16 bits" in caught.value.remedy
    assert not pq.check(Around(torch.tanh), torch.randn(9, 1), config={"preset": "fixed8", "inputs": {"x": {"format": "fixed<17,4>"}}}).ok


@pytest.mark.parametrize(
    ("settings", "what"), [({"x": {"quantize": False}}, "uses 'x' before"), ({"act": {"quantize": False}}, "no quantizer")]
)
def test_tables_between_real_numbers_are_refused(settings: dict[str, Any], what: str) -> None:
    model = pq.compile(Around(nn.Tanh()), {"preset": "fixed8", "layers": settings}, torch.randn(50, 4))
    with pytest.raises(pq.LoweringError, match=what) as caught:
        model.freeze()
    assert {p.code for p in caught.value.problems} == {"PQ202"}


def test_an_infinite_entry_needs_saturation() -> None:
    class Positive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.reciprocal(F.relu(x) + 1 - 1)

    x = torch.linspace(0.5, 3, 40).reshape(-1, 1)
    modes = {"preset": "fixed8", "layers": {"reciprocal": {"data_overflow": "WRAP"}}}
    with pytest.raises(pq.LoweringError, match="infinite") as caught:
        pq.compile(Positive(), modes, x).freeze()
    assert (caught.value.code, "data_overflow: SAT" in caught.value.remedy) == ("PQ305", True)
    assert pq.compile(Positive(), "fixed8", x).freeze().verify(torch.cat([x, x * 0]), ENGINES).ok
