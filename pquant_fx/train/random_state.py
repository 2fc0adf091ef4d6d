"""Where all random number generators of a process stand, as plain data."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """The global generators of torch (CPU, and CUDA where it is in use), of Python and of numpy."""
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "python": random.getstate(),
        "numpy": _without_arrays(np.random.get_state(legacy=False)),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Let all of them go on from `state`. CUDA's are left alone where there are not as many devices as there were."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    np.random.set_state(_with_arrays(state["numpy"]))


def _without_arrays(value: Any) -> Any:
    """numpy arrays are not among what torch.load(weights_only=True) reads; the key of the Mersenne Twister is one."""
    if isinstance(value, Mapping):
        return {key: _without_arrays(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64))
    return value.item() if isinstance(value, np.generic) else value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_arrays(item) for key, item in value.items()}
    return value.numpy().astype(np.uint32) if isinstance(value, Tensor) else value
