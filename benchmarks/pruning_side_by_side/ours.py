"""Runner of this package: see `protocol.serve`."""

from __future__ import annotations

from typing import Any

import torch

import pquant_fx as pq
from benchmarks.hgq_side_by_side.protocol import Task, serve
from benchmarks.pruning_side_by_side.plan import EPOCHS
from benchmarks.pruning_side_by_side.tasks import network, task, zeros
from pquant_fx.train.pruning import masks_of


def train(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(spec["seed"])
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    config = {
        "preset": "float",
        "training_parameters": {**EPOCHS, "batch_size": spec["batch"], "learning_rate": spec["rate"]},
        "pruning_parameters": {"pruning_method": spec["method"], **spec["settings"]},
    }
    model = pq.compile(network(task), config, x[:64])
    model.fit((x, y))
    model.eval()
    with torch.no_grad():
        accuracy = task.accuracy(model(torch.from_numpy(task.x_test)).numpy())
    weights = [model.get_parameter(path).detach() for _, path in masks_of(model.graph_module)]
    return {"accuracy": accuracy, "sparsity": zeros(weights)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(train, task)
