"""How many bits a floating-point runtime needs to compute a node exactly: 24 are a float32, 53 a float64."""

from __future__ import annotations

import numpy as np
from torch.fx import GraphModule, Node

from pquant_fx.errors import Problem
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.info import place
from pquant_fx.graph.interval_codes import ALL_ZERO
from pquant_fx.graph.intervals import Interval
from pquant_fx.lower.exact_forward import FLOAT32_BITS, FLOAT64_BITS
from pquant_fx.lower.fixed_point_numpy import Array
from pquant_fx.lower.onnx.formats import format_of

__all__ = ["FLOAT32_BITS", "FLOAT64_BITS", "float32_problems", "half_sum_is_exact", "is_fixed_point", "value_bits", "work_bits"]


def value_bits(formats: FormatMap, node: Node) -> int:
    """Magnitude bits that the value of `node` needs; 0 for real numbers, which no engine can represent exactly."""
    found = formats.intervals.get(node)
    return 0 if found is None else found.bits


def work_bits(formats: FormatMap, node: Node) -> int:
    """Magnitude bits that `node` needs on the way: its operands, every partial sum, its value."""
    operands = [value_bits(formats, n) for n in node.all_input_nodes]
    return max(formats.bits(node) or 0, *operands, 0)


def half_sum_is_exact(x: Interval | None, f: Array, bits: int = FLOAT32_BITS) -> bool:
    """Whether x + 2^-(f+1) is exact in a float of so many bits for every x of the interval (f: batch axis 1 or broadcast)."""
    if x is None:
        return False
    unit = np.where(x.zeros >= ALL_ZERO, -np.inf, (x.f - x.zeros).astype(np.float64))[None]
    grid = np.maximum(unit, f + 1)
    bound = np.ldexp(np.maximum(np.abs(x.low), np.abs(x.high)).astype(np.float64), -x.f)[None] + np.exp2(-f - 1)
    return bool((bound * np.exp2(grid) <= 2.0**bits).all())


def float32_problems(gm: GraphModule, formats: FormatMap | None = None) -> list[Problem]:
    """Nodes that a float32 runtime (QONNX execution) may round: PQ303 for each; empty when it is exact everywhere."""
    formats = analyse(gm) if formats is None else formats
    found = []
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        bits = work_bits(formats, node)
        quantizer = module_of(gm, node)
        if isinstance(quantizer, Quantizer) and node not in formats.constants:
            spec = format_of(quantizer)
            source = formats.intervals.get(node.all_input_nodes[0])
            if spec.rounding in ("RND", "RND_INF") and not half_sum_is_exact(source, spec.f):
                bits = max(bits, int((spec.width - spec.k).max()) + 1)  # the rounding passes through half codes
        if bits > FLOAT32_BITS:
            what = f"'{node.name}' needs {bits} bits to be exact, float32 has {FLOAT32_BITS}"
            remedy = "use fewer bits in its inputs or weights, or verify with the integer and onnx engines"
            found.append(Problem("PQ303", what, remedy, place(node)))
    return found


def is_fixed_point(gm: GraphModule) -> bool:
    """Whether any quantizer is in the graph: if not, it is a float network and nothing is promised about its bits."""
    return any(isinstance(module_of(gm, node), Quantizer) for node in gm.graph.nodes)
