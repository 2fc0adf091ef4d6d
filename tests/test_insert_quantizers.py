"""Where quantizers go: every value that is multiplied has one, each value and each parameter at most one, sums stay exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.dialect import is_parameter_value, op_of
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer, FixedQuantizer
from tests.structures_fixed import FIXED, names

ALL = [*names("structures_fixed"), *names("structures_fixed_constants"), *names("structures_fixed_maps")]


class Net(nn.Module):
    """A forward given as a function of the module and x: (N, 8) -> anything."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call
        self.a, self.b, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()
        self.scale = nn.Parameter(torch.linspace(0.01, 1, 8))

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def compiled(call: Any, config: Any = "fixed8") -> Any:
    torch.manual_seed(0)
    return pq.compile(Net(call), config, torch.randn(32, 8))


def nodes(model: Any) -> list[Node]:
    return list(model.graph_module.graph.nodes)


def quantizer(model: Any, node: Any) -> Any:
    found = model.get_submodule(str(node.target)) if isinstance(node, Node) and node.op == "call_module" else None
    return found if isinstance(found, pq.Quantizer) else None


def quantizers(model: Any) -> dict[str, Any]:
    return {str(n.target): q for n in nodes(model) if (q := quantizer(model, n)) is not None}


def is_quantized(model: Any, node: Any) -> bool:
    """Whether a value comes from a quantizer, or only moves values that do."""
    if quantizer(model, node) is not None:
        return True
    op = op_of(node)
    return op is not None and op.kind == "grid" and all(is_quantized(model, a) for a in node.all_input_nodes)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's, about the user's model
@pytest.mark.parametrize("name", ALL)
def test_everything_that_is_multiplied_is_quantized_once(name: str) -> None:
    case = FIXED[name]
    model = pq.compile(case.model(), "fixed8", case.inputs(8))
    for node in nodes(model):
        op = op_of(node)
        if op is None or is_parameter_value(node) or all("statistics" in str(u.target) for u in node.users):
            continue
        if op.kind == "weighted" or op.name in ("mul", "matmul"):
            factors = [a for a in node.args[:2] if isinstance(a, Node)]
            assert all(is_quantized(model, a) for a in factors), node.format_node()
        constants = [a for a in node.all_input_nodes if is_parameter_value(a)]
        assert all(quantizer(model, a) is not None for a in constants), node.format_node()
    for n in nodes(model):
        if quantizer(model, n) is not None and not is_parameter_value(n):
            assert list(n.args[0].users) == [n]  # nobody takes the unquantized value
            assert not is_quantized(model, n.args[0])


def test_sums_stay_exact_until_something_multiplies_them() -> None:
    model = compiled(lambda m, x: m.b(m.a(x) + x) - x)
    assert [n for n in quantizers(model) if n.endswith(".quantizer")] == ["pq.x.quantizer", "pq.add.quantizer"]


def test_what_only_moves_values_keeps_their_formats() -> None:
    model = compiled(lambda m, x: m.b(torch.cat([F.relu(m.a(x))[:, 4:], 4 * x[:, :4]], 1)))
    assert [n for n in quantizers(model) if n.endswith(".quantizer")] == ["pq.x.quantizer", "pq.relu.quantizer", "pq.mul.quantizer"]


def test_a_part_of_what_an_opaque_call_returns_is_quantized_by_itself() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha, self.out = nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.mha(x, x, x, need_weights=False)[0])

    model = pq.compile(Attention(), "fixed8", torch.randn(4, 5, 8))
    assert model(torch.randn(4, 5, 8)).shape == (4, 5, 3)
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert [(p.code, p.place.module) for p in caught.value.problems] == [("PQ201", "mha")]


def test_kinds_and_widths() -> None:
    config = {
        "preset": "fixed8",
        "layers": {"a": {"weight_bits": 5}, "ReLU": {"data_bits": 6, "data_rounding": "TRN", "data_overflow": "WRAP"}},
    }
    found = quantizers(compiled(lambda m, x: m.b(m.act(m.a(x))), config))
    weight, other, bias, act, x = (
        found[f"pq.{n}"] for n in ("a.weight_quantizer", "b.weight_quantizer", "a.bias_quantizer", "act.quantizer", "x.quantizer")
    )
    assert (type(weight), weight.width, weight.axis, other.width) == (DynamicQuantizer, 5, 0, 8)
    assert type(bias) is AccumulatorQuantizer
    assert (type(act), act.width, act.rounding, act.overflow, act.non_negative) == (CalibratedQuantizer, 6, "TRN", "WRAP", True)
    assert (x.width, x.rounding, x.overflow, x.non_negative) == (8, "RND", "SAT", False)


def test_each_value_of_a_scale_has_its_own_format() -> None:
    """Per tensor, the scale 0.01 next to 1 would be wrong by a fifth."""
    model = compiled(lambda m, x: x * m.scale)
    assert quantizers(model)["pq.scale_quantizer"].axis == 0
    value = model.freeze().graph_module.get_buffer("pq.scale.value")
    assert float((value / model.scale.detach() - 1).abs().max()) < 2**-7
    coarse = compiled(lambda m, x: x * m.scale, {"preset": "fixed8", "quantization_parameters": {"granularity": "per_tensor"}})
    assert quantizers(coarse)["pq.scale_quantizer"].axis is None


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda m, x: x * 0.1, 0.1),
        (lambda m, x: 0.1 * x, 0.1),
        (lambda m, x: x / 3, 1 / 3),
        (lambda m, x: x * -0.7, -0.7),
        (lambda m, x: x * 1e-6, 1e-6),
        (lambda m, x: x * 12345.6, 12345.6),
    ],
)
def test_an_awkward_factor_is_quantized_as_a_weight(call: Any, value: float) -> None:
    model = compiled(call)
    (found,) = (q for n, q in quantizers(model).items() if "number" in n)
    assert (type(found), found.width) == (DynamicQuantizer, 8)
    (constant,) = (b for n, b in model.freeze().graph_module.named_buffers() if "number" in n and n.endswith(".value"))
    assert abs(float(constant) / value - 1) < 2**-7
    assert set(model.state_dict()) - set(Net(call).state_dict())


@pytest.mark.parametrize("call", [lambda m, x: x * 0.5, lambda m, x: 3 * x - 1.25, lambda m, x: x / 4, lambda m, x: 100 - x * 0.0])
def test_a_number_of_few_bits_stays_a_number(call: Any) -> None:
    model = compiled(call)
    assert list(quantizers(model)) == ["pq.x.quantizer"]
    frozen, x = model.freeze(), torch.randn(9, 8)
    assert torch.equal(frozen(x), Net(call)(model.get_submodule("pq.x.quantizer")(x)))


def test_few_is_what_a_weight_of_the_layer_holds() -> None:
    config = {"preset": "fixed8", "layers": {"mul": {"weight_bits": 4}}}
    assert len(quantizers(compiled(lambda m, x: x * 7, config))) == 1
    assert len(quantizers(compiled(lambda m, x: x * 9, config))) == 2


def test_an_awkward_addend_is_rounded_to_the_grid_of_the_sum() -> None:
    model = compiled(lambda m, x: 0.3 - x)
    step = 2 ** -float(model.get_submodule("pq.x.quantizer").f)
    (constant,) = (b for n, b in model.freeze().graph_module.named_buffers() if "number" in n and n.endswith(".value"))
    assert float(constant) == round(0.3 / step) * step


def test_division_by_a_parameter_multiplies_by_its_quantized_reciprocal_and_trains_it() -> None:
    model = compiled(lambda m, x: x / m.scale)
    x = torch.randn(16, 8)
    model(x).square().mean().backward()
    assert bool((model.scale.grad != 0).all())
    frozen = model.freeze()
    reciprocal = next(b for n, b in frozen.graph_module.named_buffers() if n.startswith("pq.") and n.endswith(".value"))
    assert float((reciprocal * model.scale.detach() - 1).abs().max()) < 2**-7


def test_one_parameter_in_two_roles_has_a_format_for_each() -> None:
    found = quantizers(compiled(lambda m, x: x * m.scale + m.scale))
    kinds = {type(q) for n, q in found.items() if "scale" in n}
    assert kinds == {DynamicQuantizer, AccumulatorQuantizer}


def test_declared_interfaces_and_static_formats_are_fixed() -> None:
    config = {
        "preset": "fixed8",
        "inputs": {"x": {"format": "fixed<10,4,TRN,WRAP>"}},
        "outputs": {"1": {"format": "ufixed<6,3>"}},
        "layers": {"a": {"weight_format": "fixed<6,1>", "bias_format": "fixed<9,3>"}},
    }
    model = compiled(lambda m, x: (m.a(x), F.relu(m.b(x))), config)
    found = quantizers(model)
    x, out = found["pq.x.quantizer"], found["pq.relu.output_quantizer"]
    assert type(x) is FixedQuantizer
    assert ([int(v) for v in x.kif()], x.rounding, x.overflow) == ([1, 3, 6], "TRN", "WRAP")
    assert [int(v) for v in out.kif()] == [0, 3, 3]
    assert [int(v) for v in found["pq.a.weight_quantizer"].kif()] == [1, 0, 5]
    assert [int(v) for v in found["pq.a.bias_quantizer"].kif()] == [1, 2, 6]


def test_a_layer_that_is_not_quantized_stays_as_it_is() -> None:
    model = compiled(lambda m, x: m.b(m.act(m.a(x))), {"preset": "fixed8", "layers": {"b": {"quantize": False}}})
    assert not [n for n in quantizers(model) if n.startswith("pq.b.")]
