"""bake_weights turns parameters into constants on their grid; in eval every bit stays."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pquant_fx.errors import LoweringError
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Mask, Quantizer, module_of
from pquant_fx.graph.info import info, place
from pquant_fx.graph.passes import Pipeline
from pquant_fx.graph.support import unsupported
from pquant_fx.lower.integer import IntegerInterpreter, real
from pquant_fx.passes.bake_weights import bake_weights
from pquant_fx.quantize.quantizers import CalibratedQuantizer, DynamicQuantizer, FixedQuantizer
from tests.unfrozen_graphs import mlp, residual_cnn

NETWORKS: dict[str, tuple[Callable[[], GraphModule], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "cnn": (lambda: residual_cnn(False), (2, 6, 6)),
    "cnn with batch statistics": (lambda: residual_cnn(True), (2, 6, 6)),
}


def baked(gm: GraphModule) -> GraphModule:
    frozen = copy.deepcopy(gm).eval()
    Pipeline([bake_weights])(frozen)
    return frozen


@pytest.mark.parametrize("name", NETWORKS)
def test_every_bit_stays_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    make, sample = NETWORKS[name]
    gm = make().train()
    frozen = baked(gm)
    x = torch.randn(50, *sample) * 3
    expected = gm.eval()(x)
    assert torch.equal(frozen(x), expected)
    assert torch.equal(frozen.double()(x.double()).float(), expected)
    assert (real(*IntegerInterpreter(frozen).run(x.numpy())) == expected.detach().double().numpy()).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_only_constants_quantizers_and_the_dialect_are_left(name: str) -> None:
    torch.manual_seed(0)
    gm = NETWORKS[name][0]()
    frozen = baked(gm)
    modules = [module_of(frozen, n) for n in frozen.graph.nodes]
    assert not any(isinstance(m, Mask | BatchCorrection | nn.Dropout) for m in modules)
    assert all(type(m) is FixedQuantizer for m in modules if m is not None)
    values = analyse(frozen).constants
    for node in frozen.graph.nodes:
        if node.op == "get_attr":
            (quantizer,) = node.users
            assert module_of(frozen, quantizer) is not None
            assert torch.equal(values[node], values[quantizer])
            assert not values[node].requires_grad
            assert str(node.target).startswith("pq.")
            assert info(node).shape == tuple(values[node].shape)
    weights = sum(1 for n in frozen.graph.nodes if n.op == "get_attr")
    assert weights == 4
    assert unsupported(frozen) == []
    assert [n.name for n in gm.graph.nodes if n.op == "placeholder"] == [n.name for n in frozen.graph.nodes if n.op == "placeholder"]


def test_a_second_run_changes_nothing() -> None:
    frozen = baked(residual_cnn(True))
    before, state = str(frozen.graph), {k: v.clone() for k, v in frozen.state_dict().items()}
    assert not bake_weights(frozen)
    assert str(frozen.graph) == before
    assert all(torch.equal(v, frozen.state_dict()[k]) for k, v in state.items())


def test_formats_of_weights_are_those_of_their_quantizers() -> None:
    torch.manual_seed(0)
    gm = mlp().eval()
    values = analyse(gm).constants
    source = next(n for n in gm.graph.nodes if n.target == "pq.a_weight_quantizer")
    expected = gm.pq.a_weight_quantizer.kif(values[source.args[0]])
    got = baked(gm).pq.a_weight_quantizer.kif()
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(torch.broadcast_tensors(*expected), got))


def test_one_quantizer_on_two_parameters_becomes_two() -> None:
    """A format that follows its value is another one for another value."""
    gm = mlp().eval()
    users = [n for n in gm.graph.nodes if n.op == "call_module" and n.target in ("pq.a_weight_quantizer", "pq.b_weight_quantizer")]
    with torch.no_grad():
        gm.b.weight.mul_(8)
    for node in users:
        node.target = "pq.a_weight_quantizer"
    gm.recompile()
    x = torch.randn(20, 6)
    frozen = baked(gm)
    assert torch.equal(frozen(x), gm(x))
    used = {str(n.target) for n in frozen.graph.nodes if n.op == "call_module" and "weight" in str(n.target)}
    assert len(used) == 2


def test_constants_without_quantizer_stay_when_they_are_dyadic() -> None:
    gm = mlp().eval()
    out = gm.graph.output_node()
    gm.register_buffer("scale", torch.tensor([0.5, -3.0, 96.0]))
    with gm.graph.inserting_before(out):
        twice = gm.graph.call_function(operator.mul, (gm.graph.get_attr("scale"), 2.0))
        scaled = gm.graph.call_function(operator.mul, (out.args[0], twice))
    out.args = (scaled,)
    gm.recompile()
    frozen = baked(gm)
    x = torch.randn(20, 6)
    assert torch.equal(frozen(x), gm(x))
    assert sum(1 for n in frozen.graph.nodes if n.op == "get_attr") == 5
    assert all(str(n.target).startswith("pq.") for n in frozen.graph.nodes if n.op == "get_attr")


def test_quantizers_of_other_packages_are_frozen_through_their_formats() -> None:
    class Theirs(Quantizer):
        rounding, overflow = "TRN", "SAT"

        def kif(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
            return torch.tensor(1.0), torch.tensor(2.0), torch.tensor(5.0)

        @property
        def calibrated(self) -> bool:
            return True

        def forward(self, x: Tensor) -> Tensor:
            return (x * 32).floor().clamp(-128, 127) / 32

    gm = mlp().eval()
    gm.pq.x_quantizer, gm.pq.a_weight_quantizer = Theirs(), Theirs()
    frozen = baked(gm)
    x = torch.randn(20, 6) * 3
    assert torch.equal(frozen(x), gm(x))
    assert type(frozen.pq.x_quantizer) is FixedQuantizer


# ---- bad input


def test_all_findings_come_at_once_with_their_places() -> None:
    gm = mlp().eval()
    out = gm.graph.output_node()
    gm.register_buffer("odd", torch.tensor([0.1, 1.0, 1e-5]))
    with gm.graph.inserting_before(out):
        added = gm.graph.call_function(operator.add, (out.args[0], gm.graph.get_attr("odd")))
    out.args = (added,)
    gm.pq.x_quantizer = CalibratedQuantizer(8)
    with torch.no_grad():
        gm.b.weight[0, 0] = float("nan")
    before = str(gm.graph)
    with pytest.raises(LoweringError) as caught:
        bake_weights(gm)
    codes = {(p.code, p.place.node) for p in caught.value.problems}
    weight = next(n for n in gm.graph.nodes if n.target == "pq.b_weight_quantizer")
    assert codes == {("PQ307", "pq_x_quantizer"), ("PQ305", weight.name), ("PQ202", "odd")}
    assert all(p.remedy for p in caught.value.problems)
    assert str(gm.graph) == before
    assert place(weight).node == weight.name


def test_formats_too_wide_for_the_parameter_are_named_with_the_node() -> None:
    gm = mlp().eval()
    gm.pq.b_weight_quantizer = DynamicQuantizer(30)
    with pytest.raises(LoweringError) as caught:
        bake_weights(gm)
    assert (caught.value.code, caught.value.place.node) == (
        "PQ306",
        next(n.name for n in gm.graph.nodes if n.target == "pq.b_weight_quantizer"),
    )
