"""How much of each layer is pruned, so that all layers together reach a sparsity."""

from __future__ import annotations

from torch import Tensor

from pquant_fx.prune.pruner import Members
from pquant_fx.prune.selection import keep_largest_of_all

__all__ = ["layer_budgets"]


def layer_budgets(members: Members, sparsity: float, together: bool) -> list[float]:
    """The share of each member's weights to prune (Cho et al. 2023).

    A layer with a goal of its own gets that. The others, where they go `together`, get the share of their weights that are among
    the round(sparsity * N) of least magnitude of all N, ties by order and index; else `sparsity` each.
    """
    shared: list[Tensor] = [mask.judged(weight.detach()).abs() for mask, weight in members if mask.target is None and together]
    found = iter([1.0 - float(kept.double().mean()) if kept.numel() else 0.0 for kept in keep_largest_of_all(shared, sparsity)])
    return [mask.target if mask.target is not None else next(found) if together else sparsity for mask, _ in members]
