"""relu_multiplier: a learned power of two behind a ReLU.

    F.relu(x)   ->   F.relu(x) * 2^round(m)          m a parameter that starts at 0

The factor moves the binary point of what the ReLU gives, which costs nothing in hardware: (k, i, f) -> (k, i + m, f - m).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.config import Config
from pquant_fx.graph.dialect import is_parameter_value
from pquant_fx.graph.power_of_two import PowerOfTwo
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import result_of
from pquant_fx.passes.settings import own_path, settings_of

__all__ = ["ReluMultiplier"]


@dataclass(frozen=True)
class ReluMultiplier:
    """Add the multiplier where the settings ask for it. It starts at 1, so that results stay as they are."""

    config: Config
    name: ClassVar[str] = "relu_multiplier"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in [n for n in gm.graph.nodes if n.target is F.relu and not is_parameter_value(n) and result_of(n) is n]:
            settings = settings_of(self.config, gm, node)
            if not (settings.quantize and settings.relu_multiplier):
                continue
            users = list(node.users)
            with rw.after(node):
                factor = rw.call_module(rw.own(f"{own_path(node)}.multiplier", PowerOfTwo()))
            with rw.after(factor):
                made = rw.call(operator.mul, node, factor)
            rw.inherit(made, node)
            for user in users:
                rw.redirect(user, node, made)
        return rw.changed
