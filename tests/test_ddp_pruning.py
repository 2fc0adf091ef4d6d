"""Methods that follow the weights, under DistributedDataParallel: the same masks, schedules and weights on all ranks, in every stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import pquant_fx as pq
from pquant_fx.train.pruning import masks_of
from tests.ranks import process_group

METHODS: dict[str, dict[str, Any]] = {
    "dst": {"pruning_method": "dst", "alpha": 0.02, "threshold_init": 0.1},
    "autosparse": {"pruning_method": "autosparse", "threshold_init": -2.5, "autotune_factor": 0.5, "autotune_epochs": 3},
    "cs": {"pruning_method": "cs", "threshold_init": 0.001, "threshold_decay": 1e-3},
    "pdp": {"pruning_method": "pdp", "sparsity": 0.5, "temperature": 1e-2},
    "pdp-structured": {"pruning_method": "pdp", "sparsity": 0.5, "structured_pruning": True},
    "mdmm": {"pruning_method": "mdmm", "target_sparsity": 0.5},
    "mdmm-learned": {
        "pruning_method": "mdmm",
        "target_sparsity": 0.5,
        "constraint_type": "LessThanOrEqual",
        "use_grad": True,
        "slack": True,
    },
}
QUANTIZED = {f"{name}-quantized": METHODS[name] for name in ("dst", "mdmm", "pdp")}
STAGES = [0, 1, 1, 2]


def made(name: str) -> pq.CompiledModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    config = {
        "preset": "fixed8" if name in QUANTIZED else "float",
        "training_parameters": {"pretraining_epochs": 1, "fine_tuning_epochs": 1, "pruning_first": name not in QUANTIZED},
        "pruning_parameters": (METHODS | QUANTIZED)[name],
    }
    return pq.compile(net, config, torch.randn(16, 12))


def batches(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(4, 8, 12, generator=generator) + rank, torch.randint(3, (4, 8), generator=generator)


def train(model: nn.Module, compiled: pq.CompiledModel, x: Tensor, y: Tensor, told: list[float] | None = None) -> dict[str, Any]:
    """One epoch of pre-training, two of training, one of fine-tuning; `told`: the losses of the epochs, else its own."""
    optimizer = torch.optim.SGD(pq.param_groups(model, 0.1))
    rows, stages, losses = [], [], []
    with pq.session(model, epochs=4, steps_per_epoch=4, optimizer=optimizer) as s:
        for epoch in range(4):
            model.train()
            total = 0.0
            stages.append(sorted({int(mask.stage) for mask, _ in masks_of(compiled.graph_module)}))
            for n in range(4):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[n]), y[n])
                (loss + s.loss()).backward()
                optimizer.step()
                s.step()
                total += loss.item() / 4
            losses.append(total if told is None else told[epoch])
            rows.append(s.epoch_end(losses[-1]))
    return {"state": compiled.state_dict(), "rows": rows, "stages": stages, "losses": losses}


def worker(rank: int, world: int, folder: str) -> None:
    with process_group(rank, world, folder):
        for name in METHODS | QUANTIZED:
            compiled = made(name)
            found = train(DistributedDataParallel(compiled), compiled, *batches(rank))
            torch.save(found, f"{folder}/{name}{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(2, str(folder)), nprocs=2)
    return folder


def of_ranks(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", METHODS | QUANTIZED)
def test_ranks_hold_the_same_bits_after_every_stage(name: str, trained: Path) -> None:
    one, two = of_ranks(trained, name)
    assert [k for k, v in one["state"].items() if not torch.equal(v, two["state"][k])] == []
    assert one["rows"] == two["rows"]
    assert one["losses"] != two["losses"]  # it can fail: the ranks saw different data
    assert one["stages"] == two["stages"] == [[stage] for stage in STAGES]
    assert 0.05 < one["rows"][-1]["sparsity"] < 0.95


@pytest.mark.parametrize("name", METHODS)
def test_ranks_decide_as_one_process_that_sees_both_halves(name: str, trained: Path) -> None:
    one, _ = of_ranks(trained, name)
    compiled, ((x0, y0), (x1, y1)) = made(name), (batches(0), batches(1))
    alone = train(compiled, compiled, torch.cat((x0, x1), 1), torch.cat((y0, y1), 1), told=one["losses"])
    assert alone["rows"] == one["rows"]
    for key, value in alone["state"].items():
        torch.testing.assert_close(one["state"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    masks = [key for key in alone["state"] if key.endswith("_mask.mask")]
    assert len(masks) == (1 if name == "pdp-structured" else 2)
    assert all(torch.equal(one["state"][key], alone["state"][key]) for key in masks)
