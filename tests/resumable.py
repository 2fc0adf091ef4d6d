"""Trainings that can be killed: small networks with everything that has a state, run in processes of their own.

A new method joins by one line in CONFIGS.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq

__all__ = ["CONFIGS", "EPOCHS", "STEPS", "compiled", "data", "differences", "in_own_loop", "with_fit"]

TRAINING = {"pretraining_epochs": 1, "epochs": 3, "fine_tuning_epochs": 1, "batch_size": 32, "learning_rate": 1e-2}
EPOCHS, STEPS = 5, 4
_WANDA = {"pruning_method": "wanda", "sparsity": 0.5}
_ACTIVATION = {"pruning_method": "activation_pruning", "threshold": 0.5}
_HARDWARE = {"metric_type": "FPGAAwareSparsity", "rf": 3, "value": "gradient"}
_ROUNDS = {"pretraining_epochs": 0, "epochs": 2, "rounds": 2, "rewind": "every-round", "save_weights_epoch": 1}
HGQ = {"hgq_beta": 1e-4, "overflow_mode_data": "WRAP"}


def _config(preset: str, **more: Any) -> dict[str, Any]:
    return {"preset": preset, "training_parameters": {**TRAINING, **more.pop("training", {})}, **more}


# name -> configuration; kill-and-resume is tested over all of them
CONFIGS: dict[str, dict[str, Any]] = {
    "fixed8": _config("fixed8"),
    "stochastic": _config("fixed8", quantization_parameters={"round_mode": "S_RND", "overflow_mode_data": "WRAP"}),
    "hgq": _config("hgq", quantization_parameters=HGQ),
    "hgq_budget": _config("hgq_budget", budget={"ebops": 5000}),
    "magnitude": _config("fixed8", pruning_parameters={"pruning_method": "magnitude", "sparsity": 0.5, "interval": 1}),
    "dst": _config("fixed8", pruning_parameters={"pruning_method": "dst", "alpha": 1e-2}),
    "quantized_first": _config("fixed8", pruning_parameters={"pruning_method": "dst", "alpha": 1e-2}, training={"pruning_first": False}),
    "autosparse": _config("fixed8", pruning_parameters={"pruning_method": "autosparse", "threshold_init": -2.0, "autotune_factor": 0.5}),
    "pdp": _config("fixed8", pruning_parameters={"pruning_method": "pdp", "sparsity": 0.5}),
    "wanda": _config("fixed8", pruning_parameters={**_WANDA, "t_start_collecting_batch": 2, "t_delta": 2}),
    "activation_pruning": _config("fixed8", pruning_parameters={**_ACTIVATION, "t_start_collecting_batch": 1, "t_delta": 3}),
    "mdmm": _config("fixed8", pruning_parameters={"pruning_method": "mdmm", "target_sparsity": 0.5}),
    "mdmm_gradient": _config("fixed8", pruning_parameters={"pruning_method": "mdmm", "target_sparsity": 0.5, **_HARDWARE}),
    "cs": _config("fixed8", pruning_parameters={"pruning_method": "cs", "threshold_decay": 1e-3}),
    "rewind": _config("fixed8", pruning_parameters={"pruning_method": "cs"}, training=_ROUNDS),
}


class Net(nn.Module):
    """(N, 1, 8, 8) -> (N, 5), with running statistics and random numbers of the training."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(27, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 2)
        return self.head(self.drop(torch.flatten(x, 1)))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(STEPS * 32, 1, 8, 8, generator=generator)
    return x, x.mean((1, 2, 3)).mul(40).long().clamp(-2, 2) + 2


def compiled(name: str, dropout: float = 0.1) -> pq.CompiledModel:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    return pq.compile(Net(dropout), CONFIGS[name], data()[0][:64])


class Killer:
    """Kills its own process at the call numbered `at` (from 1), as the scheduler of a batch system does."""

    def __init__(self, at: int | None) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def with_fit(name: str, folder: str, kill_at: int | None = None, kill_write: int | None = None) -> None:
    """`fit` with a checkpoint, killed at a call of the loss, or when a written file is about to take the place of the old one."""
    killer, writing, replace = Killer(kill_at), Killer(kill_write), os.replace

    def loss(output: Tensor, target: Tensor) -> Tensor:
        killer()
        return F.cross_entropy(output, target) * (1 + 0.01 * random.random() + 0.01 * np.random.rand())

    def replacing(*args: Any) -> None:
        writing()
        replace(*args)

    os.replace = replacing
    try:
        x, y = data()
        compiled(name).fit((x, y), (x[:64], y[:64]), loss=loss, checkpoint=f"{folder}/run.pt", resume=True)
    finally:
        os.replace = replace


def in_own_loop(name: str, folder: str, kill_at: int | None = None, every: int = 3) -> None:
    """A loop that saves every few steps, in the middle of epochs, and is killed in a step; the order follows from the epoch."""
    path, killer, (x, y) = Path(folder) / "run.pt", Killer(kill_at), data()
    model = compiled(name)
    optimizer = torch.optim.AdamW(pq.param_groups(model, 1e-2, weight_decay=1e-3))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5 * (1 + math.cos(math.pi * n / (EPOCHS * STEPS))))
    parts = {"optimizer": optimizer, "scheduler": scheduler}
    done = 0
    model.calibrate(x)
    with pq.session(model, epochs=EPOCHS, steps_per_epoch=STEPS, optimizer=optimizer) as s:
        if path.exists():
            done = pq.resume(model, path, session=s, **parts)["done"]
        for epoch in range(s.epoch, EPOCHS):
            model.train()
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(32)
            for rows in order[s.steps :]:
                loss = F.cross_entropy(model(x[rows]), y[rows]) + s.loss()
                optimizer.zero_grad()
                loss.backward()
                killer()
                optimizer.step()
                s.step()
                scheduler.step()
                done += 1
                if done % every == 0:
                    pq.save(model, path, session=s, **parts, extra={"done": done})
            s.epoch_end()
    model.calibrate(x)
    pq.save(model, path, session=s, **parts, extra={"done": done})


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two contents of checkpoints differ in a single bit; wall time apart."""
    if isinstance(one, Tensor):
        same = isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)
        return [] if same else [where]
    if isinstance(one, dict):
        keys = [k for k in one if k != "seconds"]
        different = [] if list(one) == list(two) else [where]
        return different + [d for k in keys for d in differences(one[k], two.get(k), f"{where}.{k}")]
    if isinstance(one, list | tuple):
        different = [] if len(one) == len(two) else [where]
        return different + [d for n, (a, b) in enumerate(zip(one, two)) for d in differences(a, b, f"{where}[{n}]")]
    return [] if one == two else [where]


def quietly(run: Callable[..., None], *args: Any) -> None:
    """The target of a process: what it prints and warns of belongs to nobody."""
    import warnings

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(*args)
