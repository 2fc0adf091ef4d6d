"""Quantizers that the user places: `pq.Quantizer` leaves and `pq.fixed_point` calls are traced, kept, and not doubled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import CalibrationError, PassError
from pquant_fx.passes.place_quantizers import place_quantizers
from pquant_fx.quantize import CalibratedQuantizer, DynamicQuantizer, FixedQuantizer, HGQData, HGQWeight
from pquant_fx.trace import trace


class Net(nn.Module):
    """Two layers, quantizers at hand, and a forward given as a function: (N, 8) -> (N, 4)."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call
        self.a, self.b, self.bn = nn.Linear(8, 8), nn.Linear(8, 4), nn.BatchNorm1d(8)
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)
        self.bits = nn.Parameter(torch.tensor(4.0))
        self.given, self.found = FixedQuantizer(1, 3, 4), CalibratedQuantizer(6)
        self.learned, self.weights = HGQData((1, 8), 7), HGQWeight((8, 8), 5)
        self.register_buffer("grid", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def compiled(call: Callable[[Any, Tensor], Tensor], config: Any = "fixed8") -> Any:
    torch.manual_seed(0)
    return pq.compile(Net(call), config, torch.randn(32, 8))


def quantizers(model: Any) -> list[str]:
    """Paths in the order of the graph."""
    nodes = [n for n in model.graph_module.graph.nodes if n.op == "call_module"]
    return [str(n.target) for n in nodes if isinstance(model.get_submodule(str(n.target)), pq.Quantizer)]


def exact(model: Any) -> bool:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        frozen, expected = model.freeze(), model.eval()(x)
    return torch.equal(frozen(x), expected) and torch.equal(frozen.integer(x).float(), expected)


@pytest.mark.parametrize("config", ["fixed8", "hgq"])
def test_modules_stay_and_their_values_get_no_other(config: str) -> None:
    model = compiled(lambda m, x: m.b(m.found(m.a(m.given(x)))), config)
    found = quantizers(model)
    assert [n for n in found if not n.endswith(("weight_quantizer", "bias_quantizer"))] == ["given", "found"]
    assert model.get_submodule("found").calibrated
    assert set(Net(lambda m, x: x).state_dict()) <= set(model.state_dict())
    assert exact(model)


def test_an_input_takes_the_users_quantizer_as_its_own() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.fc = FixedQuantizer(1, 2, 5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.q(x))

    model = pq.compile(First(), "fixed8", torch.randn(8, 8))
    assert quantizers(model) == ["q", "pq.fc.weight_quantizer", "pq.fc.bias_quantizer"]


def test_a_relu_of_a_placed_grid_stays_on_it() -> None:
    model = compiled(lambda m, x: m.b(F.relu(m.found(m.a(x)))))
    assert not [n for n in quantizers(model) if "relu" in n]
    assert [n for n in quantizers(compiled(lambda m, x: m.b(F.relu(m.a(x))))) if "relu" in n]
    assert exact(model)


def test_fixed_point_calls_become_quantizers_of_data_and_weights() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.linear(pq.fixed_point(x, 1, 3, 4, "TRN", "WRAP"), pq.fixed_point(m.weight, k=1, i=1, f=4, overflow="SAT_SYM"))
        return m.b(F.relu(y))

    model = compiled(forward)
    first, second = (model.get_submodule(n) for n in quantizers(model) if "fixed_point" in n)
    assert ([int(v) for v in first.kif()], first.rounding, first.overflow) == ([1, 3, 4], "TRN", "WRAP")
    assert ([int(v) for v in second.kif()], second.rounding, second.overflow) == ([1, 1, 4], "RND", "SAT_SYM")
    assert not [n for n in quantizers(model) if n.startswith("pq.weight")]
    x = torch.randn(16, 8)
    own = Net(forward)
    own.load_state_dict({k: v for k, v in model.state_dict().items() if k in own.state_dict()})
    values: list[Tensor] = []
    first.register_forward_hook(lambda m, a, out: values.append(out))
    model.eval().graph_module(x)
    assert torch.equal(values[0], pq.fixed_point(x, 1, 3, 4, "TRN", "WRAP"))
    assert exact(model)


def test_fixed_point_lines_are_the_users() -> None:
    model = compiled(lambda m, x: m.b(pq.fixed_point(m.a(x), 1, 3, 4)))
    (line,) = (row for row in model.text().splitlines() if row.startswith("fixed_point"))
    assert "test_place_quantizers.py:" in line


def test_bits_may_be_tensors_that_forward_makes() -> None:
    model = compiled(lambda m, x: m.b(pq.fixed_point(m.a(x), 1, torch.tensor([1.0, 2, 3, 4, 4, 3, 2, 1]), 3)))
    (quantizer,) = (model.get_submodule(n) for n in quantizers(model) if "fixed_point" in n)
    assert quantizer.kif()[1].tolist() == [[1, 2, 3, 4, 4, 3, 2, 1]]
    assert exact(model)


@pytest.mark.parametrize("bits", ["bits", "grid"])
def test_bits_that_may_change_stay_a_function_which_trains_and_is_refused_by_name(bits: str) -> None:
    model = compiled(lambda m, x: m.b(pq.fixed_point(m.a(x), 1, 3, getattr(m, bits))))
    model.train()(torch.randn(8, 8)).sum().backward()
    if bits == "bits":
        assert model.bits.grad is not None
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert "PQ201" in {p.code for p in caught.value.problems}


def test_impossible_formats_are_refused_all_at_once() -> None:
    """`compile` finds the first of them earlier, when it runs the model."""
    net = Net(lambda m, x: pq.fixed_point(x, 1, 200, 3) + pq.fixed_point(x, 2, 1, 3))
    with pytest.raises(PassError) as caught:
        place_quantizers(trace(net, {"x": torch.randn(4, 8)}).graph_module)
    assert [p.code for p in caught.value.problems] == ["PQ306", "PQ306"]
    assert all(p.place.line is not None for p in caught.value.problems)
    with pytest.raises(pq.TraceError, match="PQ306"):
        pq.compile(net, "fixed8", torch.randn(4, 8))


def test_quantizers_of_parameters_do_not_work_on_data() -> None:
    with pytest.raises(CalibrationError) as caught:
        compiled(lambda m, x: m.b(F.relu(m.weights(x[:8]))), "float")
    assert caught.value.code == "PQ412"


def test_learned_quantizers_of_the_user_start_and_train() -> None:
    model = compiled(lambda m, x: m.b(F.relu(F.linear(m.learned(x), m.weights(m.weight)))))
    assert model.get_submodule("learned").calibrated
    assert model.get_submodule("weights").calibrated
    model.train()(torch.randn(16, 8)).square().sum().backward()
    for name in ("learned.f", "learned.i", "weights.b", "weights.i"):
        assert bool(model.get_parameter(name).grad.abs().sum() > 0), name
    assert "pq.weight_quantizer" not in quantizers(model)
    assert exact(model)


def test_the_float_preset_keeps_them_and_adds_nothing() -> None:
    model = compiled(lambda m, x: m.b(m.found(m.a(m.given(x)))), "float")
    assert quantizers(model) == ["given", "found"]
    own = Net(lambda m, x: m.b(m.found(m.a(m.given(x)))))
    own.load_state_dict(model.state_dict(), strict=False)
    own.found.set_format(*model.found.kif())
    x = torch.randn(9, 8)
    assert torch.equal(model.eval()(x), own.eval()(x))


def test_batchnorm_is_not_folded_into_a_quantized_weight() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(F.relu(m.bn(F.linear(x, pq.fixed_point(m.weight, 1, 1, 5)))))

    model = compiled(forward)
    (linear,) = (n for n in model.graph_module.graph.nodes if n.name == "linear")
    assert "fixed_point" in str(linear.args[1].target)
    assert exact(model)


def test_masks_act_below_a_placed_quantizer() -> None:
    config = {"preset": "fixed8", "pruning_parameters": {"sparsity": 0.5}}
    model = compiled(lambda m, x: m.b(F.relu(F.linear(x, m.weights(m.weight)))), config)
    (node,) = (n for n in model.graph_module.graph.nodes if n.op == "call_module" and n.target == "weights")
    assert isinstance(model.get_submodule(str(node.args[0].target)), pq.Mask)


def test_stochastic_rounding_of_a_call_rounds_one_way_in_evaluation() -> None:
    model = compiled(lambda m, x: m.b(pq.fixed_point(m.a(x), 1, 3, 2, "S_RND")))
    x = torch.randn(64, 8)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_a_placed_quantizer_at_a_shared_join_stays() -> None:
    config = {"preset": "fixed8", "joins": {"policy": "shared"}}
    model = compiled(lambda m, x: m.b(m.found(m.a(x)) + x), config)
    assert "found" in quantizers(model)
    assert [p.code for p in model.notes] == ["PQ607"]


def test_dynamic_quantizers_take_weights_of_the_user() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.q = nn.Parameter(torch.randn(4, 8)), DynamicQuantizer(5)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.q(self.w))

    model = pq.compile(Own(), "fixed8", torch.randn(16, 8))
    assert quantizers(model) == ["pq.x.quantizer", "q"]
    assert exact(model)
