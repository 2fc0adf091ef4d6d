"""A residual network in a training loop of one's own: two extra lines, s.loss() and s.step().

Nothing is done to the shortcut: the compiler quantizes both branches where they are made and aligns their binary points
exactly where they meet.

    python examples/residual_network.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pquant_fx as pq

EPOCHS = 6


class Block(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + x)"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


def main(output: str | Path = "build/residual_network") -> bool:
    torch.manual_seed(0)
    bunch = load_digits()
    x, y = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target)
    loader = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True)
    x_test, y_test = x[1400:], y[1400:]

    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), Block(8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 0},
        "pruning_parameters": {"pruning_method": "magnitude", "sparsity": 0.5},
    }
    model = pq.compile(net, config, x[:256])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    with pq.session(model, epochs=EPOCHS, steps_per_epoch=len(loader)) as s:
        for epoch in range(EPOCHS):
            model.train()
            for inputs, target in loader:
                loss = F.cross_entropy(model(inputs), target) + s.loss()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                s.step()
            log = s.epoch_end()
            accuracy = (model.eval()(x_test).argmax(1) == y_test).float().mean()
            print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}, sparsity {log['sparsity']:.1%}")

    frozen = model.calibrate(x[:1400]).freeze()
    frozen.to_qonnx(Path(output) / "net.onnx", strict=True)
    report = frozen.verify(x_test, targets=("integer", "onnx"))
    print(report)
    return report.ok


if __name__ == "__main__":
    main()
