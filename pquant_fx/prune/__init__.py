"""Pruning: one file per method. A method is a `Pruner`, the mask node that turns a latent weight into the effective one."""

from __future__ import annotations

from pquant_fx.prune.activation_pruning import ActivationMask
from pquant_fx.prune.autosparse import AutoSparseMask, annealed
from pquant_fx.prune.cs import CSMask, temperature
from pquant_fx.prune.dst import DSTMask
from pquant_fx.prune.layout import Layout, layout_of
from pquant_fx.prune.magnitude import MagnitudeMask, cubic_sparsity
from pquant_fx.prune.mdmm import MDMMMask
from pquant_fx.prune.methods import PRUNERS, make_pruner
from pquant_fx.prune.pdp import PDPMask
from pquant_fx.prune.pruner import Member, Members, Pruner
from pquant_fx.prune.units import UnitMask
from pquant_fx.prune.wanda import WandaMask, collection_times

__all__ = [
    "PRUNERS",
    "ActivationMask",
    "AutoSparseMask",
    "CSMask",
    "DSTMask",
    "Layout",
    "MDMMMask",
    "MagnitudeMask",
    "Member",
    "Members",
    "PDPMask",
    "Pruner",
    "UnitMask",
    "WandaMask",
    "annealed",
    "collection_times",
    "cubic_sparsity",
    "layout_of",
    "make_pruner",
    "temperature",
]
