"""Runner of pquant-ml on torch, in pquant-ml's own environment: its own training loop (`train_model`), quantization off."""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"
import pquant
import torch
from pquant.core.torch.layers import add_compression_layers, apply_final_compression, get_model_losses
from pquant.core.torch.train import train_model
from torch import nn

from benchmarks.hgq_side_by_side.protocol import Task, serve
from benchmarks.pruning_side_by_side.plan import EPOCHS
from benchmarks.pruning_side_by_side.tasks import batches, network, task, zeros

CONFIGS = {"activation_pruning": "ap_config"}


def config(spec: dict[str, Any]) -> Any:
    chosen = getattr(pquant, CONFIGS.get(spec["method"], f"{spec['method']}_config"))()
    chosen.quantization_parameters.enable_quantization = False
    for key, value in spec["settings"].items():
        setattr(chosen.pruning_parameters, key, value)
    for key, value in {**EPOCHS, "rewind": "never", "rounds": 1}.items():
        setattr(chosen.training_parameters, key, value)
    return chosen


def train(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(spec["seed"])
    chosen = config(spec)
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    model = add_compression_layers(network(task), chosen, x[:1].shape)
    optimizer = torch.optim.Adam(model.parameters(), spec["rate"])
    steps = -(-len(x) // spec["batch"]) * sum(EPOCHS.values())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def one_epoch(model: Any, epoch: Any, **_: Any) -> None:
        for picked in batches(len(x), spec["batch"]):
            optimizer.zero_grad()
            get_model_losses(model, nn.functional.cross_entropy(model(x[picked]), y[picked])).backward()
            optimizer.step()
            schedule.step()

    train_model(model, chosen, one_epoch, lambda model, epoch, **_: None, input_shape=x[:1].shape)
    apply_final_compression(model)
    model.eval()
    with torch.no_grad():
        accuracy = task.accuracy(model(torch.from_numpy(task.x_test)).numpy())
        layers = [m for m in model.modules() if hasattr(m, "pruning_layer")]
        return {"accuracy": accuracy, "sparsity": zeros([layer.weight.detach() for layer in layers])}


def attempt(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    try:
        return train(task, spec)
    except Exception as error:  # what the peer can not run is reported, not hidden
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(attempt, task)
