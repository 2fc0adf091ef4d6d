"""What one DSP or one block of memory holds, and which of it stays within a budget (Ramhorst et al. 2023).

hls4ml's resource strategy with reuse factor RF: the weights in the order output, kernel position, input are cut into rows of
RF, which one multiplier (a DSP) serves in turn; c rows of `precision`-bit weights lie side by side in a memory of w bits:

    c = w / precision     where that is whole
        ceil(2 w / precision)     else: two memories

A DSP group is one row and costs 1 DSP; a BRAM group is c consecutive rows (the last may be shorter) and costs 1 memory and
its rows' DSPs. Multipliers of less than 9 bits are made of LUTs and cost no DSP; with RF = 1 nothing is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pquant_fx.config import MDMMPruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.prune.knapsack import fill_knapsack
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.weight_groups import WeightGroups

__all__ = ["group_costs", "hardware_groups", "keep_affordable", "rows_per_memory"]


def rows_per_memory(precision: int, memory_width: int = 36) -> int:
    """c: how many rows of `precision`-bit weights share the memory."""
    return memory_width // precision if memory_width % precision == 0 else math.ceil(2 * memory_width / precision)


def hardware_groups(weight: Tensor, settings: MDMMPruning, layout: Layout) -> WeightGroups:
    """The groups whose resources are limited. Raises ConfigError (PQ407) where the reuse factor does not divide the weights."""
    if weight.numel() % settings.rf:
        what = f"a reuse factor of {settings.rf} does not divide the {weight.numel()} weights of the layer"
        divisors = [str(n) for n in range(1, weight.numel() + 1) if weight.numel() % n == 0]
        near = sorted(divisors, key=lambda n: abs(int(n) - settings.rf))[:4]
        raise ConfigError(Problem("PQ407", what, f"use rf: {', '.join(near[:-1])} or {near[-1]}, in a rule of the layer's own"))
    rows = rows_per_memory(settings.precision, settings.bram_width) if "BRAM" in settings.resources else 1
    return WeightGroups(layout, size=rows * settings.rf)


def group_costs(weight: Tensor, settings: MDMMPruning, groups: WeightGroups) -> Tensor:
    """What each group uses of each of `settings.resources`, (groups, resources)."""
    rows, each = weight.numel() // settings.rf, groups.size // settings.rf
    count = math.ceil(rows / each)
    dsp = torch.full((count,), float(each if settings.precision >= 9 else 0))
    if settings.precision >= 9:
        dsp[-1] = rows - each * (count - 1)
    bram = torch.full((count,), 1.0 if settings.rf > 1 else 0.0)
    return torch.stack([dsp if name == "DSP" else bram for name in settings.resources], 1)


def keep_affordable(amounts: Sequence[Tensor], costs: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Which groups of layers that share a budget stay, (groups,) each: at most 1 - sparsity of each resource that all use now.

    amounts: the norms of each layer's groups, made comparable by the layer's largest. That largest one is worth more than
    all others together: a layer without weights would be no layer.
    """
    most = sum(len(a) for a in amounts) + 1.0
    values = []
    for layer in amounts:
        share = layer.detach() / layer.detach().amax().clamp_min(torch.finfo(layer.dtype).tiny)
        share[share.argmax()] = most
        values.append(share)
    every = torch.cat(list(costs))
    budget = torch.maximum((1 - sparsity) * every.sum(0), torch.stack([c.amax(0) for c in costs]).sum(0))
    chosen = fill_knapsack(torch.cat(values), every, budget)
    return list(torch.split(chosen, [len(a) for a in amounts]))
