"""Checkpoints under DistributedDataParallel: the first rank writes, without prefixes; both go on exactly, in the middle of an epoch."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import pquant_fx as pq
from pquant_fx.train.checkpoint import read_checkpoint
from tests.models import ConvBN
from tests.ranks import process_group
from tests.resumable import differences

CONFIG = {
    "preset": "hgq",
    "training_parameters": {"pretraining_epochs": 1, "epochs": 2, "fine_tuning_epochs": 1, "bits_freeze": 0.3},
    "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5, "interval": 1},
    "quantization_parameters": {"hgq_beta": 1e-4},
}
EPOCHS, STEPS = 4, 3


def train(rank: int, world: int, folder: str, until: int) -> None:
    """Two batches make a step. Stops after step number `until` with a checkpoint; where there is one it goes on from it."""
    warnings.simplefilter("ignore")
    with process_group(rank, world, folder, f"rendezvous{until}"):
        torch.manual_seed(0)
        model = pq.compile(ConvBN(), CONFIG, torch.randn(16, 1, 8, 8))
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.Adam(pq.param_groups(parallel, 1e-2))
        torch.manual_seed(100 + rank)  # each rank sees other data
        x, y = torch.randn(2 * STEPS, 8, 1, 8, 8) + rank, torch.randint(10, (2 * STEPS, 8))
        path = Path(folder) / "run.pt"
        found = path.exists()
        dist.barrier()
        with pq.session(parallel, EPOCHS, STEPS, optimizer) as s:
            if found:
                pq.resume(parallel, path, session=s, optimizer=optimizer)
            for epoch in range(s.epoch, EPOCHS):
                parallel.train()
                for step in range(s.steps, STEPS):
                    for half in (0, 1):
                        with nullcontext() if half else parallel.no_sync():
                            loss = F.cross_entropy(parallel(x[2 * step + half]), y[2 * step + half]) / 2
                            (loss + s.loss() if half else loss).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    s.step()
                    if epoch * STEPS + step + 1 == until:
                        pq.save(parallel, path, session=s, optimizer=optimizer)
                        dist.barrier()
                        return
                s.epoch_end()
        pq.save(parallel, f"{folder}/end.pt", session=s, optimizer=optimizer)
        torch.save(dict(model.named_parameters()), f"{folder}/rank{rank}.pt")
        dist.barrier()


def test_ranks_go_on_exactly_from_the_middle_of_an_epoch(tmp_path: Path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder, stops in ((straight, [99]), (stopped, [5, 99])):
        folder.mkdir()
        for until in stops:
            mp.spawn(train, args=(2, str(folder), until), nprocs=2)
    assert read_checkpoint(stopped / "run.pt")["session"]["position"] == {
        "epoch": 1,
        "steps": 2,
        "begun": 2,
        "ended": 1,
        "in_epoch": True,
    }
    expected, got = read_checkpoint(straight / "end.pt"), read_checkpoint(stopped / "end.pt")
    for part in ("model", "optimizer", "session"):
        assert differences(expected[part], got[part]) == []
    for folder in (straight, stopped):
        one, two = (torch.load(folder / f"rank{n}.pt", weights_only=True) for n in (0, 1))
        assert differences(one, two) == []
    assert not [name for name in got["model"] if name.startswith(("module.", "_orig_mod."))]
    again = pq.load(stopped / "end.pt", ConvBN())
    assert differences(expected["model"], again.state_dict()) == []
    found = sorted(name for name in os.listdir(stopped) if "rendezvous" not in name)
    assert found == ["end.pt", "rank0.pt", "rank1.pt", "run.pt"]  # one writer, and no rest of it
