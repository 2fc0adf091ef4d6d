"""From a section of the configuration to the mask that carries its method out: the table of all methods."""

from __future__ import annotations

from torch import Tensor

from pquant_fx.config import (
    ActivationPruning,
    AutoSparsePruning,
    CSPruning,
    DSTPruning,
    MagnitudePruning,
    MDMMPruning,
    PDPPruning,
    PruningSection,
    WandaPruning,
)
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.prune.activation_pruning import ActivationMask
from pquant_fx.prune.autosparse import AutoSparseMask
from pquant_fx.prune.cs import CSMask
from pquant_fx.prune.dst import DSTMask
from pquant_fx.prune.layout import Layout
from pquant_fx.prune.magnitude import MagnitudeMask
from pquant_fx.prune.mdmm import MDMMMask
from pquant_fx.prune.pdp import PDPMask
from pquant_fx.prune.pruner import Pruner
from pquant_fx.prune.wanda import WandaMask

__all__ = ["PRUNERS", "make_pruner"]

PRUNERS: dict[type[PruningSection], type[Pruner]] = {
    MagnitudePruning: MagnitudeMask,
    DSTPruning: DSTMask,
    AutoSparsePruning: AutoSparseMask,
    CSPruning: CSMask,
    MDMMPruning: MDMMMask,
    PDPPruning: PDPMask,
    WandaPruning: WandaMask,
    ActivationPruning: ActivationMask,
}


def make_pruner(weight: Tensor, settings: PruningSection, layout: Layout, sparsity: float | None) -> Pruner:
    """The mask of one weight. sparsity: the layer's own goal, None for the method's.

    Raises ConfigError: PQ408 for a method that this version can not run, PQ407 for a goal given to a method that has none, or
    a setting that it can not honour.
    """
    found = [Problem(code, f"{key}: {what}", remedy) for code, key, what, remedy in settings.unavailable()]
    if found:
        raise ConfigError(found)
    method = PRUNERS.get(type(settings))
    if method is None:
        raise ConfigError(
            Problem("PQ408", f"pruning method '{settings.pruning_method}' is not there yet", f"use one of {sorted(_names())}")
        )
    if sparsity is not None and not {"sparsity", "target_sparsity"} & set(type(settings).model_fields):
        what = f"a sparsity of {sparsity} was asked for, but '{settings.pruning_method}' finds the sparsity itself"
        raise ConfigError(Problem("PQ407", what, "leave it out, or give the layer a method with a goal"))
    return method(weight, settings, layout, sparsity)


def _names() -> list[str]:
    return [str(section.model_fields["pruning_method"].default) for section in PRUNERS]
