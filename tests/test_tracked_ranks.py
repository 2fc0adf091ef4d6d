"""Ranges that follow the batches are the same on all ranks, whatever each of them sees."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp

from pquant_fx.quantize import HGQData, TrackedQuantizer
from tests.learned_quantizers import calibrated
from tests.ranks import process_group


def worker(rank: int, world: int, folder: str) -> None:
    first = torch.tensor([[1.0, -1.0]])
    made = [TrackedQuantizer(8, (1, 2), momentum=0.5), HGQData((1, 2), 8, overflow="WRAP", safety_bits=0)]
    quantizers = [calibrated(q, first).train() for q in made]
    with process_group(rank, world, folder):
        x = torch.tensor([[[3.0, -0.5]], [[0.5, -40.0]]])[rank]
        for q in quantizers:
            q(x)
        torch.save([[t.detach() for t in q.kif()] for q in quantizers], f"{folder}/rank{rank}.pt")


def test_all_ranks_agree(tmp_path: Path) -> None:
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1))
    for a, b in zip(one, two):
        assert all(torch.equal(s, t) for s, t in zip(a, b))
    assert one[0][1].tolist() == [[1.0, 5.0]]  # (1 + 3) / 2 and (-1 - 40) / 2
    assert one[1][1].tolist() == [[2.0, 6.0]]
