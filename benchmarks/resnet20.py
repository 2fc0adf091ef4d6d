"""A real pretrained network: ResNet-20 on CIFAR-10, from its float checkpoint to 8 bits and 50 % zeros, every engine equal.

    python -m benchmarks.resnet20 --weights resnet20_cifar10_pretrained.npz --data cifar10.npz [--epochs 2]

weights: a state dict as .npz; data: x_train, y_train, x_test, y_test as .npz, images uint8 (N, 32, 32, 3).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import pquant_fx as pq
from benchmarks.networks import resnet20

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
CALIBRATION, BATCH, COMPARED, RATE = 1024, 128, 200, 0.003


def images(raw: Any) -> Tensor:
    """uint8 (N, 32, 32, 3) to normalised float32 (N, 3, 32, 32)."""
    return ((torch.from_numpy(raw).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def accuracy(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500)))
    return 100 * hits / len(y)


def augmented(x: Tensor, y: Tensor, generator: torch.Generator) -> Any:
    """One epoch of shuffled batches with random flips and shifts by up to four pixels."""
    for picked in torch.randperm(len(x), generator=generator).split(BATCH):
        batch = x[picked]
        batch = torch.where(torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5, batch.flip(3), batch)
        dy, dx = (int(v) for v in torch.randint(0, 9, (2,), generator=generator))
        yield F.pad(batch, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32], y[picked]


def finetune(model: pq.CompiledModel, x: Tensor, y: Tensor, epochs: int) -> None:
    """The user's own loop: two lines of ours."""
    steps = -(-len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(1)
    with pq.session(model, epochs=epochs, steps_per_epoch=steps) as s:
        for epoch in range(epochs):
            model.train()
            start = time.perf_counter()
            for batch, target in augmented(x, y, generator):
                loss = F.cross_entropy(model(batch), target) + s.loss()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                s.step()
            print(f"  epoch {epoch + 1}: {time.perf_counter() - start:.0f} s, {s.epoch_end()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = np.load(options.data)
    x, y = images(data["x_train"]), torch.from_numpy(data["y_train"]).long()
    x_test, y_test = images(data["x_test"]), torch.from_numpy(data["y_test"]).long()
    state = {k: torch.from_numpy(v) for k, v in np.load(options.weights).items()}

    net = resnet20()
    net.load_state_dict(state)
    base = accuracy(net, x_test, y_test)
    print(f"float accuracy                        {base:.2f} %")

    start = time.perf_counter()
    model = pq.compile(net, "fixed8", x[:BATCH], calibration=x[:CALIBRATION])
    print(f"compile and calibrate                 {time.perf_counter() - start:.2f} s")
    model.load_state_dict(state, strict=True)
    model.calibrate(x[:CALIBRATION])
    calibrated = accuracy(model, x_test, y_test)
    print(f"8 bits, calibrated, untrained         {calibrated:.2f} %  ({calibrated - base:+.2f})")
    compare(model, x_test)

    sparse = {"preset": "fixed8", "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5, "scope": "global", "interval": 10}}
    model = pq.compile(net, sparse, x[:BATCH], calibration=x[:CALIBRATION])
    finetune(model, x, y, options.epochs)
    trained = accuracy(model, x_test, y_test)
    print(f"8 bits, 50 % zeros, {options.epochs} epochs          {trained:.2f} %  ({trained - base:+.2f})")
    compare(model, x_test)


def compare(model: pq.CompiledModel, x_test: Tensor) -> None:
    frozen = model.freeze()
    start = time.perf_counter()
    print(frozen.verify(x_test[:COMPARED], targets=("integer", "onnx", "qonnx")))
    print(f"verify took {time.perf_counter() - start:.0f} s; torch runs in {frozen.dtype}")


if __name__ == "__main__":
    main()
