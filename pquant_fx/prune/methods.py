"""From the configured pruning method to the masks that the compiler inserts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pquant_fx.config import Config, MagnitudePruning
from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.dialect import Mask
from pquant_fx.prune.magnitude import MagnitudeMask

__all__ = ["MaskFactory", "mask_for"]

MaskFactory = Callable[[Tensor, float | None], Mask]
"""Makes the mask of one weight; the second argument is the layer's own sparsity, None for the method's."""


def mask_for(config: Config) -> MaskFactory:
    """How the configured method masks a weight. Raises ConfigError (PQ408) for a method that this version can not run."""
    method = config.pruning_parameters
    if not isinstance(method, MagnitudePruning):
        raise ConfigError(Problem("PQ408", f"pruning method '{method.pruning_method}' is not there yet", "use 'magnitude'"))
    regrow = method.regrow
    return lambda weight, sparsity: MagnitudeMask(weight, sparsity, regrow)
