"""PACA: every kernel keeps the positions of one of a few patterns, so that one program of the hardware serves many (Wang et al. 2022).

A pattern is the support of a kernel, positions where |w| > epsilon. Dense kernels all have the same one, so first every
kernel is brought to n entries; then the patterns that most kernels have become the dominant ones, and each kernel moves to
the one nearest to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.selection import keep_pattern

__all__ = ["check_kernels", "dominant_patterns", "kernels_of", "nearest_pattern", "restore_kernels", "strongest_positions"]

_POSITIONS = 62  # a pattern is the bits of one number


def kernels_of(weight: Tensor, layout: Layout) -> Tensor:
    """A convolution's weight as (kernels, positions)."""
    return layout.rows(weight).transpose(1, 2).flatten(0, 1)


def restore_kernels(kernels: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """The inverse of `kernels_of`, for a weight of this shape."""
    outputs, positions, inputs = layout.rows(weight).shape
    return layout.restore(kernels.reshape(outputs, inputs, positions).transpose(1, 2), weight.shape)


def check_kernels(weight: Tensor, layout: Layout) -> None:
    """Raises ConfigError (PQ407) for a weight that has no kernels, or kernels of more than 62 positions."""
    positions = layout.rows(weight).shape[1]
    remedy = "give the layer another metric_type by a rule under layers, or name it in disable_pruning_for_layers"
    if positions < 2:
        raise ConfigError(Problem("PQ407", "the weight has no kernels, so no positions for PACA patterns to choose from", remedy))
    if positions > _POSITIONS:
        what = f"kernels of {positions} positions are too large for PACA patterns, which have at most {_POSITIONS}"
        raise ConfigError(Problem("PQ407", what, remedy))


def strongest_positions(kernels: Tensor, entries: int) -> Tensor:
    """The mask of the `entries` largest magnitudes of each kernel, of equal ones those of lower index; (kernels, positions)."""
    return keep_pattern(kernels.detach().abs(), entries, kernels.shape[1])


def dominant_patterns(supports: Tensor, coverage: float, most: int) -> Tensor:
    """The most frequent supports, the fewest that together cover the share `coverage` of the kernels, at most `most`.

    supports: (kernels, positions), 0 or 1. Result: (patterns, positions), most frequent first, of equal ones that of the
    smaller code (position n has weight 2^n). It synchronises.
    """
    powers = 2 ** torch.arange(supports.shape[1], device=supports.device)
    codes, counts = torch.unique((supports.long() * powers).sum(1), return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    covered = counts[order].cumsum(0)
    enough = int((covered < coverage * len(supports)).sum()) + 1
    found = codes[order[: min(enough, most)]]
    return ((found[:, None] // powers) % 2).to(supports.dtype)


def nearest_pattern(kernels: Tensor, patterns: Tensor, epsilon: float, distance: str = "valued_hamming") -> Tensor:
    """The index of the pattern nearest to each kernel, (kernels,); of equally near ones the first.

    distance: `hamming` counts the positions in which support and pattern differ, `valued_hamming` adds up |w| there, `cosine`
    is 1 - cos of the angle between |kernel| and pattern. kernels: (kernels, positions); patterns: (patterns, positions).
    """
    magnitudes = kernels.detach().abs()
    support = (magnitudes > epsilon).to(magnitudes.dtype)
    if distance == "cosine":
        lengths = magnitudes.norm(dim=1, keepdim=True) * patterns.sum(1).sqrt()
        found = 1 - (magnitudes @ patterns.T) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    else:
        inside, outside = (support, 1 - support) if distance == "hamming" else (magnitudes * support, magnitudes * (1 - support))
        found = inside @ (1 - patterns).T + outside @ patterns.T
    return found.argsort(dim=1, stable=True)[:, 0]
