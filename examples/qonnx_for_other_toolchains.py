"""QONNX for other toolchains: a file of standard ONNX operators and `Quant` nodes only, read back without pquant_fx.

FINN, hls4ml, qonnx and others read it. Weights are stored as they are used, per-channel power-of-two scales included.

    python examples/qonnx_for_other_toolchains.py
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

import pquant_fx as pq


class Jets(nn.Module):
    """Two inputs, as trigger networks have them: (N, 8) particles and (N, 4) global features -> (N, 5) classes."""

    def __init__(self) -> None:
        super().__init__()
        self.particles = nn.Linear(8, 16)
        self.features = nn.Linear(4, 8)
        self.head = nn.Linear(24, 5)

    def forward(self, particles: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        both = torch.cat([torch.relu(self.particles(particles)), torch.relu(self.features(features))], dim=1)
        return self.head(both)


def main(output: str | Path = "build/qonnx") -> int:
    """Export, execute with qonnx, count samples that differ from the integer interpreter."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    torch.manual_seed(0)
    x = {"particles": torch.randn(512, 8), "features": torch.rand(512, 4)}
    frozen = pq.compile(Jets(), "fixed8", x).freeze()
    path = Path(output) / "jets.onnx"
    frozen.to_qonnx(path, strict=True)  # strict: refuse rather than use a domain of our own

    wrapper = ModelWrapper(str(path))
    print("operators:", dict(Counter(node.op_type for node in wrapper.graph.node)))
    print("domains:  ", sorted({opset.domain or "ai.onnx" for opset in wrapper.model.opset_import}))

    expected = frozen.integer(*x.values()).numpy()
    result = wrapper.graph.output[0].name
    different = 0
    for n in range(32):
        sample = {name: value[n : n + 1].numpy() for name, value in x.items()}
        got = execute_onnx(wrapper, sample)[result]
        different += not np.array_equal(got[0], expected[n])
    print(f"{different} of 32 samples differ between qonnx and the integer interpreter")
    print(f"the file is {path}")
    return different


if __name__ == "__main__":
    main()
