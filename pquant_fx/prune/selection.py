"""Which weights a method keeps, given their scores: the largest, of equal ones those of lower index, so that all ranks decide alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["keep_largest", "keep_largest_of_all", "keep_lowest_out", "keep_pattern", "keep_rows", "kept_of_group", "row_norms"]


def keep_largest(scores: Tensor, removed: int) -> Tensor:
    """1 where a score is kept and 0 for the `removed` smallest, of the scores' shape; of equal ones those of lower index go."""
    if removed <= 0 or not scores.numel():
        return torch.ones_like(scores)
    flat = scores.reshape(-1)
    edge = flat.kthvalue(min(removed, len(flat))).values  # a selection: the whole need not be sorted
    below, equal = flat < edge, flat == edge
    gone = below | (equal & (equal.cumsum(0) <= removed - below.sum()))
    return (~gone).to(scores.dtype).reshape(scores.shape)


def keep_largest_of_all(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """The same for several layers together: the round(sparsity * N) smallest of all N go; ties by order, then by index."""
    if not scores:
        return []
    sizes = [s.numel() for s in scores]
    keep = keep_largest(torch.cat([s.reshape(-1) for s in scores]), round(sparsity * sum(sizes)))
    return [part.reshape(s.shape) for part, s in zip(torch.split(keep, sizes), scores)]


def keep_lowest_out(scores: Tensor, sparsity: float, exact: bool) -> Tensor:
    """The mask that removes the floor(sparsity * n) lowest of the n scores of each output; scores (O, K, I), of their shape.

    exact: as many outputs lose one more as round(sparsity * O n) needs: those where it has the smallest share of the output's
    scores. An output keeps one weight. Of equal ones those of lower index go.
    """
    flat = scores.flatten(1)
    outputs, n = flat.shape
    removed = min(math.floor(sparsity * n + 1e-9), n - 1)
    order = flat.argsort(dim=1, stable=True)
    keep = torch.ones_like(flat).scatter_(1, order[:, :removed], 0.0)
    more = round(sparsity * outputs * n) - removed * outputs
    if exact and more > 0 and removed + 1 < n:
        following = order[:, removed : removed + 1]
        shares = (flat.gather(1, following) / flat.sum(1, keepdim=True)).nan_to_num(0.0).squeeze(1)
        chosen = shares.argsort(stable=True)[:more]
        keep[chosen, following[chosen, 0]] = 0
    return keep.reshape(scores.shape)


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each output's weights: rows (O, K, I) -> (O,)."""
    return rows.flatten(1).norm(dim=1)


def keep_rows(rows: Tensor, removed: int) -> Tensor:
    """The mask that removes the `removed` outputs of smallest norm, but never the last one; rows (O, K, I), of their shape."""
    norms = row_norms(rows)
    keep = keep_largest(norms, min(removed, len(norms) - 1))
    return keep[:, None, None].expand_as(rows)


def kept_of_group(keep: int, size: int, members: int) -> int:
    """How many of a group's `members` weights stay when `keep` of every `size` do: a shorter last group keeps ceil(keep m / size)."""
    return math.ceil(keep * members / size)


def keep_pattern(scores: Tensor, keep: int, size: int) -> Tensor:
    """N:M along the inputs: of every `size` consecutive scores of a row the `keep` largest stay, of equal ones those of lower index.

    scores: (outputs, kernel positions, inputs). A last group of fewer inputs keeps its share, rounded up.
    """
    inputs = scores.shape[-1]
    whole = inputs - inputs % size
    parts = [_keep_of_groups(scores[..., :whole].reshape(*scores.shape[:-1], -1, size), keep).flatten(-2)] if whole else []
    if whole < inputs:
        tail = scores[..., whole:]
        parts.append(_keep_of_groups(tail.unsqueeze(-2), kept_of_group(keep, size, inputs - whole)).squeeze(-2))
    return torch.cat(parts, -1)


def _keep_of_groups(groups: Tensor, keep: int) -> Tensor:
    order = groups.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(groups).scatter_(-1, order[..., :keep], 1.0)
