"""The node that measures activations: nothing while idle, only training counts, every rank counts, copies and checkpoints go on alike."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import pquant_fx as pq
from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.fusion import rectified, statistics_of
from pquant_fx.train.pruning import masks_of
from tests.ranks import process_group
from tests.synchronisation import NoSynchronisation


def alone(_: Tensor) -> None:
    """One process has seen everything."""


@pytest.mark.parametrize(("quantity", "oracle"), [("square", torch.square), ("active", lambda x: x > 0), ("rectified", torch.relu)])
@pytest.mark.parametrize(("axis", "shape"), [(1, (4, 3, 5, 2)), (1, (4, 3, 5)), (-1, (4, 3)), (-1, (4, 5, 3))])
def test_means_over_everything_but_the_channels(quantity: Any, oracle: Any, axis: int, shape: tuple[int, ...]) -> None:
    node = ActivationStatistics(3, axis, quantity, "input").train()
    node.begin()
    batches = [torch.randn(shape, requires_grad=True), torch.randn(shape).double()]
    with NoSynchronisation():
        outs = [node(x) for x in batches]
    assert all(out is x for out, x in zip(outs, batches))
    node.gather(alone)
    values = torch.cat([oracle(x.detach()).double().movedim(axis, 0).reshape(3, -1) for x in batches], 1)
    torch.testing.assert_close(node.means(), values.mean(1), rtol=1e-5, atol=1e-6)


def test_only_training_counts_and_only_while_it_collects() -> None:
    node, x = ActivationStatistics(3, -1, "square", "input"), torch.randn(4, 3)
    node.train()(x)
    node.begin()
    node.eval()(x)
    assert not node.recent.any()
    node.train()(x)
    node.end()
    node(x)
    assert node.recent[-1].item() == 4
    node.begin()
    assert not node.recent.any()


def test_it_goes_on_from_copies_pickles_and_states() -> None:
    node, x = ActivationStatistics(3, -1, "square", "input").train(), torch.randn(4, 3)
    node.begin()
    node(x)
    node.gather(alone)
    node(x)
    fresh = ActivationStatistics(3, -1, "square", "input").train()
    fresh.load_state_dict(node.state_dict())
    for same in (fresh, copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert same.is_collecting
        same(x)
        same.gather(alone)
        assert int(same.total[-1]) == 12


# ---- in a network
def compiled(method: str, quantized: bool = True, net: nn.Module | None = None) -> pq.CompiledModel:
    torch.manual_seed(0)
    net = net or nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    options = {"wanda": {"sparsity": 0.5}, "activation_pruning": {"threshold": 0.45, "max_removed": 0.5}}[method]
    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 0, "fine_tuning_epochs": 0},
        "quantization_parameters": {"enable_quantization": quantized},
        "pruning_parameters": {"pruning_method": method, "t_start_collecting_batch": 0, "t_delta": 2, **options},
    }
    return pq.compile(net, config, torch.randn(16, 1, 8, 8))


@pytest.mark.parametrize("method", ["wanda", "activation_pruning"])
def test_the_graph_that_runs_has_none_while_idle_and_is_right_while_they_collect(method: str) -> None:
    model = compiled(method).train()
    plain = compiled(method).train()
    x = torch.randn(6, 1, 8, 8)
    assert statistics_of(model.graph_module)
    idle = model._fast
    assert not statistics_of(idle)
    assert model._fast is idle
    targets = [n.target for n in idle.graph.nodes]
    assert rectified in targets or F.relu not in targets  # fused as without them
    for mask, _ in masks_of(model.graph_module):
        mask.statistics.begin()
    watching = model._fast
    assert len(statistics_of(watching)) == len(statistics_of(model.graph_module))
    a, b = model(x), plain(x)
    torch.testing.assert_close(a, b)
    assert all(mask.statistics.recent[-1] > 0 for mask, _ in masks_of(model.graph_module))
    for mask, _ in masks_of(model.graph_module):
        mask.statistics.end()
    assert not statistics_of(model._fast)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_a_weight_of_two_places_sees_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.fc(F.relu(self.fc(x)))))

    for method, seen in (("wanda", {"fc.weight": 10, "head.weight": 5}), ("activation_pruning", {"fc.weight": 10})):
        torch.manual_seed(0)
        config = {"preset": "fixed8", "pruning_parameters": {"pruning_method": method}}
        model = pq.compile(Twice(), config, torch.randn(8, 6)).train()
        masks = {path: mask for mask, path in masks_of(model.graph_module)}
        for mask in masks.values():
            mask.statistics.begin()
        model(torch.randn(5, 6))
        assert {path: int(mask.statistics.recent[-1]) for path, mask in masks.items()} == seen


@pytest.mark.parametrize("method", ["wanda", "activation_pruning"])
def test_learned_bits_are_counted_past_them_and_freezing_drops_them(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    base = {"preset": "hgq"}
    pruned = {"preset": "hgq", "pruning_parameters": {"pruning_method": method}}
    x = torch.randn(32, 6)
    models = [pq.compile(copy.deepcopy(net), config, x) for config in (base, pruned)]
    assert models[0].ebops().total == models[1].ebops().total
    assert torch.equal(*(model.ebops_plan()().detach() for model in models))
    for model in models:
        model.calibrate(x)
    assert "tatistics" in models[1].text()
    assert models[1].freeze().text() == models[0].freeze().text()


# ---- ranks
def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pq.session(model, epochs=2, steps_per_epoch=4) as s:
        for _ in range(2):
            model.train()
            for n in range(4):
                optimizer.zero_grad()
                (F.cross_entropy(model(x[n]), y[n]) + s.loss()).backward()
                optimizer.step()
                s.step()
            s.epoch_end()


def batches(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(4, 6, 1, 8, 8, generator=generator) + rank, torch.randint(3, (4, 6), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def worker(rank: int, world: int, folder: str, method: str) -> None:
    with process_group(rank, world, folder):
        model = compiled(method, quantized=False, net=network())
        train(DistributedDataParallel(model), *batches(rank))
        torch.save({path: (mask.mask, mask.statistics.total) for mask, path in masks_of(model.graph_module)}, f"{folder}/rank{rank}.pt")


@pytest.mark.parametrize("method", ["wanda", "activation_pruning"])
def test_two_ranks_decide_as_one_that_sees_both_halves(method: str, tmp_path: Path) -> None:
    mp.spawn(worker, args=(2, str(tmp_path), method), nprocs=2)
    one, two = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    model = compiled(method, quantized=False, net=network())
    (x0, y0), (x1, y1) = batches(0), batches(1)
    train(model, torch.cat((x0, x1), 1), torch.cat((y0, y1), 1))
    for mask, path in masks_of(model.graph_module):
        for found in (one[path], two[path]):
            assert torch.equal(found[0], mask.mask)
            torch.testing.assert_close(found[1], mask.statistics.total, rtol=1e-4, atol=1e-4)
        assert 0 < float(mask.mask.mean()) < 1
