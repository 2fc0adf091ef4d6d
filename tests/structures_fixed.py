"""Structures that compile to fixed point, in the words of ordinary user models: sharing, slices, joins, BatchNorm, interfaces.

`FIXED[name].model()` builds one with fixed random weights and lived-in BatchNorm statistics, `.inputs(batch)` its example
inputs. All axes have different lengths, so that a wrong transpose shows. Arithmetic with constants and convolutions have
files of their own; `names(module)` lists the structures of one file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.structures import Structure

__all__ = ["FIXED", "Layers", "fixed", "names"]

FIXED: dict[str, Structure] = {}


def fixed(**shapes: tuple[int, ...]) -> Callable[[Any], Any]:
    """Register a module class under its own name."""

    def register(cls: Any) -> Any:
        FIXED[cls.__name__] = Structure(cls.__name__, cls, shapes)
        return cls

    return register


def names(module: str) -> list[str]:
    """The structures that the file `tests/<module>.py` registers."""
    import_module(f"tests.{module}")
    return [name for name, case in FIXED.items() if case.build.__module__ == f"tests.{module}"]


class Layers(nn.Module):
    """A spread of layers on 8 features to write forwards with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 8)
        self.narrow, self.out = nn.Linear(4, 3), nn.Linear(6, 3)
        self.act = nn.ReLU()


# ---- sharing
@fixed(x=(8,))
class OneReluTwice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.a(self.act(self.c(x)) * 8)))


@fixed(x=(8,))
class OneLinearTwice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(self.act(self.c(self.act(self.c(x))))))


@fixed(left=(8,), right=(8,))
class Siamese(Layers):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(self.act(self.a(right)) - self.act(self.a(left)))


@fixed(x=(8,))
class TiedTranspose(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.a(x)), self.a.weight.t(), self.bias)


@fixed(x=(8,))
class TwoNames(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.c

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(F.relu(self.c(x)))


@fixed(x=(8,))
class OneBatchnormTwice(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.bn(self.a(x))) - self.bn(self.b(x)))


@fixed(x=(8,))
class UnusedParts(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        self.b(x)
        return self.out(y)


# ---- slices
@fixed(x=(8,))
class ChunkHalves(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.c(x).chunk(2, dim=1)
        return self.narrow(a + 8 * b) + self.narrow(b)


@fixed(x=(8,))
class SplitUneven(Layers):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.c(x), [3, 4, 1], dim=1)
        return self.narrow(b) + a * c


@fixed(x=(8,))
class TailHalf(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.c(x)[:, 4:])


@fixed(x=(8,))
class HalvesReversed(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x[:, 4:]), self.narrow(x[:, :4])], dim=1)


# ---- joins
@fixed(x=(8,))
class Residual(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(x + self.c(torch.relu(self.c(x)))))


@fixed(x=(8,))
class CatOfScales(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([F.hardtanh(0.125 * self.a(x)), 16 * F.relu(self.b(x))], 1))


@fixed(x=(8,))
class CatTwice(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.a(x))
        return self.head(torch.cat([torch.cat([y, y], 1), self.b(x), y], dim=-1))


@fixed(x=(8,))
class ThreeWay(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) + self.b(x) + torch.relu(self.a(x) - 4 * self.b(x)))


@fixed(x=(8,))
class Extremes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.maximum(self.a(x), self.b(x)) - torch.min(self.a(x), self.b(x)))


# ---- BatchNorm without convolutions
@fixed(x=(8,))
class InputBatchnorm(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(self.bn(x))))


@fixed(x=(8,))
class LinearBatchnorm(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.plain = nn.BatchNorm1d(6), nn.BatchNorm1d(3, affine=False)
        with torch.no_grad():
            self.bn.weight.copy_(torch.tensor([1.5, 0.0, -0.7, 0.01, 2.0, 1.0]))
            self.bn.bias.copy_(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.out(F.relu(self.bn(self.a(x)))))


@fixed(x=(8,))
class BatchnormTwiceInARow(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.second(self.first(self.a(x)))))


@fixed(x=(8,))
class BatchnormOfASum(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(F.relu(self.bn(y + self.b(x)))) + self.out(y)


@fixed(x=(8,))
class SharedLinearTwoBatchnorms(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.second(self.c(F.relu(self.first(self.c(x))))))


# ---- several inputs and outputs
class Heads(NamedTuple):
    jet_id: Tensor
    pt: Tensor


@fixed(tracks=(8,), towers=(8,))
class NamedHeads(Layers):
    def forward(self, tracks: Tensor, towers: Tensor) -> Heads:
        h = F.relu(self.a(towers) + self.b(tracks))
        return Heads(self.out(h), h[:, :1])


@fixed(b=(8,), a=(8,))
class DictHeads(Layers):
    def forward(self, b: Tensor, a: Tensor) -> dict[str, Any]:
        h = F.relu(self.a(a))
        return {"raw": h, "both": (self.out(h), self.b(b)), "copy": b}


@fixed(x=(8,), unused=(4,))
class NothingButInputs(Layers):
    """Inputs that go straight to outputs, and one that nothing uses."""

    def forward(self, x: Tensor, unused: Tensor, *, scale: float = 2.0, mask: Tensor | None = None) -> tuple[Any, ...]:
        y = x if mask is None else x * mask
        return x, x[:, :3], [torch.cat([x, y], 1), -x], y * scale + 1


@fixed(x=(8,), row=(1,), map=(8, 4, 1))
class BroadcastInputs(Layers):
    def forward(self, x: Tensor, row: Tensor, map: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x * row + row), map + x.view(-1, 8, 1, 1)
