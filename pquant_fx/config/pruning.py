"""Section `pruning_parameters`: one model per method, chosen by `pruning_method`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pquant_fx.config.pruning_constrained import MDMMPruning
from pquant_fx.config.pruning_learned import AutoSparsePruning, CSPruning, DSTPruning
from pquant_fx.config.pruning_scores import ActivationPruning, MagnitudePruning, PDPPruning, WandaPruning
from pquant_fx.config.pruning_section import LaterMethod, PruningSection
from pquant_fx.config.section import Number

__all__ = [
    "METHODS",
    "ActivationPruning",
    "AutoSparsePruning",
    "CSPruning",
    "DSTPruning",
    "FITCompressPruning",
    "MDMMPruning",
    "MagnitudePruning",
    "PDPPruning",
    "PruningParameters",
    "PruningSection",
    "WandaPruning",
]


class FITCompressPruning(LaterMethod):
    """Masks found by FITCompress (Zandonati et al. 2023)."""

    pruning_method: Literal["fitcompress"] = "fitcompress"
    min_frac_bits: Number = 2.0


PruningParameters = Annotated[
    MagnitudePruning
    | CSPruning
    | DSTPruning
    | PDPPruning
    | WandaPruning
    | AutoSparsePruning
    | ActivationPruning
    | MDMMPruning
    | FITCompressPruning,
    Field(discriminator="pruning_method"),
]
METHODS: dict[str, type[PruningSection]] = {
    "magnitude": MagnitudePruning,
    "cs": CSPruning,
    "dst": DSTPruning,
    "pdp": PDPPruning,
    "wanda": WandaPruning,
    "autosparse": AutoSparsePruning,
    "activation_pruning": ActivationPruning,
    "mdmm": MDMMPruning,
    "fitcompress": FITCompressPruning,
}
