"""Two processes that train together, for tests under `torch.multiprocessing.spawn`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

__all__ = ["process_group"]


@contextmanager
def process_group(rank: int, world: int, folder: str, meeting: str = "rendezvous") -> Iterator[None]:
    """A gloo group for the body; the process ends with it, once all ranks are through.

    It ends without taking gloo down: one process in fifty aborts ("terminate called without an active exception") when torch
    2.13 does that, after all work is done. An error in the body goes its ordinary way.
    """
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/{meeting}", rank=rank, world_size=world)
    yield
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
