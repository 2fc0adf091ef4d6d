"""What a DSP is worth by the gradients of the task: against a plain loop, alike on all ranks, apart from the terms of the methods."""

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
from pquant_fx.config import MDMMPruning
from pquant_fx.errors import ConfigError
from pquant_fx.prune import Layout, MDMMMask, Member
from pquant_fx.train.pruning import masks_of
from tests.ranks import process_group

HARDWARE = {"metric_type": "FPGAAwareSparsity", "rf": 2, "precision": 16, "ramp_fraction": 0.0, "interval": 1}


def alone(_: Tensor) -> None:
    """One process has seen everything."""


def mask_of(weight: Tensor, value: str, **options: Any) -> MDMMMask:
    mask = MDMMMask(weight, MDMMPruning(**HARDWARE, target_sparsity=0.5, value=value, **options), Layout())
    MDMMMask.begin([Member(mask, weight)], 10)
    return mask.train()


W = torch.tensor([[3.0, 0.1, 1.0, 1.0], [0.5, 0.5, 2.0, -1.5]])
GRADS = [torch.tensor([[0.1, -1.0, 0.5, 2.0], [3.0, -3.0, 0.0, 0.1]]), torch.tensor([[0.3, 1.0, -0.5, 1.0], [-1.0, -1.0, 0.2, 0.3]])]


@pytest.mark.parametrize("value", ["l2", "l1", "gradient", "saliency"])
def test_values_are_those_of_a_plain_loop(value: str) -> None:
    mask, w = mask_of(W, value), W.clone().requires_grad_()
    for grad in GRADS:
        (mask(w) * grad).sum().backward()
        if mask.record is not None:
            mask.record.gather(alone)
    flat, mean, square = (
        W.flatten().tolist(),
        (0.9 * GRADS[0] + 0.1 * GRADS[1]).flatten().tolist(),
        (0.9 * GRADS[0] ** 2 + 0.1 * GRADS[1] ** 2).flatten().tolist(),
    )
    each = {
        "l2": lambda n: flat[n] ** 2,
        "l1": lambda n: abs(flat[n]),
        "gradient": lambda n: abs(flat[n] * mean[n]),
        "saliency": lambda n: flat[n] ** 2 * square[n],
    }[value]
    expected = [each(n) + each(n + 1) for n in range(0, 8, 2)]
    if value == "l2":
        expected = [e**0.5 for e in expected]
    assert mask.support.values(W).tolist() == pytest.approx(expected, rel=1e-5)
    best = sorted(range(4), key=lambda n: -expected[n])[:2]
    MDMMMask.step([Member(mask, W)], 10, 10)
    assert mask.mask.flatten().reshape(4, 2)[:, 0].nonzero().flatten().tolist() == sorted(best)


def test_the_choice_differs_from_that_by_norms() -> None:
    assert [mask_of(W, "l2").mask[:, ::2].flatten().tolist()] == [[1, 0, 0, 1]]
    mask, w = mask_of(W, "gradient"), W.clone().requires_grad_()
    assert mask.mask[:, ::2].flatten().tolist() == [1, 0, 0, 1]  # by norms, while no gradient was seen
    (mask(w) * GRADS[0]).sum().backward()
    assert mask.record is not None
    mask.record.gather(alone)
    MDMMMask.step([Member(mask, W)], 10, 10)
    assert mask.mask[:, ::2].flatten().tolist() == [0, 1, 1, 0]


def test_only_training_and_only_the_task_is_noted_and_reading_changes_nothing() -> None:
    mask, w = mask_of(W, "gradient"), W.clone().requires_grad_()
    before = {k: v.clone() for k, v in mask.state_dict().items()}
    mask(w)
    mask.eval()(w).sum().backward()
    term = mask.train().penalty(w)
    assert term is not None
    term.backward()
    assert all(torch.equal(v, before[k]) for k, v in mask.state_dict().items())
    mask(w).sum().backward()
    assert mask.record is not None
    assert torch.equal(mask.record.recent, torch.ones_like(W))


def test_group_lasso_adds_the_norms_of_the_groups() -> None:
    plain, lasso = (mask_of(W, "l2", group_lasso=factor).penalty(W) for factor in (0.0, 0.25))
    assert plain is not None
    assert lasso is not None
    norms = W.reshape(4, 2).norm(dim=1).sum()
    assert float(lasso - plain) == pytest.approx(0.25 * float(norms), rel=1e-5)


def test_values_belong_to_hardware() -> None:
    with pytest.raises(ConfigError, match="value") as caught:
        pq.load_config({"pruning_parameters": {"pruning_method": "mdmm", "value": "gradient"}})
    assert caught.value.code == "PQ407"


# ---- ranks, and a whole training
def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(pq.param_groups(model, 0.05))
    with pq.session(model, epochs=2, steps_per_epoch=4, optimizer=optimizer) as s:
        for _ in range(2):
            model.train()
            for a, b in zip(x, y):
                optimizer.zero_grad()
                (F.cross_entropy(model(a), b) + s.loss()).backward()
                optimizer.step()
                s.step()
            s.epoch_end()


def compiled() -> pq.CompiledModel:
    torch.manual_seed(0)
    pruning = {"pruning_method": "mdmm", **HARDWARE, "target_sparsity": 0.5, "value": "gradient"}
    config = {"preset": "float", "training_parameters": {"pretraining_epochs": 0}, "pruning_parameters": pruning}
    return pq.compile(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), config, torch.randn(8, 8))


def batches(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(4, 8, 8, generator=generator) + rank, torch.randint(4, (4, 8), generator=generator)


def worker(rank: int, world: int, folder: str) -> None:
    with process_group(rank, world, folder):
        model = compiled()
        train(DistributedDataParallel(model), *batches(rank))
        torch.save(model.state_dict(), f"{folder}/rank{rank}.pt")


def test_two_ranks_decide_as_one_that_sees_both_halves(tmp_path: Path) -> None:
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    model = compiled()
    (x0, y0), (x1, y1) = batches(0), batches(1)
    train(model, torch.cat((x0, x1), 1), torch.cat((y0, y1), 1))
    for mask, path in masks_of(model.graph_module):
        assert torch.equal(one[f"pq.{path}_mask.mask" if f"pq.{path}_mask.mask" in one else f"pq._{path}_mask.mask"], mask.mask)
        assert 0 < float(mask.mask.mean()) < 1
    noted = [k for k in one if k.endswith("record.mean")]
    assert len(noted) == 2
    for key in noted:  # each rank's loss is a mean over its half
        torch.testing.assert_close(one[key], 2 * model.state_dict()[key], rtol=1e-3, atol=1e-5)
