"""Which floating-point type computes a frozen graph without a single rounding error."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule, Node

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.info import place
from pquant_fx.quantize.quantizers import FixedQuantizer

__all__ = ["FLOAT32_BITS", "FLOAT64_BITS", "compute_dtype"]

FLOAT32_BITS = 24
FLOAT64_BITS = 53


def compute_dtype(gm: GraphModule, formats: FormatMap | None = None) -> torch.dtype:
    """float32 when every value, every partial sum and every quantizer's bounds fit 24 bits, else float64 (53 bits).

    Integers times a power of two of so many bits are added and multiplied exactly, in any order. Raises LoweringError:
    PQ303 for every value that float64 can not hold, and whatever `FormatMap.require` finds.
    """
    known = analyse(gm) if formats is None else formats
    known.require()
    widths = {node: bits for node in gm.graph.nodes if (bits := known.bits(node)) is not None}
    too_wide = [_problem(node, bits) for node, bits in widths.items() if bits > FLOAT64_BITS]
    if too_wide:
        raise LoweringError(too_wide)
    widest = max((*widths.values(), *map(_declared_bits, gm.modules())), default=0)
    return torch.float32 if widest <= FLOAT32_BITS else torch.float64


def _declared_bits(module: nn.Module) -> int:
    """Stored bits of a static quantizer that clamps to its bounds: the bounds have to be exact as well."""
    if not isinstance(module, FixedQuantizer) or not module.saturates:
        return 0
    k, i, f = module.kif()
    return int((k + i + f).max()) if f.numel() else 0


def _problem(node: Node, bits: int) -> Problem:
    what = f"'{node.name}' or its accumulator needs {bits} bits, float64 holds {FLOAT64_BITS}"
    return Problem("PQ303", what, "use fewer bits for its inputs or weights, or put a quantizer before it", place(node))
