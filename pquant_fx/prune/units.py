"""What goes with an output that a structured method removes: its bias, and the offset of the BatchNorm behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pquant_fx.prune.pruner import Pruner

__all__ = ["UnitMask"]


class UnitMask(nn.Module):
    """(values of the outputs, latent weight) -> values * `pruner.units(weight)`: a removed output gives 0, not its bias.

    values: (outputs,), or (..., outputs, *axes) with `trailing` axes. The pruner belongs to the weight's mask node and is only
    referred to.
    """

    def __init__(self, pruner: Pruner, trailing: int = 0) -> None:
        super().__init__()
        self.trailing = trailing
        self.__dict__["pruner"] = pruner

    def forward(self, values: Tensor, weight: Tensor) -> Tensor:
        pruner: Any = self.__dict__["pruner"]
        factor = pruner.layout.rows(pruner.mask).amax((1, 2)) if pruner.is_fixed else pruner.units(weight)
        return values if factor is None else values * factor.reshape(-1, *(1 for _ in range(self.trailing)))
