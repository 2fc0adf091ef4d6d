"""Structures of ordinary user models, under the names of the probe in which other front ends failed on them.

Each is a plain `nn.Module` with the sample shapes of its inputs; all axes have different lengths, so that a wrong
transpose shows. `STRUCTURES[name].model()` builds it with fixed random weights, `.inputs(batch)` its example inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Structure:
    name: str
    build: Callable[[], nn.Module]
    shapes: dict[str, tuple[int, ...]]
    integers: int = 0  # > 0: whole numbers below this, as float

    def model(self) -> nn.Module:
        torch.manual_seed(sum(map(ord, self.name)))
        model = self.build()
        for buffer in model.modules():
            if isinstance(buffer, nn.modules.batchnorm._BatchNorm) and buffer.track_running_stats:
                nn.init.uniform_(buffer.running_mean, -0.5, 0.5)
                nn.init.uniform_(buffer.running_var, 0.5, 2.0)
        return model

    def inputs(self, batch: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(batch)
        made: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            made[name] = torch.randn(batch, *shape, generator=generator)
            if self.integers:
                made[name] = torch.randint(self.integers, (batch, *shape), generator=generator).float()
        return made


STRUCTURES: dict[str, Structure] = {}


def structure(*, integers: int = 0, **shapes: tuple[int, ...]) -> Callable[[Any], Any]:
    """Register a module class, under its name in snake case or `NAME`."""

    def register(cls: Any) -> Any:
        STRUCTURES[cls.NAME] = Structure(cls.NAME, cls, shapes, integers)
        return cls

    return register


def load_all() -> dict[str, Structure]:
    """All structures, by name."""
    from tests import structures_control, structures_joins, structures_layers

    assert structures_control, (structures_joins, structures_layers)
    return STRUCTURES
