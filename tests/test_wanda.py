"""Wanda: the published scores, per output, N:M, channels of convolutions, batch counts, one layer after the other, one shot."""

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
from pquant_fx.config import WandaPruning, load_config
from pquant_fx.errors import ConfigError, InputError, TrainingError
from pquant_fx.graph.dialect import module_of
from pquant_fx.prune import Layout, Member, WandaMask, collection_times
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.train.pruning import masks_of

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
def test_times_are_batches_of_the_training_stage() -> None:
    section = WandaPruning(t_start_collecting_batch=100, t_delta=50)
    assert collection_times(section, 4, 1000) == (100, 50)
    assert collection_times(section, 4, 400) == (100, 50)
    assert collection_times(section, 4, 200) == (50, 25)  # the last layer is pruned at step 150
    assert collection_times(section, 4, 5) == (0, 1)
    often = WandaPruning(t_start_collecting_batch=100, t_delta=50, iterations=3)
    assert collection_times(often, 4, 1000) == (100, 50)  # 12 windows, the last ends at step 700
    assert collection_times(often, 4, 700) == (75, 37)


def record(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which mask was pruned, and how many values of a channel it had seen."""
    found: list[tuple[str, int]] = []
    prune = WandaMask.prune

    def noted(mask: WandaMask, weight: Tensor, progress: float) -> None:
        found.append((f"{weight.shape[1]}", int(mask.statistics.total[-1])))
        prune(mask, weight, progress)

    monkeypatch.setattr(WandaMask, "prune", noted)
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))


def compiled(quantized: bool = True, epochs: int = 4, layers: dict[str, Any] | None = None, **pruning: Any) -> pq.CompiledModel:
    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 1, "epochs": epochs, "fine_tuning_epochs": 1, "batch_size": 10},
        "quantization_parameters": {"enable_quantization": quantized},
        "pruning_parameters": {"pruning_method": "wanda", "sparsity": 0.5, "t_start_collecting_batch": 3, "t_delta": 4, **pruning},
        "layers": layers or {},
    }
    return pq.compile(network(), config, torch.randn(20, 16, generator=torch.Generator().manual_seed(1)))


DATA = torch.randn(50, 16, generator=torch.Generator().manual_seed(2)), torch.arange(50) % 5


@pytest.mark.parametrize("quantized", [True, False])
def test_layers_are_pruned_one_after_the_other_and_the_rest_is_fine_tuning(quantized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(monkeypatch)
    model = compiled(quantized)
    rows = list(model.fit(DATA))  # 5 steps an epoch, 20 in the training stage
    assert found == [("16", 40), ("12", 40), ("8", 40)]
    shares = [row.sparsity for row in rows]
    assert shares[:2] == [0.0, 0.0]  # pre-training, and 5 of 20 steps
    assert 0 < shares[2] < shares[4]
    assert shares[4] == pytest.approx(0.5, abs=0.01)
    for mask, path in masks_of(model.graph_module):
        assert torch.equal(model.get_parameter(path) == 0, mask.mask == 0)
    if quantized:
        assert torch.equal(model.freeze()(DATA[0]), model.eval()(DATA[0]))
        assert "ActivationStatistics" not in model.freeze().text()


def test_layers_take_turns_until_the_share_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(monkeypatch)
    model = compiled(iterations=2, t_start_collecting_batch=0, t_delta=5, epochs=8, calculate_pruning_budget=False)
    rows = list(model.fit(DATA))  # 5 steps an epoch: an epoch a turn
    assert found == [("16", 50), ("12", 50), ("8", 50)] * 2
    weights = (16 * 12, 12 * 8, 8 * 5)
    turns = [*(0.875 * 0.5 * w for w in weights), *(0.125 * 0.5 * w for w in weights)]  # 1 - (1 - 1/2)^3 of the share at first
    for turn in range(1, 7):
        assert rows[turn].sparsity == pytest.approx(sum(turns[:turn]) / sum(weights), abs=0.01), turn
    assert rows[-1].sparsity == pytest.approx(0.5, abs=0.01)


def test_fewer_turns_where_there_are_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(monkeypatch)
    rows = list(compiled(iterations=20, epochs=2).fit(DATA))  # 10 steps for 60 turns
    assert found == [("16", 10), ("12", 10), ("8", 10)] * 3
    assert rows[-1].sparsity == pytest.approx(0.5, abs=0.01)


def test_too_few_steps_are_refused() -> None:
    masks = [Member(WandaMask(w, WandaPruning()), w) for w in (torch.ones(2, 3), torch.ones(2, 2))]
    for steps in (0, 1):
        with pytest.raises(TrainingError) as caught:
            WandaMask.begin(masks, steps)
        assert caught.value.code == "PQ412"
        assert "prune_by_wanda" in caught.value.remedy


def test_a_network_that_is_never_put_into_train_mode_is_told() -> None:
    model = compiled().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match="train") as caught, pq.session(model, epochs=6, steps_per_epoch=5) as s:
        for _ in range(6):
            for _ in range(5):
                (F.cross_entropy(model(DATA[0]), DATA[1]) + s.loss()).backward()
                optimizer.step()
                s.step()
            s.epoch_end()
    assert caught.value.code == "PQ412"


# ---- one shot
def shares(model: pq.CompiledModel) -> list[float]:
    return [round(float(m.sparsity(model.get_parameter(path))), 3) for m, path in masks_of(model.graph_module)]


def test_one_shot_is_sequential_and_leaves_the_weights_that_stay() -> None:
    model = compiled(quantized=False, calculate_pruning_budget=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = DATA[0]
    assert pq.prune_by_wanda(model, x) == pytest.approx(0.5, abs=0.01)
    for n in (0, 2, 4):  # an oracle in plain torch
        w = before[f"{n}.weight"]
        scores = w.abs() * x.norm(dim=0)
        mask = torch.ones_like(w).scatter_(1, scores.argsort(dim=1)[:, : w.shape[1] // 2], 0.0)
        assert torch.equal(model.get_parameter(f"{n}.weight"), w * mask), n
        x = F.relu(F.linear(x, w * mask, before[f"{n}.bias"]))


def test_one_shot_sees_quantized_inputs_keeps_modes_and_formats() -> None:
    model = compiled(calculate_pruning_budget=False).train()
    x = DATA[0]
    state = {k: v.clone() for k, v in model.state_dict().items() if "quantizer" in k}
    quantizer = next(m for n in model.graph_module.graph.nodes if isinstance(m := module_of(model.graph_module, n), pq.Quantizer))
    squares = quantizer(x).square().mean(0)
    pq.prune_by_wanda(model, x)
    mask = next(m for m, path in masks_of(model.graph_module) if path == "0.weight")
    torch.testing.assert_close(mask.statistics.means().float(), squares)
    assert not torch.equal(squares, x.square().mean(0))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())


def test_budgets_goals_and_exclusions() -> None:
    model = compiled(layers={"2": {"sparsity": 0.25}, "4": {"prune": False}}, sparsity=0.75, calculate_pruning_budget=False)
    pq.prune_by_wanda(model, DATA[0])
    assert shares(model) == [0.75, 0.25]
    with_budget = compiled(sparsity=0.6)
    assert pq.prune_by_wanda(with_budget, DATA[0]) == pytest.approx(0.6, abs=0.01)
    assert len(set(shares(with_budget))) == 3


def test_one_shot_refuses_what_it_can_not_do() -> None:
    model = compiled()
    for data, code in ((torch.full((4, 16), torch.nan), "PQ305"), (torch.randn(4, 3), "PQ409")):
        with pytest.raises(InputError) as wrong:
            pq.prune_by_wanda(model, data)
        assert wrong.value.code == code
    with pytest.raises(TrainingError) as empty:
        pq.prune_by_wanda(model, [])
    assert empty.value.code == "PQ410"
    assert shares(model) == [0, 0, 0]
    pq.prune_by_wanda(model, DATA[0])
    with pytest.raises(TrainingError) as again:
        pq.prune_by_wanda(model, DATA[0])
    with pytest.raises(TrainingError) as none:
        pq.prune_by_wanda(pq.compile(network(), "fixed8", DATA[0]), DATA[0])
    assert again.value.code == none.value.code == "PQ412"


# ---- settings
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


def test_a_goal_beside_a_pattern() -> None:
    with pytest.raises(ConfigError, match="N: 2 and M: 4") as caught:
        compiled(N=2, M=4, layers={"0": {"sparsity": 0.5}})
    assert (caught.value.code, caught.value.problems[0].place.module) == ("PQ407", "0")


def test_members_keep_their_order() -> None:
    masks = [Member(WandaMask(w, WandaPruning(t_start_collecting_batch=0, t_delta=1)), w) for w in (torch.ones(2, 3), torch.ones(2, 2))]
    WandaMask.begin(masks, 8)
    assert [m.statistics.is_collecting for m, _ in masks] == [True, False]
