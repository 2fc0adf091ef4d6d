"""Structures on sequences and maps: convolutions, padding, pooling, reductions, layouts, whole small networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structures_fixed import FIXED, fixed

__all__ = ["FIXED"]


class Maps(nn.Module):
    """Layers on a (2, 8, 6) map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.flat = nn.Linear(4, 3), nn.Linear(4 * 4 * 3, 3)


@fixed(x=(2, 8, 6))
class ConvBatchnormPool(Maps):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        with torch.no_grad():
            self.bn.weight.copy_(torch.tensor([1.5, 0.0, -0.7, 0.01]))

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(F.max_pool2d(F.relu(self.bn(self.conv(x))), 2).flatten(1))


@fixed(x=(4, 11))
class Conv1dBatchnorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv1d(4, 5, 4, stride=2, bias=False), nn.BatchNorm1d(5), nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.leaky_relu(self.bn(self.conv(x)), 0.125).flatten(1))


@fixed(x=(4, 7, 5))
class DepthwiseGrouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(8, 6, (3, 2), stride=(2, 1), groups=2, dilation=(1, 2))
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(F.relu6(self.bn(self.depth(x))))


@fixed(x=(4, 11))
class SamePadding(nn.Module):
    """Even kernels and dilation under padding='same'."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.wide = nn.Conv1d(4, 3, 4, padding="same"), nn.Conv1d(3, 2, 3, padding="same", dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.relu(self.even(x)))


@fixed(x=(2, 7, 5))
class AsymmetricPadding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pad = nn.Conv2d(2, 3, (3, 2)), nn.ZeroPad2d((1, 0, 0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x)) + self.conv(F.pad(x, (0, 1, 2, 0)))


@fixed(x=(4, 11))
class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(F.pad(x, (3, 0))))


@fixed(x=(2, 8, 6))
class PaddedMaxPool(Maps):
    def forward(self, x: Tensor) -> Tensor:
        return self.next(F.max_pool2d(self.conv(x), 3, 2, 1))


@fixed(x=(2, 8, 6))
class AveragePools(Maps):
    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(F.relu(self.conv(x)), 2)
        return self.head(F.adaptive_avg_pool2d(self.next(F.avg_pool2d(y, (4, 1))), (1, 3)).sum((2, 3)))


@fixed(x=(2, 8, 4))
class MeanOfMaps(Maps):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return self.head(y.mean((2, 3))) + self.head(F.relu(self.next(y)).sum(dim=(2, 3)) / 32)


@fixed(x=(8, 6))
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels, self.norm = nn.Linear(8, 8), nn.Linear(6, 6), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return (x + self.channels(F.relu(x))).mean(dim=1)


@fixed(x=(16, 10))
class DeepSet(nn.Module):
    """BatchNorm first, the same layers for each of 16 particles, their mean, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.phi, self.psi = nn.BatchNorm1d(10), nn.Conv1d(10, 8, 1), nn.Conv1d(8, 6, 1)
        self.bn2, self.rho, self.pt = nn.BatchNorm1d(8), nn.Linear(6, 5), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.bn2(self.phi(self.bn(x.permute(0, 2, 1)))))
        y = F.avg_pool1d(F.relu(self.psi(y)), 16).squeeze(-1)
        return self.rho(y), self.pt(y)


@fixed(x=(16, 10))
class DeepSetMean(DeepSet):
    """The same on (particles, features) with BatchNorm and mean over the particle axis."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.phi, self.psi = nn.BatchNorm1d(16), nn.Linear(10, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.psi(F.relu(self.phi(self.bn(x))))).mean(1)
        return self.rho(y), self.pt(y)


@fixed(x=(2, 8, 6))
class SkipConcat(Maps):
    """The joins of a U-Net, at one resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.cat([F.relu(self.next(F.relu(self.conv(x)))), 8 * x], 1))


@fixed(x=(2, 4, 3))
class CatAlongRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, (2, 1)), nn.Linear(2 * 7 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), 4 * torch.relu(self.b(x))], dim=2).reshape(x.shape[0], -1))


@fixed(x=(4, 4, 2))
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 2), nn.Linear(2, 4), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.shape
        w = F.adaptive_avg_pool2d(x, 1).view(b, c)
        gate = F.hardtanh(self.b(F.relu(self.a(w))) * 0.25 + 0.5, 0.0, 1.0)
        return self.out(x * gate.view(b, c, 1, 1))


@fixed(x=(2, 8, 6))
class PreActivation(Maps):
    """Pre-activation residual blocks: BatchNorm after add, BatchNorm with two consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.relu(self.bn1(x))
        x = self.down(y) + self.next(y)
        x = x + self.next(F.relu(self.bn2(x)))
        return self.flat(F.max_pool2d(F.relu(self.bn3(x)), 2).flatten(1))


@fixed(x=(2, 8, 6))
class ConvWithTwoConsumers(Maps):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.bn(y)) + y


@fixed(x=(4, 6, 6))
class OptionAShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return F.relu(y).mean((2,)).sum(2) if y.shape[2] == 4 else F.relu(y).sum((2, 3))


@fixed(x=(6, 5))
class AttentionScores(nn.Module):
    """A product of two values by matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).transpose(1, 2)) * 0.25 @ x


@fixed(x=(8, 6))
class ConstantMatrix(nn.Module):
    """An adjacency matrix from the left, one from the right."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pairs", (torch.rand(5, 8) > 0.5).float())
        self.register_buffer("basis", torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.matmul(self.pairs, x)) @ self.basis


@fixed(x=(6, 4))
class BatchnormOverParticles(nn.Module):
    """BatchNorm whose channels are not those of the Linear before it."""

    def __init__(self) -> None:
        super().__init__()
        self.phi, self.bn, self.rho = nn.Linear(4, 5), nn.BatchNorm1d(6), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(torch.relu(self.bn(self.phi(x)))).sum(1)


@fixed(x=(2, 6, 8))
class BatchnormAroundPools(Maps):
    """BatchNorm before a padded convolution, before and after a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.before, self.after = nn.BatchNorm2d(2), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.before(self.conv(self.first(x))), 2)
        return self.next(self.after(F.relu(y)))


@fixed(x=(4, 6))
class StackedBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.stack([self.a(x), 4 * self.b(x)], 2)
        first, second = both.unbind(2)
        return self.head(first - second), both.sum(2)
