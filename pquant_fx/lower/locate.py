"""Where an engine leaves torch: the first node, in order of computation, whose values differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

__all__ = ["first_differing_node"]

Array = npt.NDArray[np.float64]


class _Recorder(Interpreter):
    """Runs a graph in torch and keeps every data value by node name."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Array] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value.double().numpy(force=True)
        return value


def first_differing_node(gm: GraphModule, inputs: list[Tensor], values: Mapping[str, Array]) -> Node | None:
    """The first node whose value in torch is another than in `values` (an engine's, by node name); None when there is none."""
    dtype = next((b.dtype for b in gm.buffers() if b.is_floating_point()), torch.float32)
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*(x.to(dtype) for x in inputs))
    for node in gm.graph.nodes:
        if node.name in values and node.name in recorder.values and not np.array_equal(values[node.name], recorder.values[node.name]):
            return node
    return None
