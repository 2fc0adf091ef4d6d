"""Pruning: one file per method. A method is a `Mask`, the node that turns a latent weight into the effective one."""

from __future__ import annotations

from pquant_fx.prune.magnitude import MagnitudeMask, cubic_sparsity, update_globally

__all__ = ["MagnitudeMask", "cubic_sparsity", "update_globally"]
