"""Channels that leave for real: a share of those inside each block of a pretrained ResNet-20, counted and compared.

    python -m benchmarks.removal --weights resnet20_cifar10_pretrained.npz --data cifar10.npz [--share 0.4]

The smallest filters of every block's first convolution are set to zero, with their BatchNorm. The network is frozen with and
without removal: parameters and multiplications have to be those that the zeroed filters leave, and outputs the same integers.
weights, data: as in benchmarks.resnet20.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from torch import nn

import pquant_fx as pq
from benchmarks.networks import Block, resnet20
from benchmarks.resnet20 import images
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info

COMPARED = 500
Counts = tuple[int, int]


def zero_filters(net: nn.Module, share: float) -> dict[str, int]:
    """Zero the filters of least L1 norm in the first convolution of every block; how many went, by block."""
    gone = {}
    with torch.no_grad():
        for name, block in net.named_modules():
            if isinstance(block, Block):
                weight = block.conv1.weight
                gone[name] = round(share * len(weight))
                removed = weight.abs().sum((1, 2, 3)).argsort()[: gone[name]]
                for values in (weight, block.bn1.weight, block.bn1.bias):
                    values[removed] = 0
    return gone


def counted(frozen: pq.FrozenModel) -> Counts:
    """Weights and biases, and multiplications of one sample, of all layers."""
    parameters = products = 0
    for node in frozen.graph_module.graph.nodes:
        op = op_of(node)
        if op is not None and op.kind == "weighted":
            weight, result = info(node.args[1]).shape, info(node).shape
            assert weight is not None
            assert result is not None
            parameters += math.prod(weight) + weight[0]
            products += math.prod(weight) * math.prod(result[2:])
    return parameters, products


def expected(whole: Counts, net: nn.Module, gone: dict[str, int], sides: dict[str, int]) -> Counts:
    """What is left of `whole` when the zeroed filters, and the weights that read them, are gone."""
    parameters, products = whole
    for name, count in gone.items():
        block: Any = net.get_submodule(name)
        weights = count * (block.conv1.weight[0].numel() + block.conv2.weight[:, 0].numel())
        parameters -= weights + count
        products -= weights * sides[name] ** 2
    return parameters, products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--share", type=float, default=0.4)
    options = parser.parse_args()
    data = np.load(options.data)
    x, x_test = images(data["x_train"][:512]), images(data["x_test"][:COMPARED])
    net = resnet20().eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in np.load(options.weights).items()})
    gone = zero_filters(net, options.share)
    sides = {name: {"layer1": 32, "layer2": 16, "layer3": 8}[name.split(".")[0]] for name in gone}

    model = pq.compile(net, "fixed8", x[:128], calibration=x)
    whole, smaller = model.freeze(remove_dead_channels=False), model.freeze()
    print(smaller.removed)
    for what, frozen in (("masked", whole), ("removed", smaller)):
        parameters, products = counted(frozen)
        print(f"{what:10} {parameters:>10,} parameters {products:>12,} multiplications {frozen.ebops().total:>14,.0f} EBOPs")
    parameters, products = expected(counted(whole), net, gone, sides)
    print(f"{'expected':10} {parameters:>10,} parameters {products:>12,} multiplications")
    same = torch.equal(whole.integer(x_test, codes=True), smaller.integer(x_test, codes=True))
    print(f"integer outputs of {COMPARED} images: {'equal' if same else 'DIFFERENT'}")
    print(smaller.verify(x_test[:50], targets=("integer", "onnx", "qonnx")))


if __name__ == "__main__":
    main()
