"""Masks of MDMM in training, for the tests of the method."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pquant_fx.config import MDMMPruning
from pquant_fx.prune import Layout, MDMMMask, Member

AT_ONCE = {"ramp_fraction": 0.0, "interval": 1, "epsilon": 0.0}
"""Settings with which S(W) is always that of the weights, for all of the target."""


def begun(weight: Tensor, sparsity: float | None = None, layout: Layout | None = None, steps: int = 10, **options: Any) -> MDMMMask:
    """A mask in training, its S(W) chosen."""
    mask = MDMMMask(weight, MDMMPruning(**options), layout, sparsity)
    MDMMMask.begin([Member(mask, weight)], steps)
    return mask


def penalty(mask: MDMMMask, weight: Tensor) -> Tensor:
    found = mask.penalty(weight)
    assert found is not None
    return found
