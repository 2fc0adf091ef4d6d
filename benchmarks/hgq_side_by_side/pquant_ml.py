"""Runner of pquant-ml's HGQ on torch, in pquant-ml's own environment: see `protocol.serve`.

Layers are placed directly (`PQDense`), one data quantizer a layer as in the other tools: signed at the input, unsigned after ReLU.
Gamma is 1e-8 (the shipped 3e-4 collapses the network). With `data_overflow` WRAP, whose integer bits follow the last batch,
one pass over the whole training set before evaluation settles them, which the library leaves to its user.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"
import numpy as np
import pquant
import torch
from pquant.core.torch.layers import PQDense, get_model_losses, post_epoch_functions, post_pretrain_functions, pre_epoch_functions
from torch import nn

from benchmarks.hgq_side_by_side.protocol import BATCH, HIDDEN, PEAK_RATE, Task, ebops, serve, stored_bits


def config(spec: dict[str, Any]) -> Any:
    chosen = pquant.pdp_config()
    chosen.pruning_parameters.enable_pruning = False
    quantization = chosen.quantization_parameters
    quantization.use_high_granularity_quantization = True
    quantization.granularity = "per_weight"
    quantization.hgq_beta, quantization.hgq_gamma = spec["beta"], spec.get("gamma", 1e-8)
    quantization.default_weight_integer_bits, quantization.default_weight_fractional_bits = spec["i0"], spec["f0"]
    quantization.overflow_mode_parameters, quantization.overflow_mode_data = "SAT_SYM", spec["data_overflow"]
    return chosen


def train(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(spec["seed"])
    chosen = config(spec)
    widths = (task.x.shape[1], *HIDDEN, task.classes)
    layers = [
        PQDense(chosen, n, m, in_quant_bits=(float(index == 0), spec["data_i0"], spec["data_f0"]))
        for index, (n, m) in enumerate(pairwise(widths))
    ]
    model = nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    model.train()
    model(x[:BATCH])  # builds the quantizers: the optimizer must come after
    post_pretrain_functions(model, chosen)
    optimizer = torch.optim.Adam(model.parameters(), PEAK_RATE)
    epochs, steps = spec["epochs"], -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        pre_epoch_functions(model, epoch, epochs)
        for picked in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.cross_entropy(model(x[picked]), y[picked])
            optimizer.zero_grad()
            get_model_losses(model, loss).backward()
            optimizer.step()
            schedule.step()
        post_epoch_functions(model, epoch, epochs)
    with torch.no_grad():
        model(x)  # settles the tracked integer bits (WRAP)
        model.eval()
        accuracy = task.accuracy(model(torch.from_numpy(task.x_test)).numpy())
        return {"accuracy": accuracy, "ebops": ebops(dense(layer) for layer in layers)}


def dense(layer: Any) -> Any:
    weights = layer.weight.detach().numpy()
    k, i, f = (np.asarray(v.detach().numpy(), np.float64) for v in layer.input_quantizer.get_quantization_bits())
    return weights, stored_bits(k, i, f, weights.shape[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(train)
