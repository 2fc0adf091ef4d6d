"""Which nodes of a graph have no exact integer meaning, all of them at once."""

from __future__ import annotations

from torch.fx import GraphModule

from pquant_fx.errors import Problem
from pquant_fx.graph.analysis import FormatMap, analyse

__all__ = ["unsupported"]


def unsupported(gm: GraphModule, *, quantized: bool = True, formats: FormatMap | None = None) -> list[Problem]:
    """Every node that integer arithmetic can not express, in graph order, with place and remedy.

    PQ201: operators outside the dialect; PQ202: options (a window that is not 2^n, padding modes) and constants that are
    not dyadic; PQ303: values wider than our integers; PQ305: NaN in a parameter.
    quantized=False judges a float graph: values and parameters that no quantizer has rounded (PQ202) and quantizers without
    a format (PQ307) are then no findings. formats: an analysis of `gm` made before, to save its cost.
    """
    known = analyse(gm) if formats is None else formats
    found = []
    for node in gm.graph.nodes:
        problem = known.problems.get(node)
        if problem is not None and (quantized or problem.code != "PQ307"):
            found.append(problem)
        if quantized and node in known.raw:
            found.append(known.raw[node])
    return found
