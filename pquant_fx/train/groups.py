"""Optimizer groups: what may decay and what may not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pquant_fx.errors import Problem, TrainingError
from pquant_fx.graph.dialect import Mask, Quantizer
from pquant_fx.train.compiled import compiled_model

__all__ = ["GROUPS", "param_groups"]

GROUPS = ("weights", "no_decay", "masks", "bits")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """The trainable parameters of a compiled model, each in exactly one group that an optimizer takes as it is.

        torch.optim.AdamW(pq.param_groups(model, lr=1e-3, weight_decay=1e-4))

    | name     | members                                                                   | weight decay   | rate             |
    |----------|---------------------------------------------------------------------------|----------------|------------------|
    | weights  | weights of layers, and other parameters with more than one axis           | `weight_decay` | `lr`             |
    | no_decay | biases, scales and offsets of normalisation, other parameters of one axis | 0              | `lr`             |
    | masks    | what masks learn: thresholds, logits                                      | 0              | `lr`             |
    | bits     | what quantizers learn: bit-widths, ranges                                 | 0              | `bits_rate * lr` |

    Decay would pull a threshold or a bit-width towards zero whatever the loss says. Bit-widths are numbers near 4, weights near
    0.1: `training_parameters.bits_rate` of the configuration lets them move as fast in their own units. Multipliers of
    constraints are in no group: the session moves them. Groups without a member are left out; each has a `name`.
    model: a compiled model, also inside DistributedDataParallel or torch.compile.
    Raises TrainingError (PQ412) when it is none, or has no parameter that requires a gradient.
    """
    found: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    seen: set[int] = set()
    compiled = compiled_model(model)
    for group, parameter in _grouped(compiled.graph_module):
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            found[group].append(parameter)
    if not seen:
        raise TrainingError(Problem("PQ412", "the model has no parameter that requires a gradient", "set requires_grad, or do not train"))
    rates = {"bits": compiled.config.training_parameters.bits_rate * lr}
    decays = {"weights": weight_decay}
    names = [name for name in GROUPS if found[name]]
    return [{"params": found[n], "name": n, "lr": rates.get(n, lr), "weight_decay": decays.get(n, 0.0)} for n in names]


def _grouped(module: nn.Module, ours: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter with its group; `ours` is the group of everything inside a quantizer or a mask."""
    ours = "bits" if isinstance(module, Quantizer) else "masks" if isinstance(module, Mask) else ours
    for name, parameter in module.named_parameters(recurse=False):
        plain = isinstance(module, _NORMS) or name.startswith("bias") or parameter.dim() < 2
        yield ours or ("no_decay" if plain else "weights"), parameter
    for child in module.children():
        yield from _grouped(child, ours)
