"""How long compiling takes, and that its cost grows linearly: ResNet-20 against a ResNet ten times deeper.

python -m benchmarks.compile_time
"""

from __future__ import annotations

import gc
import statistics
import time

import torch

import pquant_fx as pq
from benchmarks.networks import ResNet

RUNS = 5


def seconds(net: torch.nn.Module, x: torch.Tensor, config: dict[str, object]) -> float:
    gc.collect()  # of the run before
    start = time.perf_counter()
    pq.compile(net, config, x)
    return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    config: dict[str, object] = {"preset": "fixed8", "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5}}
    small, deep = ResNet(3), ResNet(33)
    seconds(small, x, config)  # first call: imports and caches
    pairs = [(seconds(small, x, config), seconds(deep, x, config)) for _ in range(RUNS)]  # interleaved
    one, ten = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    print(f"compile ResNet-20            {one:6.2f} s   (median of {RUNS}, trace, passes, checks and calibration; 1.5 s allowed)")
    print(f"compile ResNet-200           {ten:6.2f} s   (10 times deeper, 11 times the blocks)")
    print(f"deep / small                 {ten / one:6.2f}     (at most 12 allowed)")


if __name__ == "__main__":
    main()
