"""Compiled but unfrozen graphs made by hand: masks, folded BatchNorm, formats that follow their values, dropout."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Mask
from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer, FixedQuantizer

__all__ = ["SmallMask", "mlp", "residual_cnn"]


class SmallMask(Mask):
    """Removes what lies below a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.register_buffer("kept", torch.tensor(1.0))

    def forward(self, w: Tensor) -> Tensor:
        return w * (w.abs() >= self.threshold)

    def sparsity(self, weight: Tensor) -> Tensor:
        return 1 - self.kept


class _Net:
    def __init__(self, root: nn.Module, sample: tuple[int, ...]) -> None:
        self.root, self.graph = root, Graph()
        self.root.add_module("pq", nn.Module())
        self.x = self.graph.placeholder("x")
        set_info(self.x, NodeInfo(shape=(2, *sample), dtype="float32"))

    def own(self, name: str, module: nn.Module) -> str:
        self.root.pq.add_module(name, module)
        return f"pq.{name}"

    def quantize(self, x: Node, name: str, i: int, k: int = 1) -> Node:
        quantizer = CalibratedQuantizer(8)
        quantizer.set_format(k, i, 8 - k - i)
        return self.graph.call_module(self.own(f"{name}_quantizer", quantizer), (x,))

    def weight(self, name: str, scale: Node | None = None, rank: int = 4) -> Node:
        masked = self.graph.call_module(self.own(f"{name}_weight_mask", SmallMask(0.03)), (self.graph.get_attr(f"{name}.weight"),))
        if scale is not None:
            masked = self.call(operator.mul, masked, self.call(torch.reshape, scale, (-1, *(1 for _ in range(rank - 1)))))
        return self.graph.call_module(self.own(f"{name}_weight_quantizer", DynamicQuantizer(8)), (masked,))

    def bias(self, name: str, value: Node) -> Node:
        return self.graph.call_module(self.own(f"{name}_bias_quantizer", AccumulatorQuantizer(12.0, calibrated=True)), (value,))

    def call(self, function: object, *args: object) -> Node:
        node = self.graph.call_function(function, args)  # type: ignore[arg-type]
        set_info(node, NodeInfo(path=node.name, line=f"net.py:{len(self.graph.nodes)}"))
        return node

    def conv_bn(self, x: Node, conv: str, bn: str, statistics: bool) -> Node:
        geometry = ((1, 1), (1, 1), (1, 1), 1)
        mean, var = self.graph.get_attr(f"{bn}.running_mean"), self.graph.get_attr(f"{bn}.running_var")
        scale = self.call(operator.mul, self.graph.get_attr(f"{bn}.weight"), self.call(torch.rsqrt, self.call(operator.add, var, 1e-5)))
        offset = self.call(operator.sub, self.graph.get_attr(f"{bn}.bias"), self.call(operator.mul, mean, scale))
        folded = self.call(F.conv2d, x, self.weight(conv, scale), self.bias(conv, offset), *geometry)
        if not statistics:
            return folded
        batches, gamma, beta = (self.graph.get_attr(f"{bn}.{name}") for name in ("num_batches_tracked", "weight", "bias"))
        return self.graph.call_module(self.own(f"{bn}_correction", BatchCorrection(0.1, 1e-5)), (folded, mean, var, batches, gamma, beta))

    def done(self, result: Node) -> GraphModule:
        self.graph.output(result)
        return GraphModule(self.root, self.graph)


def mlp() -> GraphModule:
    """6-8-3 with masks, dropout and a fixed format in the middle."""
    root = nn.Module()
    root.a, root.b, root.drop = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.5)
    net = _Net(root, (6,))
    h = net.call(F.linear, net.quantize(net.x, "x", 2), net.weight("a", rank=2), net.bias("a", net.graph.get_attr("a.bias")))
    h = net.graph.call_module("drop", (net.call(F.relu, h),))
    h = net.graph.call_module(net.own("h_quantizer", FixedQuantizer(0, 2, 6, "S_RND", "SAT")), (h,))
    return net.done(net.call(F.linear, h, net.weight("b", rank=2), net.bias("b", net.graph.get_attr("b.bias"))))


def residual_cnn(statistics: bool) -> GraphModule:
    """Two convolutions with BatchNorm and a shortcut; batch statistics if asked for."""
    root = nn.Module()
    for n, (inputs, outputs) in enumerate(((2, 4), (4, 4))):
        root.add_module(f"conv{n}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        norm = nn.BatchNorm2d(outputs)
        with torch.no_grad():
            norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.25, 2)  # type: ignore[union-attr]
            norm.weight.uniform_(-1, 1)
        root.add_module(f"bn{n}", norm)
    net = _Net(root, (2, 6, 6))
    y = net.quantize(net.call(F.relu, net.conv_bn(net.quantize(net.x, "x", 1), "conv0", "bn0", statistics)), "y", 2, k=0)
    z = net.call(operator.add, net.conv_bn(y, "conv1", "bn1", statistics), y)
    return net.done(net.quantize(net.call(F.relu, z), "z", 3, k=0))
