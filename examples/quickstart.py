"""Quickstart: from a PyTorch model to bit-exact ONNX in a dozen lines.

A small network learns handwritten digits (scikit-learn's, 8x8 pixels) with 8-bit weights and activations and half of its
weights removed; then every engine computes the same bits.

    python examples/quickstart.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pquant_fx as pq


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x, y) to train on and (x, y) to test on; x: (N, 64) in [0, 1], y: class numbers."""
    bunch = load_digits()
    x = torch.tensor(bunch.data, dtype=torch.float32) / 16
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return (x[train], y[train]), (x[test], y[test])


def main(output: str | Path = "build/quickstart") -> bool:
    torch.manual_seed(0)
    train, test = digits()
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))

    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 2, "epochs": 16, "fine_tuning_epochs": 2, "batch_size": 64, "learning_rate": 5e-3},
        "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5},
    }
    model = pq.compile(net, config, train[0][:64])  # `net` itself stays as it is
    print(model.text())
    print(model.fit(train, validation=test))

    frozen = model.freeze()
    directory = Path(output)
    frozen.to_qonnx(directory / "net.qonnx.onnx", strict=True)
    frozen.to_onnx(directory / "net.onnx")
    report = frozen.verify(test[0], targets=("integer", "onnx", "qonnx"))
    print(report)
    print(f"the files are in {directory}")
    return report.ok


if __name__ == "__main__":
    main()
