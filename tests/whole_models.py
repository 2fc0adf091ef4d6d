"""Whole models of the field in small, as users write them: what has to reach C simulation bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import MLP, ResidualDigits

__all__ = ["WHOLE"]


class ResidualCNN(ResidualDigits):
    """Identity, 1x1 and option-A shortcuts on 8x8 images."""

    def __init__(self) -> None:
        super().__init__(channels=2, classes=3)


class DeepSet(nn.Module):
    """Every particle through the same network, summed (Zaheer et al. 2017); two outputs. (N, 6, 3) -> classes, energy."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.classes, self.energy = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.rho(self.phi(x).sum(dim=1))
        return {"classes": torch.softmax(self.classes(h), -1), "energy": self.energy(h)}


class InteractionNetwork(nn.Module):
    """Edges between all nodes, messages to their receivers (Battaglia et al. 2016). (N, features, nodes) -> (N, 3)."""

    def __init__(self, nodes: int = 4, features: int = 3) -> None:
        super().__init__()
        pairs = torch.tensor([(i, j) for i in range(nodes) for j in range(nodes) if i != j])
        self.register_buffer("receivers", F.one_hot(pairs[:, 0], nodes).float().t())
        self.register_buffer("senders", F.one_hot(pairs[:, 1], nodes).float().t())
        self.edge = nn.Sequential(nn.Linear(2 * features, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
        self.node = nn.Sequential(nn.Linear(features + 4, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        edges = torch.cat([x @ self.receivers, x @ self.senders], dim=1)
        messages = self.receivers @ self.edge(edges.transpose(1, 2))
        nodes = self.node(torch.cat([x.transpose(1, 2), messages], dim=2))
        return self.head(nodes.sum(dim=1))


class MixerBlock(nn.Module):
    """One linear network over tokens, one over channels (Tolstikhin et al. 2021)."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 6), nn.GELU(), nn.Linear(6, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """(N, 4, 5) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = MixerBlock(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(dim=1))


class AttentionBlock(nn.Module):
    """Two heads, a join, LayerNorm and a linear layer (Vaswani et al. 2017). (N, 4, 6) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.norm(x + y)[:, 0])


class UNet(nn.Module):
    """Down, up, and the larger map again (Ronneberger et al. 2015). (N, 1, 8, 8) -> (N, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.out = nn.Conv2d(7, 3, 3, padding=1), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        deep = F.interpolate(F.relu(self.bottom(F.max_pool2d(wide, 2))), scale_factor=2, mode="nearest")
        return self.out(F.relu(self.up(torch.cat([wide, deep], dim=1))))


class MobileNetBlock(nn.Module):
    """Expansion, depthwise convolution, projection, shortcut (Sandler et al. 2018). (N, 3, 6, 6) -> (N, 3, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depth, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.project, self.bn3 = nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.depth(y)))
        return x + self.bn3(self.project(y))


class SqueezeExcite(nn.Module):
    """Channels weighted by what all pixels say (Hu et al. 2018). (N, 2, 4, 4) -> (N, 4, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(self.pool(y).flatten(1)))))
        return y * weights[:, :, None, None]


WHOLE: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "jet MLP": (MLP, (16,)),
    "residual CNN": (ResidualCNN, (1, 8, 8)),
    "DeepSet": (DeepSet, (6, 3)),
    "interaction network": (InteractionNetwork, (3, 4)),
    "MLP-mixer": (Mixer, (4, 5)),
    "attention block": (AttentionBlock, (4, 6)),
    "U-Net": (UNet, (1, 8, 8)),
    "MobileNet block": (MobileNetBlock, (3, 6, 6)),
    "squeeze-excite block": (SqueezeExcite, (2, 4, 4)),
}
"""Model class and the shape of a sample, by name."""
