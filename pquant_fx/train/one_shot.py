"""Pruning without training: a network that is trained already loses weights by what flows through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pquant_fx.errors import InputError, Problem, TrainingError
from pquant_fx.graph.constants import evaluating
from pquant_fx.graph.dialect import attribute_at
from pquant_fx.graph.inputs import bind_inputs, input_problems, input_specs, not_finite
from pquant_fx.prune import Member, Members, WandaMask
from pquant_fx.train.compiled import compiled_model
from pquant_fx.train.data import device_of, input_batches
from pquant_fx.train.loop import Loop, loop_around
from pquant_fx.train.pruning import masks_of, sparsity
from pquant_fx.train.quantized_weights import show_quantized

__all__ = ["prune_by_wanda"]


def prune_by_wanda(model: nn.Module, batches: Any) -> float:
    """Prune once, without any training (Sun et al. 2024): the weights of least |W| ||x|| of each output; returns the share of zeros.

        model = pq.compile(net, {"preset": "wanda", "pruning_parameters": {"sparsity": 0.5}}, x)
        pq.prune_by_wanda(model, x)

    Layers go one after the other, so that each is judged by what the pruned ones before it give. Weights that stay keep their
    values, and the masks are fixed: what follows is fine-tuning. model: a compiled model whose configuration prunes by `wanda`,
    also inside DistributedDataParallel, where all ranks call this with data of their own. batches: as for `calibrate`, of
    which `t_delta` are read. Formats of activations stay as they are; `calibrate` fits them to the smaller values.

    Raises TrainingError: PQ412 where no mask of that method is free, PQ410 without data; InputError (PQ409, PQ305) for inputs
    of other shapes, NaN or infinity. Nothing is pruned then.
    """
    gm = compiled_model(model).graph_module
    found = [(mask, path) for mask, path in masks_of(gm) if isinstance(mask, WandaMask) and not mask.is_fixed]
    if not found:
        what = "there is nothing to prune: the model has no mask of the method 'wanda', or they are fixed already"
        raise TrainingError(Problem("PQ412", what, "compile with pruning_parameters: {pruning_method: wanda}, and prune once"))
    members = [Member(mask, attribute_at(gm, path)) for mask, path in found]
    read = _read(gm, batches, max(mask.settings.t_delta for mask, _ in found))
    show_quantized(gm)
    groups: dict[object, list[Member]] = {}
    for member in members:
        groups.setdefault(member.mask.settings, []).append(member)
    for group in groups.values():
        WandaMask.set_budgets(group)
    _prune(gm, members, read, loop_around(model))
    return sparsity(gm)


def _prune(gm: GraphModule, members: Members, batches: list[tuple[Any, ...]], loop: Loop) -> None:
    with torch.no_grad(), evaluating(gm):
        for mask, weight in members:
            mask.statistics.begin()
            mask.statistics.training = True  # it alone: the network is measured as it will be used
            for batch in batches:
                gm(*batch)
            mask.statistics.training = False
            mask.statistics.gather(loop.add_ranks)
            mask.prune(weight)
            mask.fix_(weight)


def _read(gm: GraphModule, batches: Any, limit: int) -> list[tuple[Any, ...]]:
    specs, device = input_specs(gm), device_of(gm)
    read = [tuple(x.to(device) if isinstance(x, Tensor) else x for x in batch) for batch in input_batches(batches, list(specs), limit)]
    for batch in read:
        problems = input_problems(gm, specs, bind_inputs(gm, batch, {}), "calibration") or not_finite(gm, batch)
        if problems:
            raise InputError(problems)
    if not sum(len(batch[0]) for batch in read):
        raise TrainingError(Problem("PQ410", "there is no data to prune by", "give at least one batch with at least one sample"))
    return read
