"""What a constraint wants to keep: N:M, PACA's patterns, DSP and BRAM groups, and the knapsack that chooses among them."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.config import MDMMPruning
from pquant_fx.errors import ConfigError
from pquant_fx.prune import Layout, MDMMMask, Member
from pquant_fx.prune.hardware_groups import group_costs, hardware_groups, rows_per_memory
from pquant_fx.prune.knapsack import fill_knapsack
from pquant_fx.prune.patterns import dominant_patterns, kernels_of, nearest_pattern, restore_kernels, strongest_positions
from pquant_fx.prune.supports import PatternSupport
from tests.mdmm_masks import AT_ONCE, begun


# ---- N:M
def test_of_every_four_inputs_two_stay_and_n_falls_from_m() -> None:
    w = torch.randn(3, 8, 2, 2)
    mask = begun(w, metric_type="NMSparsity", nm="2:4", **AT_ONCE)
    groups = mask.mask.permute(0, 2, 3, 1).reshape(-1, 4)
    assert groups.sum(1).unique().tolist() == [2]
    largest = w.abs().permute(0, 2, 3, 1).reshape(-1, 4).topk(2).indices
    assert bool((groups.gather(1, largest) == 1).all())
    slow = begun(w, steps=10, metric_type="NMSparsity", nm="1:4", ramp_fraction=1.0, interval=1)
    kept = [float(slow.mask.mean())]
    for step in range(1, 11):
        MDMMMask.step([Member(slow, w)], step, 10)
        kept.append(float(slow.mask.mean()))
    assert kept == sorted(kept, reverse=True)
    assert set(kept) == {1.0, 0.75, 0.5, 0.25}


# ---- PACA
def test_kernels_are_cut_and_put_back() -> None:
    for layout, shape in ((Layout(), (4, 3, 2, 3)), (Layout(1, 0, 2), (4, 3, 2, 3)), (Layout(), (4, 3, 5))):
        w = torch.randn(shape)
        kernels = kernels_of(w, layout)
        assert torch.equal(restore_kernels(kernels, w, layout), w)
        assert kernels.shape[1] == w[0, 0].numel()
    assert torch.equal(kernels_of(w, Layout())[1], w[0, 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=30), st.floats(0, 1), st.integers(1, 6))
def test_dominant_patterns_are_the_fewest_that_cover(codes: list[int], coverage: float, most: int) -> None:
    supports = torch.tensor([[float(c >> n & 1) for n in range(4)] for c in codes])
    ranked = sorted(Counter(codes).items(), key=lambda item: (-item[1], item[0]))
    expected, covered = [], 0
    for code, times in ranked:
        expected.append(code)
        covered += times
        if covered >= coverage * len(codes):
            break
    got = dominant_patterns(supports, coverage, most)
    assert [sum(int(b) << n for n, b in enumerate(row)) for row in got.tolist()] == expected[:most]


def slow_distance(kernel: Tensor, pattern: Tensor, epsilon: float, distance: str) -> float:
    if distance == "cosine":
        length = float(kernel.norm() * pattern.norm())
        return 1 - float(kernel.abs() @ pattern) / length if length else 1.0
    differing = [n for n in range(len(kernel)) if (abs(float(kernel[n])) > epsilon) != bool(pattern[n])]
    return sum(1.0 if distance == "hamming" else abs(float(kernel[n])) for n in differing)


@pytest.mark.parametrize("distance", ["valued_hamming", "hamming", "cosine"])
def test_the_nearest_pattern_by_brute_force(distance: str) -> None:
    torch.manual_seed(1)
    kernels = torch.randn(200, 9) * (torch.rand(200, 9) > 0.4)
    kernels[0] = 0
    patterns = (torch.rand(7, 9) > 0.5).float()
    got = nearest_pattern(kernels, patterns, 0.05, distance)
    for kernel, index in zip(kernels, got.tolist()):
        distances = [slow_distance(kernel, p, 0.05, distance) for p in patterns]
        assert distances[index] == pytest.approx(min(distances), abs=1e-5)
        if distance == "hamming":
            assert index == distances.index(min(distances))


def test_distances_differ() -> None:
    kernel = torch.tensor([[1.0, 0.2, 0.2, 0.0]])
    patterns = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 1.0, 0]])
    assert [int(nearest_pattern(kernel, patterns, 1e-3, d)) for d in ("valued_hamming", "hamming", "cosine")] == [0, 1, 0]


def test_patterns_are_found_after_the_kernels_are_sparse_and_then_stand() -> None:
    torch.manual_seed(0)
    w = torch.randn(16, 8, 3, 3)
    mask = begun(w, 0.55, steps=10, metric_type="PACAPatternSparsity", selection_fraction=0.5, num_patterns_to_keep=6, interval=1)
    assert isinstance(mask.support, PatternSupport)
    for step in range(1, 11):
        MDMMMask.step([Member(mask, w)], step, 10)
        assert int(mask.support.found) == (6 if step >= 5 else 0)
        if step == 4:
            assert len(kernels_of(mask.mask, Layout()).unique(dim=0)) > 6
        if step == 5:
            before = mask.support.patterns.clone()
        w = w + 0.1 * torch.randn_like(w)
    used = kernels_of(mask.mask, Layout()).unique(dim=0)
    assert len(used) <= 6
    assert torch.equal(mask.support.patterns, before)
    assert used.sum(1).tolist() == [4.0] * len(used)  # round(0.45 * 9) positions each
    assert "support.patterns" in mask.state_dict()


def test_what_chooses_patterns() -> None:
    torch.manual_seed(0)
    w = torch.randn(16, 8, 3, 3)
    options = {"metric_type": "PACAPatternSparsity", "selection_fraction": 0.0, **AT_ONCE}
    found = [int(begun(w, 0.8, **options, beta=b, num_patterns_to_keep=n).support.found) for b, n in ((0.75, 16), (0.75, 4), (0.1, 16))]
    assert found[0] == 16
    assert found[1] == 4
    assert found[2] < 16
    assert strongest_positions(torch.tensor([[3.0, -4.0, 1.0]]), 1).tolist() == [[0, 1, 0]]
    kernels = torch.zeros(1, 1, 3, 3)
    kernels[0, 0, 0, 0], kernels[0, 0, 1, 1] = 1.0, 0.01
    for epsilon, entries in ((1e-3, 2), (0.1, 1)):
        mask = begun(kernels, 0.55, **{**options, "epsilon": epsilon})
        assert int(mask.mask.sum()) == entries


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 2, 8, padding=4), nn.Conv2d(1, 2, 1)])
def test_kernels_that_can_have_no_pattern_are_refused_by_name(layer: nn.Conv2d) -> None:
    pruning = {"pruning_method": "mdmm", "metric_type": "PACAPatternSparsity"}
    with pytest.raises(ConfigError) as caught:
        pq.compile(nn.Sequential(layer), {"preset": "float", "pruning_parameters": pruning}, torch.randn(2, 1, 8, 8))
    assert caught.value.code == "PQ407"
    assert "kernels" in str(caught.value)
    assert caught.value.problems[0].place is not None


def test_large_kernels_up_to_62_positions() -> None:
    w = torch.randn(2, 2, 2, 31)
    mask = begun(w, 0.9, metric_type="PACAPatternSparsity", selection_fraction=0.0, **AT_ONCE)
    assert kernels_of(mask.mask, Layout()).sum(1).tolist() == [6.0] * 4


# ---- hardware
def test_rows_of_a_memory() -> None:
    expected = {1: 36, 4: 9, 6: 6, 9: 4, 12: 3, 18: 2, 36: 1, 8: 9, 16: 5, 10: 8, 5: 15, 24: 3}
    assert {width: rows_per_memory(width) for width in expected} == expected


def test_groups_follow_the_order_of_the_resource_strategy() -> None:
    w = torch.arange(2 * 3 * 2 * 2).float().reshape(2, 3, 2, 2)
    asked = MDMMPruning(metric_type="FPGAAwareSparsity", rf=3)
    assert hardware_groups(w, asked, Layout()).cut(w)[:2].tolist() == [[0, 4, 8], [1, 5, 9]]  # the channels of a position
    asked = MDMMPruning(metric_type="FPGAAwareSparsity", rf=3, target_resource="DSP+BRAM", precision=16)
    groups = hardware_groups(w, asked, Layout())
    assert groups.size == 5 * 3
    assert group_costs(w, asked, groups).tolist() == [[5, 1], [3, 1]]  # 8 rows
    only = MDMMPruning(metric_type="FPGAAwareSparsity", rf=3, target_resource="BRAM", precision=8)
    assert group_costs(w, only, hardware_groups(w, only, Layout())).tolist() == [[1]]


def test_the_reuse_factor_has_to_divide() -> None:
    net = nn.Sequential(nn.Linear(5, 3))
    pruning = {"pruning_method": "mdmm", "metric_type": "FPGAAwareSparsity", "rf": 4}
    with pytest.raises(ConfigError) as caught:
        pq.compile(net, {"preset": "float", "pruning_parameters": pruning}, torch.randn(2, 5))
    assert caught.value.code == "PQ407"
    assert "rf: 3, 5, 1 or 15" in caught.value.remedy


@pytest.mark.parametrize("resource", ["DSP", "BRAM", "DSP+BRAM"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_resources_fall_to_the_share(resource: str, scope: str) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(16, 16), torch.randn(16, 16) ** 3, torch.randn(8, 16)]
    asked = MDMMPruning(
        metric_type="FPGAAwareSparsity", rf=4, target_resource=resource, precision=18, target_sparsity=0.6, scope=scope, ramp_fraction=0.0
    )  # type: ignore[arg-type]
    members = [Member(MDMMMask(w, asked), w) for w in weights]
    MDMMMask.begin(members, 10)
    rows = [m.mask.reshape(-1, 4) for m, _ in members]
    assert all(bool((r.amax(1) == r.amin(1)).all()) for r in rows)  # a DSP is saved whole or not at all
    memories = [r.amax(1).reshape(-1, 2) for r in rows]
    if "BRAM" in resource:
        assert all(bool((m.amax(1) == m.amin(1)).all()) for m in memories)
    used = [float(r.amax(1).sum()) for r in rows]
    total = [len(r) for r in rows]
    assert sum(used) <= 0.4 * sum(total) < sum(used) + (2 if "BRAM" in resource else 1) * (3 if scope == "layer" else 1)
    assert (used[0] / total[0] != used[1] / total[1]) == (scope == "global")


def test_precision_and_latency() -> None:
    w = torch.randn(12, 12)
    sizes = [begun(w, metric_type="FPGAAwareSparsity", rf=rf, **AT_ONCE).support.groups.size for rf in (1, 4)]
    assert sizes == [1, 4]  # without reuse each weight has a DSP of its own
    more = [
        begun(w, metric_type="FPGAAwareSparsity", rf=4, precision=p, bram_width=b, target_resource="BRAM", **AT_ONCE).support.groups.size
        for p, b in ((18, 36), (9, 36), (9, 18))
    ]
    assert more == [8, 16, 8]


# ---- knapsack
def exhaustive(values: list[float], costs: list[tuple[int, ...]], budget: tuple[int, ...]) -> float:
    best = 0.0
    for choice in product((0, 1), repeat=len(values)):
        used = [sum(c[k] * x for c, x in zip(costs, choice)) for k in range(len(budget))]
        if all(u <= b for u, b in zip(used, budget)):
            best = max(best, sum(v * x for v, x in zip(values, choice)))
    return best


ITEMS = st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=9)


@settings(max_examples=80, deadline=None)
@given(ITEMS, st.integers(0, 15))
def test_one_resource_is_filled_best(items: list[tuple[float, int, int]], budget: int) -> None:
    values, costs = [i[0] for i in items], [(i[1],) for i in items]
    chosen = fill_knapsack(torch.tensor(values), torch.tensor(costs).float(), torch.tensor([float(budget)]))
    assert sum(c[0] * x for c, x in zip(costs, chosen.tolist())) <= budget
    assert sum(v * x for v, x in zip(values, chosen.tolist())) == pytest.approx(exhaustive(values, costs, (budget,)), rel=1e-5)


@settings(max_examples=80, deadline=None)
@given(ITEMS, st.integers(0, 15), st.integers(0, 9))
def test_of_several_resources_every_choice_fits_and_is_full(items: list[tuple[float, int, int]], first: int, second: int) -> None:
    values, costs, budget = torch.tensor([i[0] for i in items]), torch.tensor([i[1:] for i in items]).float(), torch.tensor([first, second])
    chosen = fill_knapsack(values, costs, budget)
    left = budget - costs.T @ chosen
    assert bool((left >= 0).all())
    assert not any(bool((cost <= left).all()) for cost in costs[chosen == 0])


def test_prices_come_close_to_the_best() -> None:
    torch.manual_seed(0)
    shares = []
    for _ in range(40):
        values, costs = torch.rand(10) + 0.1, torch.randint(1, 6, (10, 2)).float()
        chosen = fill_knapsack(values, costs, torch.tensor([12.0, 12.0]))
        best = exhaustive(values.tolist(), [tuple(int(c) for c in row) for row in costs.tolist()], (12, 12))
        shares.append(float(values @ chosen) / best)
    assert sum(shares) / len(shares) > 0.97
    assert min(shares) > 0.8


def test_equal_costs_keep_the_largest_and_the_share_is_met_to_the_last() -> None:
    values = torch.tensor([0.3, 0.9, 0.5, 0.9, 0.1, 0.2, 0.25, 0.15, 0.05, 0.12])
    assert fill_knapsack(values, torch.ones(10, 2), torch.tensor([(1 - 0.9) * 10, 5.0])).nonzero().tolist() == [[3]]
    assert int(fill_knapsack(values, torch.zeros(10, 1), torch.zeros(1)).sum()) == 10
    assert fill_knapsack(values[:0], torch.ones(0, 1), torch.ones(1)).numel() == 0
