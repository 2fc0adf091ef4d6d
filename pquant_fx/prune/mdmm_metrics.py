"""What a constraint holds at a value: how far a weight is from its target pattern, as a number with a useful gradient.

amounts: what may go, one number each: |w| of single weights, L2 norms of groups.

    tail    sum of the amounts that are to go / sum of all; 0 exactly when the target pattern is reached
    count   (s^2 - zeros^2) mean(amounts); 0 when the share `zeros` of them is the wanted share s (PQuantML)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bell_width", "count", "tail", "zeros"]


def tail(amounts: Tensor, kept: Tensor) -> Tensor:
    """Share of the total amount that is not kept, 0-d, 0 to 1; 0 for a layer of zeros. amounts >= 0 and kept (0 or 1): (groups,).

    Gradient by an amount: (1 - kept) / sum of amounts; the sum itself has none. With it, kept amounts would grow instead:
    weights before dead units do so at no cost, the tail falls to a few percent while it still carries the function, and
    pruning it leaves chance (seen at 90 % on a small network; without, 98.6 %).
    """
    total = amounts.detach().sum().clamp_min(torch.finfo(amounts.dtype).tiny)
    return (amounts * (1 - kept)).sum() / total


def zeros(amounts: Tensor, epsilon: float, width: Tensor | None = None) -> Tensor:
    """The share of `amounts` that are zero, 0-d: those up to `epsilon`, without gradient; with `width` the mean of
    exp(-amount^2 / (2 width^2)), which has one."""
    if width is None:
        return (amounts <= epsilon).to(amounts.dtype).mean()
    return torch.exp(-amounts.square() / (2 * width.square())).mean()


def count(amounts: Tensor, sparsity: float | Tensor, epsilon: float, width: Tensor | None = None) -> Tensor:
    """(sparsity^2 - zeros^2) * mean(amounts), 0-d: above 0 while too few are zero, below 0 when too many are.

    Its gradient shrinks all amounts while too few are zero; with `width` that of `zeros` adds to it.
    """
    return (sparsity**2 - zeros(amounts, epsilon, width).square()) * amounts.mean()


def bell_width(start: Tensor, epsilon: float, progress: float) -> Tensor:
    """The width of the smooth count: from `start` to `epsilon` as `progress` goes from 0 to 1, by equal factors.

    It never starts below epsilon. start: half the root mean square of the amounts, 0-d.
    """
    return start.clamp_min(epsilon).pow(1 - progress) * epsilon**progress
