"""Small models that many tests share, written as users write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "MLP",
    "Bottleneck",
    "Concat",
    "ConvBN",
    "Deep",
    "Depthwise",
    "MultiIO",
    "OptionA",
    "ResidualDigits",
    "SharedLinear",
    "Unused",
    "digits_like",
]


class MLP(nn.Sequential):
    """16-64-32-32-5 with ReLU: the jet classifier of the field."""

    def __init__(self, inputs: int = 16, classes: int = 5) -> None:
        super().__init__(
            nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
        )


class ConvBN(nn.Module):
    """Conv, BatchNorm, ReLU, pooling, Linear: (N, 1, 8, 8) -> (N, classes)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(F.relu(self.bn(self.conv(x)))), 1))


class Bottleneck(nn.Module):
    """Two convolutions with BatchNorm and a shortcut: the identity, or 1x1 with BatchNorm when the shape changes."""

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


class OptionA(nn.Module):
    """The shortcut without weights: every second pixel, zeros for the new channels. (N, C, H, W) -> (N, 2C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.extra = channels
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.extra // 2
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(y)


class ResidualDigits(nn.Module):
    """A residual network for 8x8 images: stem, identity block, 1x1 block, option-A block, global mean, Linear."""

    def __init__(self, channels: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.block1 = Bottleneck(channels, channels)
        self.block2 = Bottleneck(channels, 2 * channels, 2)
        self.block3 = OptionA(2 * channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(self.pool(x).flatten(1))


class Depthwise(nn.Module):
    """Depthwise and pointwise convolution: (N, 4, 8, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.point = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.point(F.relu(self.depth(x)))).mean((2, 3)))


class Concat(nn.Module):
    """Two branches of different range, concatenated: (N, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 6)
        self.right = nn.Linear(8, 4)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([F.relu(self.left(x)), 4 * self.right(x)], dim=1))


class MultiIO(nn.Module):
    """Two inputs, a dict of two outputs: (N, 6), (N, 4) -> {"score": (N, 3), "energy": (N, 1)}."""

    def __init__(self) -> None:
        super().__init__()
        self.track = nn.Linear(6, 8)
        self.tower = nn.Linear(4, 8)
        self.score = nn.Linear(8, 3)
        self.energy = nn.Linear(8, 1)

    def forward(self, tracks: Tensor, towers: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.track(tracks) + self.tower(towers))
        return {"score": self.score(h), "energy": self.energy(h)}


class SharedLinear(nn.Module):
    """One Linear called twice: one weight, two call sites. (N, 8) -> (N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.fc(x)))


class Unused(nn.Module):
    """A module in the state_dict that `forward` never calls. (N, 8) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)
        self.spare = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Deep(nn.Sequential):
    """`depth` times Linear and ReLU of `width` features."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)))


def digits_like(n: int, features: int = 16, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` samples of `classes` Gaussian clouds: (n, features) float32 and class numbers; quick to learn."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(12345))
    y = torch.randint(classes, (n,), generator=generator)
    return centres[y] + 0.5 * torch.randn(n, features, generator=generator), y
