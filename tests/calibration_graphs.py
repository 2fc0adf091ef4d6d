"""Small quantized graphs in the dialect's form, without the front end: what the tests of calibration share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer

__all__ = ["Block", "block", "data", "graph"]


class EveryModuleIsALeaf(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def graph(model: nn.Module, *inputs: Tensor) -> GraphModule:
    gm = GraphModule(model, EveryModuleIsALeaf().trace(model))
    for node in gm.graph.nodes:  # the dialect's positional form
        node.args, node.kwargs = (*node.args, *(v for name, v in node.kwargs.items() if name != "inplace")), {}
    gm.recompile()

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            set_info(n, NodeInfo(path=str(n.target), line="net.py:1", shape=tuple(value.shape) if isinstance(value, Tensor) else None))
            return value

    Shapes(gm).run(*inputs)
    return gm


class Block(nn.Module):
    """Quantized input, convolution, ReLU, average pooling over four, linear."""

    def __init__(self, method: str = "minmax", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)
        with torch.no_grad():
            self.conv.weight[1] *= 1 / 16
        self.xq = CalibratedQuantizer(8, method=method, **options)
        self.rq = CalibratedQuantizer(8, non_negative=True, method=method, **options)
        self.conv_wq, self.conv_bq = DynamicQuantizer(8), AccumulatorQuantizer()
        self.fc_wq, self.fc_bq = DynamicQuantizer(6), AccumulatorQuantizer()

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.xq(x), self.conv_wq(self.conv.weight), self.conv_bq(self.conv.bias), (1, 1), (0, 0), (1, 1), 1)
        y = F.avg_pool2d(self.rq(F.relu(y)), (2, 2), (2, 2), (0, 0), False, True)
        y = torch.reshape(y, (-1, 12))
        return F.linear(y, self.fc_wq(self.fc.weight), self.fc_bq(self.fc.bias))


def data(n: int = 16) -> Tensor:
    return torch.randn(n, 2, 6, 6, generator=torch.Generator().manual_seed(3))


def block(**options: Any) -> GraphModule:
    return graph(Block(**options), data(2))
