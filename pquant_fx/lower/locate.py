"""Where two engines part: the first node, in order of computation, whose values differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.lower.integer import IntegerInterpreter

__all__ = ["first_differing_node"]


class _Recorder(Interpreter):
    """Runs a graph in torch and keeps every data value by node name."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value.double().numpy(force=True)
        return value


def first_differing_node(gm: GraphModule, formats: FormatMap, inputs: list[Tensor]) -> Node | None:
    """The first node at which torch and the integer interpreter differ on `inputs`; None when they agree everywhere."""
    dtype = next((b.dtype for b in gm.buffers() if b.is_floating_point()), torch.float32)
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*(x.to(dtype) for x in inputs))
    _, exact = IntegerInterpreter(gm, formats).run(*(x.double().numpy(force=True) for x in inputs), trace=True)
    for node in gm.graph.nodes:
        if node.name in exact and node.name in recorder.values and not np.array_equal(exact[node.name], recorder.values[node.name]):
            return node
    return None
