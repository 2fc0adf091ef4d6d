"""The demo's network and data: a small residual CNN on scikit-learn's handwritten digits (8x8 pixels, real, bundled)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant_fx.errors import ExtraMissingError, Problem

__all__ = ["Block", "Digits", "ResidualNet", "ShrinkingBlock", "load_digits"]


class Block(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)); the shortcut is the identity, or 1x1 convolution and BatchNorm."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ShrinkingBlock(nn.Module):
    """Twice the channels on half the pixels; the shortcut has no weights: every second pixel, zeros for the new channels.

    "Option A" of He et al. 2016. (N, C, H, W) -> (N, 2C, H/2, W/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        before = self.channels // 2
        return F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.channels - before)))


class ResidualNet(nn.Module):
    """(N, 1, 8, 8) -> (N, 10): a block with each kind of shortcut (identity, 1x1, option A), global mean, classifier."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.block1 = Block(channels, channels)
        self.block2 = Block(channels, 2 * channels, 2)
        self.block3 = ShrinkingBlock(2 * channels)
        self.head = nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Digits:
    """x: (N, 1, 8, 8) in steps of 1/16 from 0 to 1; y: the digit. 1,297 images to train on and 500 to test on."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def load_digits(seed: int = 0) -> Digits:
    """The digits in a seeded order. Raises ExtraMissingError (PQ503) without scikit-learn."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ExtraMissingError(Problem("PQ503", "the demo needs scikit-learn for its data", "pip install 'pquant_fx[demo]'")) from error
    bunch = datasets.load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:-500], order[-500:]
    return Digits(x[train], y[train], x[test], y[test])
