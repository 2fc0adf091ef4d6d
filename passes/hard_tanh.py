"""hard_tanh: tanh becomes hard tanh where the settings do not ask for the real one.

    torch.tanh(x)   ->   F.hardtanh(x, -1, 1)

A clip costs two comparisons; the function itself is a table. The results differ (by up to 0.24, at x = 1), so the compiled model
has a note for each place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.config import Config
from pquant_fx.graph.dialect import is_parameter_value, op_of
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.settings import settings_of

__all__ = ["HardTanh"]


@dataclass(frozen=True)
class HardTanh:
    """Replace every tanh whose settings say `real_tanh: false`, with a note (PQ605)."""

    config: Config
    name: ClassVar[str] = "hard_tanh"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            op = op_of(node)
            if op is None or op.name != "tanh" or is_parameter_value(node):
                continue
            settings = settings_of(self.config, gm, node)
            if settings.quantize and not settings.real_tanh:
                with rw.before(node):
                    new = rw.call(F.hardtanh, node.args[0], -1.0, 1.0)
                rw.note("PQ605", f"'{node.name}' computes hard tanh instead of tanh", "set use_real_tanh: true for a table of tanh", node)
                rw.replace(node, new)
        return rw.changed
