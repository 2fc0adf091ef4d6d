"""A mode that fails where the host would wait for the device: .item(), bool(tensor), float(tensor), tolist()."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class NoSynchronisation(TorchDispatchMode):
    """`with NoSynchronisation():` raises AssertionError for an operation that reads a tensor on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))
