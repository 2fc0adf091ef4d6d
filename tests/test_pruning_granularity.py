"""Axes of weights, selections and masks of whole outputs, against brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import MagnitudePruning
from pquant_fx.errors import ConfigError
from pquant_fx.prune import Layout, MagnitudeMask, Member, UnitMask
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.prune.selection import keep_largest_of_all, keep_pattern
from pquant_fx.train.pruning import masks_of
from tests.models import ConvBN


def mask_of(weight: Tensor, layout: Layout | None = None, **options: Any) -> MagnitudeMask:
    mask = MagnitudeMask(weight, MagnitudePruning(**options), layout)
    mask.enter(TRAINING)
    return mask


# ---- axes
LAYERS: list[tuple[nn.Module, Layout]] = [
    (nn.Linear(6, 4), Layout()),
    (nn.Conv1d(4, 6, 3), Layout()),
    (nn.Conv2d(4, 6, (3, 2), groups=2), Layout(groups=2)),
    (nn.ConvTranspose1d(4, 6, 3), Layout(1, 0)),
    (nn.ConvTranspose2d(4, 6, (3, 2), groups=2), Layout(1, 0, 2)),
]


@pytest.mark.parametrize(("layer", "layout"), LAYERS, ids=[type(m).__name__ + str(n) for n, (m, _) in enumerate(LAYERS)])
def test_a_row_is_what_one_output_reads(layer: Any, layout: Layout) -> None:
    """Zero a row: that output, and no other, is the bias."""
    torch.manual_seed(0)
    rows = layout.rows(layer.weight.detach()).clone()
    assert len(rows) == layout.units(layer.weight) == layer(example(layer)).shape[1]
    assert torch.equal(layout.restore(rows, layer.weight.shape), layer.weight)
    for unit in range(len(rows)):
        left = rows.clone()
        left[unit] = 0
        with torch.no_grad():
            layer.weight.copy_(layout.restore(left, layer.weight.shape))
            out = layer(example(layer)).transpose(0, 1).flatten(1)
            constant = [bool(torch.isclose(channel, layer.bias[n], atol=1e-6).all()) for n, channel in enumerate(out)]
            layer.weight.copy_(layout.restore(rows, layer.weight.shape))
        assert constant == [n == unit for n in range(len(rows))]


@pytest.mark.parametrize(("layer", "layout"), LAYERS, ids=[type(m).__name__ + str(n) for n, (m, _) in enumerate(LAYERS)])
def test_the_last_axis_of_rows_is_the_inputs(layer: Any, layout: Layout) -> None:
    """Keep the first input of each group only: outputs stop to depend on the others."""
    torch.manual_seed(0)
    rows = layout.rows(layer.weight.detach()).clone()
    rows[..., 1:] = 0
    x = example(layer)
    inputs = rows.shape[-1]
    with torch.no_grad():
        layer.weight.copy_(layout.restore(rows, layer.weight.shape))
        before = layer(x)
        for channel in range(x.shape[1]):
            y = x.clone()
            y[:, channel] += 1
            assert torch.equal(layer(y), before) == (channel % inputs != 0)


def example(layer: Any) -> Tensor:
    torch.manual_seed(1)
    sizes = {"Linear": (2, 6), "Conv1d": (2, 4, 5), "ConvTranspose1d": (2, 4, 5)}
    return torch.randn(sizes.get(type(layer).__name__, (2, 4, 5, 5)))


# ---- selections
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_n_of_every_m_stay(inputs: int, size: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, size))
    scores = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=4 * inputs, max_size=4 * inputs)))
    scores = scores.reshape(2, 2, inputs)
    expected = torch.zeros_like(scores)
    for o in range(2):
        for k in range(2):
            for start in range(0, inputs, size):
                members = list(range(start, min(start + size, inputs)))
                best = sorted(members, key=lambda n: (-float(scores[o, k, n]), n))
                expected[o, k, best[: math.ceil(keep * len(members) / size)]] = 1
    assert torch.equal(keep_pattern(scores, keep, size), expected)


def test_layers_compete_where_they_share_a_budget() -> None:
    a, b = torch.tensor([[0.1, 0.5]]), torch.tensor([0.2, 0.5, 0.9, 1.0])
    kept = keep_largest_of_all([a, b], 0.5)
    assert [k.tolist() for k in kept] == [[[0, 0]], [0, 1, 1, 1]]  # the tie at 0.5 goes to the first
    assert keep_largest_of_all([], 0.5) == []


# ---- magnitude masks
def test_structured_masks_remove_the_outputs_of_smallest_norm() -> None:
    w = torch.tensor([[0.3, 0.3], [0.5, 0.0], [0.1, 0.1], [2.0, 0.0]])
    mask = mask_of(w, granularity="structured")
    mask.update(w, 0.5)
    assert mask.mask.tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    assert mask.units(w).tolist() == [0, 1, 0, 1]
    mask.update(w, 1.0)
    assert mask.mask.sum() == 2  # the last output stays


def test_an_n_to_m_mask_anneals_to_its_pattern() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 8)
    mask = mask_of(w, granularity="nm", nm="1:4")
    members, kept = [Member(mask, w)], []
    MagnitudeMask.begin(members, 100)
    for step in range(1, 101):
        MagnitudeMask.step(members, step, 100)
        kept.append(set(mask.mask.reshape(4, 2, 4).sum(-1).flatten().tolist()))
    assert kept[0] == {4.0}
    assert kept[-1] == {1.0}
    assert {frozenset(k) for k in kept} == {frozenset({float(n)}) for n in (1, 2, 3, 4)}


def test_pruned_weights_decay_under_sr_ste() -> None:
    w = torch.tensor([0.1, 0.5], requires_grad=True)
    mask = mask_of(w, regrow=True, decay_pruned=0.5)
    mask.update(w, 0.5)
    (mask(w) * torch.tensor([2.0, 3.0])).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx([2.0 + 0.5 * 0.1, 3.0])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"granularity": "nm", "nm": "5:4"}, "nm"),
        ({"nm": "2-4"}, "nm"),
        ({"nm": "0:4"}, "nm"),
        ({"granularity": "structured", "scope": "global"}, "scope"),
        ({"regrow": False, "decay_pruned": 0.1}, "decay_pruned"),
        ({"threshold_decay": 1e-9}, "threshold_decay"),
    ],
)
def test_what_can_not_be_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        pq.compile(nn.Linear(4, 2), {"pruning_parameters": settings}, torch.randn(2, 4))
    assert caught.value.code == "PQ407"


# ---- biases of removed outputs
class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.head = nn.Linear(4 * 49, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("net", [Plain, ConvBN])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_removed_output_is_zero_behind_bias_and_batchnorm(net: Any, mode: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 8, 8)
    pruning = {"granularity": "structured", "sparsity": 0.5, "disable_pruning_for_layers": ["head"]}
    model = pq.compile(net(), {"preset": "fixed8", "pruning_parameters": pruning}, x)
    assert sum(isinstance(m, UnitMask) for m in model.modules()) == 2
    masks = [(m, p) for m, p in masks_of(model.graph_module) if isinstance(m, MagnitudeMask)]
    for mask, path in masks:
        mask.enter(TRAINING)
        mask.update(model.state_dict()[path], 0.5)
    model.train(mode == "train")
    seen: dict[str, Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            seen[n.name] = result = super().run_node(n)
            return result

    Watch(model.graph_module).run(x)
    relus = [v for name, v in seen.items() if name.startswith("relu")]
    assert relus
    for (mask, _), value in zip(masks, relus):
        dead = [bool((value[:, n] == 0).all()) for n in range(value.shape[1])]
        removed = (mask.layout.rows(mask.mask).amax((1, 2)) == 0).tolist()
        assert removed == dead
        assert 0 < sum(removed) < len(removed)


def test_the_bias_of_a_removed_output_gets_no_gradient_and_the_frozen_network_agrees() -> None:
    torch.manual_seed(0)
    settings = {"pretraining_epochs": 0, "epochs": 2, "fine_tuning_epochs": 1}
    pruning = {"granularity": "structured", "sparsity": 0.5, "disable_pruning_for_layers": ["head"]}
    x = torch.randn(64, 1, 8, 8)
    model = pq.compile(Plain(), {"preset": "fixed8", "training_parameters": settings, "pruning_parameters": pruning}, x)
    model.fit((x, torch.randint(3, (64,))))
    model.train()(x).sum().backward()
    for mask, path in masks_of(model.graph_module):
        units = mask.layout.rows(mask.mask).amax((1, 2))
        bias = model.get_parameter(path.replace("weight", "bias"))
        assert int((units == 0).sum()) == round(0.5 * len(units))
        assert bias.grad is not None
        assert bool((bias.grad[units == 0] == 0).all())
        assert bool((bias.grad[units != 0] != 0).any())
    assert torch.equal(model.freeze()(x), model.eval()(x))


# ---- a method of its own for a layer
def test_a_rule_gives_a_layer_its_own_method() -> None:
    config = {
        "preset": "fixed8",
        "pruning_parameters": {"sparsity": 0.5},
        "layers": {"2": {"pruning": {"pruning_method": "magnitude", "granularity": "nm", "nm": "1:2"}}, "4": {"prune": False}},
    }
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model = pq.compile(net, config, torch.randn(8, 16))
    kinds = {path: mask.settings.granularity for mask, path in masks_of(model.graph_module)}
    assert kinds == {"0.weight": "unstructured", "2.weight": "nm"}
