"""A compiler pass of one's own: ReLU6 becomes ReLU where the quantizer behind it clips at or below 6 anyway.

The pass is ten lines. `exact=True` makes the pipeline check on the example inputs, in train and in eval, that it changes
no result; the observer `pq.Diff` keeps what each pass did.

    python examples/custom_pass.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

import pquant_fx as pq


@pq.rewrite(nn.ReLU6, F.relu6, exact=True)
def relu6_to_relu(node: Node, rw: pq.Rewriter) -> Node | None:
    """Every quantizer that follows saturates at or below 6 anyway: drop the upper clip."""
    quantizers = [rw.module(user, pq.Quantizer) for user in node.users]
    if quantizers and all(q is not None and q.maximum <= 6 for q in quantizers):
        return rw.call(F.relu, node.args[0])
    return None


class MobileBlock(nn.Module):
    """A convolution, ReLU6, a classifier: (N, 3, 8, 8) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU6()
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.max_pool2d(self.act(self.conv(x)), 2).flatten(1))


def operators(model: pq.CompiledModel) -> list[str]:
    """Names of the functions that the graph calls."""
    return [getattr(n.target, "__name__", str(n.target)) for n in model.graph_module.graph.nodes if n.op == "call_function"]


def main(output: str | Path | None = None) -> tuple[list[str], list[str]]:
    """Compile without and with the pass; `output` is not used, nothing is written."""
    torch.manual_seed(0)
    net, x = MobileBlock(), torch.randn(64, 3, 8, 8)
    config = {"preset": "fixed8", "layers": {"act": {"data_format": "ufixed<8,2>"}}}  # the activation's type: 0 ... 3.98

    plain = pq.compile(net, config, x)
    changes = pq.Diff()
    pipeline = pq.default_pipeline(config).insert(relu6_to_relu, after="insert_quantizers").observe(changes)
    model = pq.compile(net, config, x, pipeline=pipeline)
    print(changes.changes["relu6_to_relu"])

    before, after = operators(plain), operators(model)
    print("without the pass:", ", ".join(before))
    print("with the pass:   ", ", ".join(after))
    equal = torch.equal(plain.eval()(x), model.eval()(x))
    print("same results, bit for bit:", equal)
    return before, after


if __name__ == "__main__":
    main()
