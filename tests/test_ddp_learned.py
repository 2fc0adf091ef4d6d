"""Learned bits under DistributedDataParallel: one budget, one count and the same bits on all ranks; SyncBatchNorm after compiling."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import pquant_fx as pq
from pquant_fx.graph.batch_correction import BatchCorrection
from tests.models import ConvBN
from tests.ranks import process_group

CONFIG = {
    "preset": "hgq_budget",
    "training_parameters": {"pretraining_epochs": 0, "epochs": 2, "fine_tuning_epochs": 1, "bits_freeze": 0.3},
    "quantization_parameters": {"overflow_mode_data": "WRAP"},
}


def train(rank: int, world: int, folder: str) -> None:
    with process_group(rank, world, folder):
        torch.manual_seed(0)
        net, examples = ConvBN(), torch.randn(16, 1, 8, 8)
        cost = pq.compile(net, CONFIG, examples).ebops().total
        model = pq.compile(net, CONFIG | {"budget": {"ebops": 0.9 * cost, "end_fraction": 0.5}}, examples)
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.Adam(pq.param_groups(parallel, 5e-2))
        torch.manual_seed(100 + rank)  # each rank sees other data
        x, y = torch.randn(32, 1, 8, 8) + rank, torch.randint(10, (32,))
        logs = []
        with pq.session(parallel, epochs=3, steps_per_epoch=4) as s:
            for _ in range(3):
                parallel.train()
                for part in range(4):
                    rows = slice(8 * part, 8 * part + 8)
                    optimizer.zero_grad()
                    (F.cross_entropy(parallel(x[rows]), y[rows]) + s.loss()).backward()
                    optimizer.step()
                    s.step()
                logs.append(s.epoch_end())
        torch.save({"state": model.state_dict(), "log": logs, "cost": cost}, f"{folder}/rank{rank}.pt")


def test_ranks_agree_on_bits_and_counts_though_running_statistics_differ(tmp_path: Path):
    mp.spawn(train, args=(2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    statistics = [k for k in one["state"] if k.endswith(("running_mean", "running_var"))]
    # what makes agreeing hard: a rank's own statistics are in its folded weights
    assert any(not torch.equal(one["state"][k], two["state"][k]) for k in statistics)
    assert [k for k in one["state"] if k not in statistics and not torch.equal(one["state"][k], two["state"][k])] == []
    assert one["log"] == two["log"]
    assert 0.85 * one["cost"] < one["log"][-1]["ebops"] <= 0.9 * one["cost"]


def convert(rank: int, world: int, folder: str) -> None:
    with process_group(rank, world, folder):
        model, x = small_batchnorm()
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert converted is model
        assert isinstance(model.get_submodule("bn"), nn.SyncBatchNorm)
        model.train()(x.chunk(world)[rank])
        torch.save({k: v for k, v in model.state_dict().items() if k.startswith("bn.")}, f"{folder}/rank{rank}.pt")


def small_batchnorm() -> tuple[pq.CompiledModel, torch.Tensor]:
    torch.manual_seed(0)
    net, x = ConvBN(), torch.randn(16, 1, 8, 8) * torch.arange(1, 17).reshape(-1, 1, 1, 1)
    return pq.compile(net, "fixed8", x), x


def test_a_compiled_model_can_be_converted_to_synchronised_statistics(tmp_path: Path):
    mp.spawn(convert, args=(2, str(tmp_path)), nprocs=2)
    model, x = small_batchnorm()
    model.train()(x)
    for n in (0, 1):
        found = torch.load(tmp_path / f"rank{n}.pt", weights_only=True)
        assert {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"} == set(found)
        for name, value in found.items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_conversion_is_taken_note_of_when_training_is_switched_on_or_a_session_begins():
    for begin in (lambda model: model.train(), lambda model: pq.session(model, epochs=1, steps_per_epoch=1)):
        model = small_batchnorm()[0]
        correction = next(m for m in model.modules() if isinstance(m, BatchCorrection))
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        begin(model)
        assert correction.synchronised
