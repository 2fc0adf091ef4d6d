"""Operators of the dialect that torch has no function of one meaning for: nearest upsampling, rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

__all__ = ["embed", "upsample"]


def upsample(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Each element repeated: x (N, C, *S) -> (N, C, *(factor * size)), one whole factor for each of one or two spatial axes."""
    return F.interpolate(x, [size * factor for size, factor in zip(x.shape[2:], factors)], mode="nearest")


def embed(x: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """weight[x]: x (N, ...) whole numbers in any type, weight (rows, D) -> (N, ..., D).

    padding_idx: the row that gets no gradient. Raises torch's IndexError for a number that is no row.
    """
    return F.embedding(x.long(), weight, padding_idx)
