"""Which axes of a weight are its outputs and inputs, so that a method is written once for every layer that has weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

__all__ = ["Layout", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """outputs, inputs: the axes of a weight; all others are positions of a kernel. groups: of a convolution.

    A transposed convolution of g groups holds (C, O / g, ...): its output o of group n is entry (n-th block of axis 0, o).
    """

    outputs: int = 0
    inputs: int = 1
    groups: int = 1

    @property
    def transposed(self) -> bool:
        return self.outputs == 1

    def units(self, weight: Tensor) -> int:
        """How many outputs the layer has."""
        return weight.shape[self.outputs] * (self.groups if self.transposed else 1)

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as (outputs, kernel positions, inputs of the group): a copy or a view. One without input axis: (N, 1, 1)."""
        if weight.dim() < 2:
            return weight.reshape(-1, 1, 1)
        if self.transposed:
            outputs = weight.shape[1]
            grouped = weight.reshape(self.groups, weight.shape[0] // self.groups, outputs, -1)
            return grouped.permute(0, 2, 3, 1).reshape(self.groups * outputs, -1, grouped.shape[1])
        return weight.reshape(*weight.shape[:2], -1).transpose(1, 2)

    def restore(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `rows`, for a weight of `shape`."""
        if len(shape) < 2:
            return rows.reshape(shape)
        if self.transposed:
            return rows.reshape(self.groups, shape[1], -1, shape[0] // self.groups).permute(0, 3, 1, 2).reshape(shape)
        return rows.transpose(1, 2).reshape(shape)


def layout_of(node: Node) -> Layout:
    """Of the weight of a `weighted` node in canonical form."""
    if node.target in (F.conv_transpose1d, F.conv_transpose2d):
        groups = node.args[6]
        assert isinstance(groups, int)
        return Layout(outputs=1, inputs=0, groups=groups)
    if node.target in (F.conv1d, F.conv2d):
        groups = node.args[6]
        assert isinstance(groups, int)
        return Layout(groups=groups)
    return Layout()
