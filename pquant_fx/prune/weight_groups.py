"""A weight cut into groups of consecutive weights, the things that structured methods remove as one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pquant_fx.prune.layout import Layout

__all__ = ["WeightGroups"]


@dataclass(frozen=True)
class WeightGroups:
    """Groups of `size` weights that are consecutive in the order of hls4ml's resource strategy: output, kernel position, input.

    per_output: no group reaches into a second output. A last group that is shorter is filled with zeros.
    """

    layout: Layout
    size: int = 1
    per_output: bool = False

    def cut(self, weight: Tensor) -> Tensor:
        """The weight as (groups, size)."""
        if self.size == 1:
            return weight.reshape(-1, 1)
        lines = self._lines(weight)
        return F.pad(lines, (0, -lines.shape[1] % self.size)).reshape(-1, self.size)

    def amounts(self, weight: Tensor) -> Tensor:
        """The magnitude of each group, (groups,): |w| of single weights, else the L2 norm."""
        cut = self.cut(weight)
        return cut.squeeze(1).abs() if self.size == 1 else torch.linalg.vector_norm(cut, dim=1)

    def kept(self, mask: Tensor) -> Tensor:
        """Which groups a mask of the weight's shape keeps, (groups,)."""
        return self.cut(mask).amax(1)

    def spread(self, kept: Tensor, weight: Tensor) -> Tensor:
        """The mask of the weight's shape that keeps these groups, (groups,)."""
        if self.size == 1:
            return kept.reshape(weight.shape)
        lines = self._lines(weight)
        padded = kept[:, None].expand(-1, self.size).reshape(lines.shape[0], -1)[:, : lines.shape[1]]
        return self.layout.restore(padded.reshape(self.layout.rows(weight).shape), weight.shape)

    def _lines(self, weight: Tensor) -> Tensor:
        rows = self.layout.rows(weight)
        return rows.flatten(1) if self.per_output else rows.reshape(1, -1)
