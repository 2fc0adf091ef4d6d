"""Which groups stay on a chip: max sum v_g x_g subject to sum r_g x_g <= budget, x_g in {0, 1} (Ramhorst et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from pquant_fx.prune.selection import keep_largest

__all__ = ["fill_knapsack"]

_TABLE = 4_000_000  # entries of the exact solution's table: a second at most
_ROUNDS = 32
_SLACK = 1e-6  # relative: (1 - 0.9) * 10 is a little less than 1


def fill_knapsack(values: Tensor, costs: Tensor, budget: Tensor) -> Tensor:
    """1 for each chosen group and 0 for the others, (groups,), of the values' type; ties as in `keep_largest`.

    values: (groups,), > 0; costs: (groups, resources), >= 0; budget: (resources,). Equal costs: the largest, exact. One resource
    with whole costs: exact by a table over the budget, where that is small. Else by value over cost, and of several
    resources by prices that rise for those that are short: every choice fits, and nothing that was left out fits beside it.
    It runs on the host.
    """
    v, r = values.detach().double().cpu(), costs.double().cpu()
    room = budget.double().cpu() * (1 + _SLACK) + _SLACK
    if not len(v):
        return torch.zeros_like(values)
    if bool((r == r[0]).all()):
        most = torch.where(r[0] > 0, room / r[0], float(len(v))).floor().min().clamp(0, len(v))
        chosen = keep_largest(v, len(v) - int(most))
    elif r.shape[1] == 1 and _is_whole(r) and len(v) * (int(room[0]) + 1) <= _TABLE:
        chosen = _by_table(v, r[:, 0].long(), int(room[0]))
    else:
        chosen = _by_prices(v, r, room)
    return chosen.to(values)


def _is_whole(costs: Tensor) -> bool:
    return bool((costs == costs.round()).all())


def _by_table(values: Tensor, costs: Tensor, capacity: int) -> Tensor:
    """Dynamic programming over the capacity."""
    best = torch.zeros(capacity + 1, dtype=values.dtype)
    taken = torch.zeros(len(values), capacity + 1, dtype=torch.bool)
    for item, cost in enumerate(costs.tolist()):
        if cost > capacity:
            continue
        with_it = best[: capacity + 1 - cost] + values[item]
        taken[item, cost:] = with_it > best[cost:]
        best[cost:] = torch.maximum(best[cost:], with_it)
    chosen, left = torch.zeros_like(values), capacity
    for item in reversed(range(len(values))):
        if bool(taken[item, left]):
            chosen[item] = 1
            left -= int(costs[item])
    return chosen


def _by_prices(values: Tensor, costs: Tensor, room: Tensor) -> Tensor:
    """Lagrangian greedy: take by value over priced cost; raise the prices of what was used up."""
    shares = costs / room.clamp_min(_SLACK)
    prices = torch.ones_like(room) / len(room)
    best, most = torch.zeros_like(values), -1.0
    for _ in range(_ROUNDS if len(room) > 1 else 1):
        density = values / (shares @ prices).clamp_min(torch.finfo(values.dtype).tiny)
        chosen = _fill(density.argsort(descending=True, stable=True), costs, room)
        if float(values @ chosen) > most:
            best, most = chosen, float(values @ chosen)
        prices = prices * (shares.T @ chosen).exp()
        prices = prices / prices.sum()
    return best


def _fill(order: Tensor, costs: Tensor, room: Tensor) -> Tensor:
    """Take in this order whatever still fits."""
    chosen, left, rest = torch.zeros(len(costs), dtype=costs.dtype), room.clone(), order
    while True:
        rest = rest[(costs[rest] <= left).all(1)]
        if not len(rest):
            return chosen
        used = costs[rest].cumsum(0)
        first = max(1, int((used <= left).all(1).int().cumprod(0).sum()))
        chosen[rest[:first]] = 1
        left, rest = left - used[first - 1], rest[first:]
