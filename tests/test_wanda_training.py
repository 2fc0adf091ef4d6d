"""Wanda in training and after it: when layers are pruned, in which order and how often; pq.prune_by_wanda."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import WandaPruning
from pquant_fx.errors import ConfigError, InputError, TrainingError
from pquant_fx.graph.dialect import module_of
from pquant_fx.prune import Member, WandaMask, collection_times
from pquant_fx.train.pruning import masks_of

PAPER = torch.tensor([[4.0, 0, 1, -1], [3, -2, -1, -3], [-3, 1, 0, 2]])
NORMS = torch.tensor([1.0, 2, 8, 3])


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


def test_a_goal_beside_a_pattern() -> None:
    with pytest.raises(ConfigError, match="N: 2 and M: 4") as caught:
        compiled(N=2, M=4, layers={"0": {"sparsity": 0.5}})
    assert (caught.value.code, caught.value.problems[0].place.module) == ("PQ407", "0")
