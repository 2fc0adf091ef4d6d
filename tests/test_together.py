"""Masks and quantizers of all layers in one call (`together`): the numbers and gradients of one call each, and who is left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

import pquant_fx as pq
from pquant_fx.config import DSTPruning
from pquant_fx.graph.fusion import fused
from pquant_fx.graph.together import groups_of, together
from pquant_fx.prune import DSTMask, Layout
from pquant_fx.prune.pruner import FIXED, IDLE, TRAINING, Member
from pquant_fx.quantize import AccumulatorQuantizer, FixedQuantizer

ALL = slice(None)
SHAPES = [(5, 3), (4, 2, 3, 3), (7,), (2, 6)]


def values(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [(3 * torch.randn(shape)).to(dtype).requires_grad_() for shape in SHAPES]


def outcome(run: Callable[..., Sequence[Tensor]], modules: Sequence[nn.Module], given: list[Tensor]) -> list[Tensor]:
    """Results, gradients of the inputs, gradients of the modules' parameters."""
    torch.manual_seed(2)
    results = run(modules, given)
    learned = [p for m in modules for p in m.parameters()]
    sum((r * torch.randn_like(r)).sum() for r in results).backward()  # type: ignore[union-attr]
    found = [*results, *(v.grad for v in given), *(p.grad for p in learned)]
    assert all(isinstance(t, Tensor) for t in found)
    return found  # type: ignore[return-value]


def one_by_one(modules: Sequence[nn.Module], given: Sequence[Tensor]) -> list[Tensor]:
    return [module(value) for module, value in zip(modules, given)]


def same(modules: Sequence[nn.Module], dtype: torch.dtype = torch.float32, rtol: float = 0.0, of: slice = ALL) -> None:
    found = outcome(together, modules[of], values(dtype)[of])
    expected = outcome(one_by_one, copy.deepcopy(modules[of]), values(dtype)[of])
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("rounding", ["RND", "TRN", "RND_CONV", "S_RND", "RND_ZERO"])
@pytest.mark.parametrize("overflow", ["SAT", "SAT_SYM", "WRAP"])
def test_quantizers_of_one_format(rounding: str, overflow: str) -> None:
    torch.manual_seed(0)
    same([FixedQuantizer(1, 1, 3, rounding, overflow).eval() for _ in SHAPES])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantizers_of_several_formats(dtype: torch.dtype) -> None:
    formats: list[Any] = [(1, 1, 3), (1, 2, 3), (0, 1, 3), (torch.ones(2, 1), torch.tensor([[1.0], [0.0]]), torch.tensor(2.0))]
    same([FixedQuantizer(*kif) for kif in formats], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_biases_of_any_fraction(dtype: torch.dtype) -> None:
    fractions: list[Any] = [2.0, torch.tensor([[1.0]]), torch.arange(7.0), -1.0]
    same([AccumulatorQuantizer(f, calibrated=True) for f in fractions], dtype)
    same([AccumulatorQuantizer(f, calibrated=i > 0) for i, f in enumerate(fractions)], dtype)  # one has no format yet


def test_a_new_fraction_counts_at_once() -> None:
    quantizers, given = [AccumulatorQuantizer(1.0, calibrated=True) for _ in range(2)], [torch.tensor([0.3]), torch.tensor([0.3])]
    assert [t.item() for t in together(quantizers, given)] == [0.5, 0.5]
    quantizers[1].set_fraction(0.0)
    assert [t.item() for t in together(quantizers, given)] == [0.5, 0.0]
    quantizers[0].load_state_dict(quantizers[1].state_dict())
    assert [t.item() for t in together(quantizers, given)] == [0.0, 0.0]
    longer = [torch.tensor([0.6, 1.6]), torch.tensor([0.6])]
    assert [t.tolist() for t in together(quantizers, longer)] == [[1.0, 2.0], [1.0]]


def masks(kind: str, stage: int = TRAINING, scale: float = 0.0) -> list[DSTMask]:
    settings = DSTPruning(threshold_type=kind, threshold_init=0.4, scale_by_std=scale)  # type: ignore[arg-type]
    layouts = [Layout(), Layout(outputs=1, inputs=0, groups=2), Layout(), Layout(outputs=1, inputs=0)]
    made = [DSTMask(torch.zeros(shape), settings, layout) for shape, layout in zip(SHAPES, layouts)]
    for mask in made:
        mask.enter(stage)
        nn.init.uniform_(mask.threshold, 0.1, 1.5)
    return made


@pytest.mark.parametrize("kind", ["layerwise", "channelwise", "weightwise"])
@pytest.mark.parametrize("of", [ALL, slice(1), slice(0, 3, 2)])  # with transposed convolutions, and without
def test_thresholds(kind: str, of: slice) -> None:
    same(masks(kind), rtol=1e-5, of=of)  # sums in another order


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_thresholds_of_a_layers_own_width(scale: float) -> None:
    same(masks("channelwise", scale=scale), rtol=1e-5)


@pytest.mark.parametrize("stage", [IDLE, FIXED])
def test_masks_that_do_not_learn(stage: int) -> None:
    found = together(masks("layerwise", stage), values())
    assert all(torch.equal(one, two) for one, two in zip(found, values()))  # a fixed mask keeps all that it was not told to remove


def test_masks_of_the_same_shapes_do_not_share_what_they_know() -> None:
    kinds = masks("layerwise"), masks("weightwise")
    for _ in range(2):
        for made in kinds:
            for one, two in zip(together(made, values()), one_by_one(made, values())):
                assert torch.equal(one, two)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def test_a_training_step_is_that_of_the_graph() -> None:
    x = torch.randn(8, 4)
    model = pq.compile(Net(), {"preset": "fixed8", "pruning_parameters": {"pruning_method": "dst"}}, x)
    for mask in model.modules():
        if isinstance(mask, DSTMask):
            mask.enter(TRAINING)
            nn.init.uniform_(mask.threshold, 0.0, 0.3)
    assert sum(n.target is together for n in fused(model.graph_module).graph.nodes) >= 2  # masks; biases, and weights where they can
    twin = copy.deepcopy(model)
    for net, run in ((model, model), (twin, twin.graph_module)):
        net.train()
        run(x).square().sum().backward()
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.eval()(x), twin.eval().graph_module(x))


class Doubled(FixedQuantizer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def parameters_and(quantizers: Sequence[nn.Module], depth: int = 1) -> GraphModule:
    root, graph = nn.Module(), Graph()
    results = []
    for number, quantizer in enumerate(quantizers):
        root.register_parameter(f"w{number}", nn.Parameter(torch.tensor([0.3, 1.7])))
        value = graph.get_attr(f"w{number}")
        for level in range(depth):
            root.add_module(f"q{number}_{level}", quantizer)
            value = graph.call_module(f"q{number}_{level}", (value,))
        results.append(value)
    graph.output(tuple(results))
    return GraphModule(root, graph)


def test_who_forms_a_group() -> None:
    alike = parameters_and([FixedQuantizer(1, 2, 0), FixedQuantizer(1, 2, 1)])
    assert [len(group) for group in groups_of(alike, alike.graph).values()] == [2, 2]
    for others in ([Doubled(1, 2, 0), Doubled(1, 2, 0)], [FixedQuantizer(1, 2, 0), AccumulatorQuantizer(0.0)]):
        gm = parameters_and(others)
        assert not groups_of(gm, gm.graph)
    chained = parameters_and([FixedQuantizer(1, 2, 0), FixedQuantizer(1, 2, 1)], depth=2)
    assert sum(n.target is together for n in fused(chained).graph.nodes) == 2  # one a level: the second reads the first
    for one, two in zip(fused(chained)(), chained()):
        assert torch.equal(one, two)


def test_hooks_of_the_user_see_each_module() -> None:
    quantizers, seen = [FixedQuantizer(1, 2, 0) for _ in range(3)], []
    quantizers[1].register_forward_hook(lambda *given: seen.append(given[-1]))
    together(quantizers, [torch.tensor([1.6])] * 3)
    assert [t.item() for t in seen] == [2.0]


def test_transforms_see_each_module() -> None:
    quantizers = [FixedQuantizer(1, 2, 1) for _ in range(2)]
    batch = torch.randn(5, 3)
    found = torch.func.vmap(lambda a, b: tuple(together(quantizers, (a, b))))(batch, 2 * batch)
    for one, two in zip(found, one_by_one(quantizers, (batch, 2 * batch))):
        assert torch.equal(one, two)


def test_layers_of_several_types_get_their_thresholds_back() -> None:
    weights = [torch.tensor([-0.1, 0.2]), torch.tensor([0.1, 3.0], dtype=torch.float64), torch.tensor([0.1, 3.0])]
    made = [DSTMask(w, DSTPruning(threshold_type="layerwise", threshold_init=1.0)) for w in weights]
    for chosen in (slice(None), slice(0, 3, 2)):
        DSTMask.begin([Member(mask, w) for mask, w in zip(made[chosen], weights[chosen])], 1)
        assert [mask.threshold.item() for mask in made] == [0.0, 1.0, 1.0]
        nn.init.ones_(made[0].threshold)
        DSTMask.step([Member(made[0], weights[0])], 1, 1)
        assert [w.tolist()[0] for w in weights] == pytest.approx([-0.1, 0.1, 0.1])
        nn.init.ones_(made[0].threshold)
