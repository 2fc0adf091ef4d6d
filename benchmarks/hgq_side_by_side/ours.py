"""Runner of this package: the preset `hgq` with the beta and the epochs of the comparison. See `protocol.serve`.

`target`: instead of a constant beta, a controller that steers to that many EBOPs. `settings`: further keys of
`quantization_parameters`, to try other recipes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

import pquant_fx as pq
from benchmarks.hgq_side_by_side.protocol import BATCH, HIDDEN, PEAK_RATE, Task, ebops, serve, stored_bits
from pquant_fx.graph.dialect import Quantizer, module_of


def config(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "preset": "hgq",
        "training_parameters": {"epochs": spec["epochs"], "batch_size": BATCH, "learning_rate": PEAK_RATE, **spec.get("training", {})},
        "quantization_parameters": {"hgq_beta": spec["beta"], **spec.get("settings", {})},
    }


def train(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(spec["seed"])
    widths = (task.x.shape[1], *HIDDEN, task.classes)
    layers = [module for n, m in pairwise(widths) for module in (nn.Linear(n, m), nn.ReLU())]
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    model = pq.compile(nn.Sequential(*layers[:-1]), config(spec), x[:BATCH], calibration=x)
    model.fit((x, y))
    frozen = model.freeze()
    with torch.no_grad():
        accuracy = task.accuracy(frozen(torch.from_numpy(task.x_test)).numpy())
    return {"accuracy": accuracy, "ebops": ebops(Layers(frozen, x[:1]).found), "own_ebops": frozen.ebops().total}


class Layers(torch.fx.Interpreter):
    """Runs a frozen graph and keeps (weights, stored bits of the inputs) of every linear layer, for the common counter."""

    def __init__(self, frozen: pq.FrozenModel, x: torch.Tensor) -> None:
        super().__init__(frozen.graph_module)
        self.found: list[tuple[Any, Any]] = []
        self.run(x)

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.target is nn.functional.linear:
            weights = self.fetch_args_kwargs_from_env(n)[0][1].detach().numpy()
            quantizer = module_of(self.module, n.args[0])
            assert isinstance(quantizer, Quantizer)
            k, i, f = (t.double().numpy() for t in quantizer.kif())
            self.found.append((weights, stored_bits(k, i, f, weights.shape[1])))
        return super().run_node(n)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(train)
