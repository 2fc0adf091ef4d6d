"""FIFOs of ResNet-20 in io_stream: the computed depths against hls4ml's own, and a cycle-level simulation of both. No data needed.

python -m benchmarks.stream_fifos
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

import pquant_fx as pq
from benchmarks.networks import resnet20
from pquant_fx.lower.hls4ml.stream_depths import SLACK, fifo_depths, most_tokens
from pquant_fx.lower.hls4ml.stream_layers import stream_network
from pquant_fx.lower.hls4ml.stream_simulation import simulate


def main() -> None:
    torch.manual_seed(0)
    frozen = pq.compile(resnet20(), "fixed_per_tensor", torch.randn(8, 3, 32, 32)).freeze()
    with tempfile.TemporaryDirectory() as folder:
        project = frozen.to_hls4ml(Path(folder) / "p", io_type="io_stream", fifo_depths="whole")
    graph = project.model_graph
    network = stream_network(graph)
    whole = {v.name: v.pragma[1] for v in graph.output_vars.values() if v.name in network.fifos}
    start = time.perf_counter()
    depths = fifo_depths(network)
    seconds = time.perf_counter() - start
    least, inner = most_tokens(network), [fifo for fifo in whole if fifo in depths]
    print(f"computed in {seconds:.2f} s for {len(network.processes)} processes; FIFOs above {SLACK}: {sorted(depths.values())[::-1][:12]}")
    for label, chosen in (("hls4ml's own", {**depths, **whole}), ("computed", depths), ("one token less in each skip", _less(least))):
        run = simulate(network, chosen)
        end = "DEADLOCK" if run.deadlock else "no deadlock"
        print(f"{label:30s} {sum(chosen[fifo] for fifo in inner):8,d} tokens  {run.cycles:8,d} cycles for 3 images, {end}")


def _less(least: dict[str, int]) -> dict[str, int]:
    return {fifo: count - 1 if count > SLACK else count for fifo, count in least.items()}


if __name__ == "__main__":
    main()
