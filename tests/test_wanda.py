"""Wanda: the published scores, per output and per layer, N:M, channels of convolutions, batch counts, settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant_fx.config import WandaPruning, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.prune import Layout, Member, WandaMask
from pquant_fx.prune.pruner import TRAINING

PAPER = torch.tensor([[4.0, 0, 1, -1], [3, -2, -1, -3], [-3, 1, 0, 2]])
NORMS = torch.tensor([1.0, 2, 8, 3])


def alone(_: Tensor) -> None:
    """One process has seen everything."""


def made(weight: Tensor, x: Tensor, budget: float = 0.5, layout: Layout | None = None, **options: Any) -> WandaMask:
    """A mask that saw `x` and pruned."""
    mask = WandaMask(weight, WandaPruning(**options), layout).train()
    mask.enter(TRAINING)
    mask.budget.fill_(budget)
    mask.statistics.begin()
    mask.statistics(x)
    mask.statistics.gather(alone)
    mask.prune(weight)
    return mask


# ---- scores
def test_scores_and_mask_of_the_paper() -> None:
    x = torch.diag(NORMS)  # one sample a feature
    mask = made(PAPER, x)
    scores = mask.scores(PAPER).squeeze(1) * math.sqrt(len(x))
    torch.testing.assert_close(scores, torch.tensor([[4.0, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]))
    assert mask.mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
    assert not mask.statistics.is_collecting


def test_n_of_every_m_are_pruned() -> None:
    x = torch.diag(NORMS)
    assert made(PAPER, x, N=2, M=4).mask.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]
    assert made(PAPER, x, N=1, M=4).mask.sum(1).tolist() == [3, 3, 3]
    assert made(PAPER, x, N=2, M=3).mask.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]]  # the rest of one keeps its share


def test_weights_may_be_compared_within_the_whole_layer() -> None:
    mask = made(PAPER, torch.diag(NORMS), comparison_group="layer")
    assert mask.mask.tolist() == [[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]  # the 6 largest scores of 12
    assert made(torch.ones(1, 1), torch.ones(2, 1), 0.9, comparison_group="layer").mask.all()  # a single weight stays


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["output", "layer"]), st.booleans(), st.booleans(), st.floats(0, 0.99), st.integers(0, 9))
def test_what_is_pruned_stays_pruned(group: str, exact: bool, pattern: bool, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, x = torch.randn(5, 8, generator=generator), torch.randn(7, 8, generator=generator)
    options: dict[str, Any] = {"comparison_group": group, "exact_sparsity": exact, **({"N": 3, "M": 4} if pattern else {})}
    mask = WandaMask(w, WandaPruning(**options)).train()
    mask.enter(TRAINING)
    mask.budget.fill_(share)
    gone = []
    for progress in (0.4, 0.7, 1.0):
        mask.statistics.begin()
        mask.statistics(x * (torch.rand(8, generator=generator) < 0.5))  # other inputs are silent, and weights differ, each time
        mask.statistics.gather(alone)
        mask.prune(torch.randn(5, 8, generator=generator), progress)
        gone.append(mask.mask == 0)
    assert bool((gone[0] <= gone[1]).all())
    assert bool((gone[1] <= gone[2]).all())
    if pattern:
        assert [int(g.sum()) for g in gone] == [10, 20, 30]  # of every 4: 1, 2, 3
    elif group == "layer":
        assert [int(g.sum()) for g in gone] == [min(round(share * p * 40), 39) for p in (0.4, 0.7, 1.0)]


def test_all_leading_axes_of_a_linear_layer_count() -> None:
    torch.manual_seed(0)
    w, x = torch.randn(4, 6), torch.randn(3, 5, 6)
    assert torch.equal(made(w, x).scores(w), made(w, x.reshape(15, 6)).scores(w))
    expected = w.abs() * x.reshape(15, 6).norm(dim=0) / math.sqrt(15)
    torch.testing.assert_close(made(w, x).scores(w).squeeze(1), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_channels_of_a_convolution_within_their_group(groups: int) -> None:
    torch.manual_seed(0)
    w, x = torch.randn(8, 4 // groups, 3, 3), torch.randn(5, 4, 6, 6) * torch.tensor([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)
    mask = made(w, x, 0.5, Layout(groups=groups), exact_sparsity=False)
    norms = x.square().mean((0, 2, 3)).sqrt()
    for o in range(8):
        first = o // (8 // groups) * (4 // groups)
        scores = w[o].abs() * norms[first : first + 4 // groups].reshape(-1, 1, 1)
        removed = math.floor(0.5 * scores.numel())
        lowest = scores.flatten().sort().values[removed - 1]
        assert torch.equal(mask.mask[o], (scores > lowest).float())


def test_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    w, x = torch.randn(4, 3, 2, 2), torch.randn(5, 4, 6, 6)  # 4 inputs, 2 groups of 3 outputs
    layout = Layout(outputs=1, inputs=0, groups=2)
    norms = x.square().mean((0, 2, 3)).sqrt()
    scores = layout.rows(w.abs() * norms.reshape(4, 1, 1, 1))
    torch.testing.assert_close(made(w, x, 0.5, layout).scores(w), scores)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 0.99), st.booleans(), st.integers(0, 9))
def test_counts_of_each_output(outputs: int, inputs: int, share: float, exact: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, x = torch.randn(outputs, inputs, generator=generator), torch.randn(7, inputs, generator=generator)
    mask = made(w, x, share, exact_sparsity=exact)
    gone = (mask.mask == 0).sum(1)
    floor = math.floor(share * inputs + 1e-9)
    assert bool((gone >= min(floor, inputs - 1)).all())
    assert bool((gone < inputs).all())
    assert bool((gone <= floor + exact).all())
    if exact and floor + 1 < inputs:
        assert int(gone.sum()) == round(share * outputs * inputs)
    for row, kept, scores in zip(w, mask.mask, mask.scores(w).squeeze(1)):
        assert kept.all() or not kept.any() or scores[kept == 0].max() <= scores[kept == 1].min(), row


@pytest.mark.parametrize("w", [torch.randn(3, 1), torch.randn(4, 1, 1, 1)])
def test_a_single_weight_stays(w: Tensor) -> None:
    x = torch.randn(5, 1) if w.dim() == 2 else torch.randn(5, 4, 2, 2)
    assert bool(made(w, x, 0.9, Layout(groups=1 if w.dim() == 2 else 4)).mask.all())


def test_an_all_zero_layer_and_silent_inputs() -> None:
    assert made(torch.zeros(2, 4), torch.zeros(3, 4)).mask.tolist() == [[0, 0, 1, 1]] * 2  # of equal ones those of lower index go


# ---- when
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"N": 2}, "N"),
        ({"M": 4}, "M"),
        ({"N": 4, "M": 4}, "N"),
        ({"N": 5, "M": 4}, "N"),
        ({"sparsity": 1}, "sparsity"),
        ({"t_delta": 0}, "t_delta"),
        ({"iterations": 0}, "iterations"),
        ({"comparison_group": "network"}, "comparison_group"),
    ],
)
def test_settings_that_can_not_be(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "wanda", **section}})
    assert [(p.code, p.what.partition(":")[0]) for p in caught.value.problems] == [("PQ407", f"pruning_parameters.{key}")]


def test_members_keep_their_order() -> None:
    masks = [Member(WandaMask(w, WandaPruning(t_start_collecting_batch=0, t_delta=1)), w) for w in (torch.ones(2, 3), torch.ones(2, 2))]
    WandaMask.begin(masks, 8)
    assert [m.statistics.is_collecting for m, _ in masks] == [True, False]
