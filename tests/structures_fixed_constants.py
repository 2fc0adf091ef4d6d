"""Structures that compute with numbers, parameters and buffers: scalar first, awkward numbers, constants of every shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structures_fixed import FIXED, Layers, fixed

__all__ = ["FIXED"]


@fixed(x=(8,))
class ScalarFirst(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(1.0 - 0.5 * self.a(x))


@fixed(x=(8,))
class AwkwardNumbers(Layers):
    """Factors, addends and divisors that are no dyadic numbers."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) * 0.1 + 0.3
        return self.out(torch.relu(1.7 - y / 3)) / 2.5 - 1 / 3


@fixed(x=(8,))
class TimesThreeThenAdd(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.add(self.a(x), self.b(x), alpha=3)) * -4


@fixed(x=(8,))
class InPlace(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.c(x), inplace=True)
        y += x
        y *= 2
        return self.a(y.relu_())


@fixed(x=(8,))
class SameTensorAdded(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y + y)


@fixed(x=(8,))
class LayerScale(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-0.3, 0.2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x + self.gamma * torch.relu(self.c(x)))


@fixed(x=(8,))
class BuffersInForward(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.randn(8))
        self.register_buffer("sd", torch.rand(8) + 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a((x - self.mu) / self.sd)


@fixed(x=(8,))
class Shift(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.shift - self.a(x)


@fixed(x=(8,))
class ProductOfValues(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) * F.relu(self.b(x))) + self.out(self.a(x)) ** 2


@fixed(x=(8,))
class OneWeightInTwoRoles(Layers):
    """A parameter that is a factor here and an addend there."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y * self.gamma + self.gamma)


@fixed(x=(8,))
class LargestOfConstant(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.floor = nn.Parameter(torch.randn(6) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.maximum(self.a(x), self.floor))


@fixed(x=(8,))
class FunctionsOfParameters(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(F.linear(x, torch.tanh(self.w) * 0.3, torch.exp(self.v) * 0.1)))


@fixed(x=(8,))
class ScalarParameters(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(0.37)), nn.Parameter(torch.tensor([0.1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.scale * self.a(x) + self.shift)


@fixed(x=(2, 4, 5))
class ParametersOfEveryShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.scale, self.shift = nn.Parameter(torch.randn(1, 3, 1, 1)), nn.Parameter(torch.randn(3, 1, 1))
        self.map = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) * self.scale + self.shift) * self.map


@fixed(x=(8,))
class Centred(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        return self.a(y - y.mean(1, keepdim=True)) * y.sum(1, keepdim=True)


@fixed(x=(8,))
class TimesZero(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) * 0.0 + self.b(x))


@fixed(x=(8,))
class LargeAndSmall(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x * 1000 + 12345.678) * 1e-4 + self.b(x / 50)
