"""Networks drawn from a seed: branches, joins, modules that are used twice, over vectors and images."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Drawn", "draw_network"]

Shape = tuple[int, ...]
"""Of a sample: (features,) or (channels, height, width)."""


@dataclass(frozen=True)
class Step:
    """One value: `run(module, *earlier values)`; `name` of the module in the network, if it has one."""

    run: Callable[..., Tensor]
    inputs: tuple[int, ...]
    name: str | None = None


class Drawn(nn.Module):
    """Computes its steps in order; returns the values named by `outputs`, one of them alone as a tensor."""

    def __init__(self, steps: list[Step], modules: dict[str, nn.Module], outputs: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(modules)
        self.steps, self.outputs = steps, outputs

    @property
    def layers(self) -> list[str]:
        """Paths of the Linear and Conv2d layers that an output depends on."""
        needed = set(self.outputs)
        for number, step in reversed([*enumerate(self.steps, 1)]):
            if number in needed:
                needed |= set(step.inputs)
        names = dict.fromkeys(step.name for number, step in enumerate(self.steps, 1) if number in needed and step.name is not None)
        return [f"blocks.{name}" for name in names if isinstance(self.blocks[name], nn.Linear | nn.Conv2d)]

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.steps:
            given = [values[i] for i in step.inputs]
            values.append(step.run(self.blocks[step.name], *given) if step.name is not None else step.run(*given))
        results = tuple(values[i] for i in self.outputs)
        return results if len(results) > 1 else results[0]


class With(nn.Module):
    """function(x, constant), the constant in a buffer."""

    constant: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], constant: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)


def draw_network(seed: int, most: int = 10) -> tuple[Drawn, Shape]:
    """A network of up to `most` steps, and the shape of its input's samples. The same seed gives the same network."""
    torch.manual_seed(seed)
    return _Drawing(random.Random(seed)).network(most)


class _Drawing:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.shapes: list[Shape] = []
        self.maps: dict[str, tuple[Shape, Shape]] = {}

    def network(self, most: int) -> tuple[Drawn, Shape]:
        chance = self.chance
        image = (chance.randint(1, 3), chance.choice([3, 4, 6]), chance.choice([3, 4, 5]))
        self.shapes.append(image if chance.random() < 0.5 else (chance.randint(1, 9),))
        while len(self.steps) < chance.randint(2, most):
            at = len(self.shapes) - 1 if chance.random() < 0.8 else chance.randrange(len(self.shapes))
            if chance.random() < 0.25 and self.again(at):
                continue
            kinds = [*_ANY, *(_VECTOR if len(self.shapes[at]) == 1 else _IMAGE)]
            chance.choice(kinds)(self, at)
        outputs = [len(self.shapes) - 1]
        if chance.random() < 0.25:
            outputs.append(chance.randrange(1, len(self.shapes)))
        return Drawn(self.steps, self.modules, list(dict.fromkeys(outputs))).eval(), self.shapes[0]

    # ---- what makes a value
    def call(self, function: Callable[..., Tensor], *inputs: int, shape: Shape) -> None:
        self.steps.append(Step(function, inputs))
        self.shapes.append(shape)

    def apply(self, module: nn.Module, at: int, shape: Shape) -> None:
        name = f"{type(module).__name__.lower()}{len(self.modules)}"
        self.modules[name] = module
        self.maps[name] = (self.shapes[at], shape)
        self._step(name, at, shape)

    def _step(self, name: str, at: int, shape: Shape) -> None:
        self.steps.append(Step(lambda module, x: module(x), (at,), name))
        self.shapes.append(shape)

    def alike(self, at: int) -> int:
        """A value of the same shape, itself where there is no other."""
        return self.chance.choice([i for i, shape in enumerate(self.shapes) if shape == self.shapes[at]])

    # ---- steps on any value
    def again(self, at: int) -> bool:
        """Use a module once more, where there is one that fits."""
        fitting = [name for name, (taken, _) in self.maps.items() if taken == self.shapes[at]]
        if fitting:
            name = self.chance.choice(fitting)
            self._step(name, at, self.maps[name][1])
        return bool(fitting)

    def elementwise(self, at: int) -> None:
        others = [F.relu6, lambda x: F.leaky_relu(x, 0.125), lambda x: F.hardtanh(x, -1.5, 2.0)]
        function = self.chance.choice([F.relu, F.relu, F.relu, *others])
        self.call(function, at, shape=self.shapes[at])

    def tabulated(self, at: int) -> None:
        function = self.chance.choice([torch.tanh, torch.sigmoid, F.gelu, F.silu, F.elu, F.softplus, F.hardsigmoid])
        self.call(function, at, shape=self.shapes[at])

    def join(self, at: int) -> None:
        function = self.chance.choice([operator.add, operator.add, operator.add, operator.sub, operator.mul, torch.maximum, torch.minimum])
        self.call(function, at, self.alike(at), shape=self.shapes[at])

    def with_constant(self, at: int) -> None:
        function = self.chance.choice([operator.add, operator.mul, operator.sub])
        if self.chance.random() < 0.5:
            number = self.chance.choice([0.5, -2.0, 3.0, 0.3])
            self.call(lambda x: function(x, number), at, shape=self.shapes[at])
        else:
            self.apply(With(function, torch.randn(self.shapes[at])), at, self.shapes[at])

    def concat(self, at: int) -> None:
        others = [i for i, shape in enumerate(self.shapes) if shape[1:] == self.shapes[at][1:] and sum(shape[:1]) <= 12]
        chosen = (at, *self.chance.choices(others, k=self.chance.randint(1, 2))) if others else (at,)
        self.call(lambda *x: torch.cat(x, 1), *chosen, shape=(sum(self.shapes[i][0] for i in chosen), *self.shapes[at][1:]))

    def part(self, at: int) -> None:
        channels, *rest = self.shapes[at]
        first = self.chance.randrange(channels)
        last = self.chance.randint(first + 1, channels)
        self.call(lambda x: x[:, first:last], at, shape=(last - first, *rest))

    # ---- on vectors
    def linear(self, at: int) -> None:
        outputs = self.chance.choice([*self.shapes[at], self.chance.randint(1, 8)])
        self.apply(nn.Linear(*self.shapes[at], outputs, bias=self.chance.random() < 0.8), at, (outputs,))

    def normalised_linear(self, at: int) -> None:
        self.linear(at)
        self.apply(_trained(nn.BatchNorm1d(*self.shapes[-1])), len(self.shapes) - 1, self.shapes[-1])

    def softmax(self, at: int) -> None:
        if self.shapes[at][0] > 1:
            self.call(lambda x: F.softmax(x, -1), at, shape=self.shapes[at])

    def layer_norm(self, at: int) -> None:
        if self.shapes[at][0] > 1:
            self.apply(nn.LayerNorm(self.shapes[at]), at, self.shapes[at])

    # ---- on images
    def conv(self, at: int) -> None:
        channels, height, width = self.shapes[at]
        kernel = self.chance.choice([k for k in (1, 2, 3) if k <= min(height, width)])
        padding, stride = self.chance.choice([0, kernel // 2]), self.chance.choice([1, 1, 2])
        groups = self.chance.choice([1, 1, channels])
        outputs = groups * self.chance.randint(1, 2 if groups > 1 else 4)
        module = nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups, bias=self.chance.random() < 0.7)
        size = [(n + 2 * padding - kernel) // stride + 1 for n in (height, width)]
        self.apply(module, at, (outputs, *size))

    def normalised_conv(self, at: int) -> None:
        self.conv(at)
        self.apply(_trained(nn.BatchNorm2d(self.shapes[-1][0])), len(self.shapes) - 1, self.shapes[-1])

    def pool(self, at: int) -> None:
        channels, height, width = self.shapes[at]
        size = self.chance.choice([2, 3])
        if min(height, width) >= size:
            function = self.chance.choice([F.max_pool2d, F.avg_pool2d])
            self.call(lambda x: function(x, size), at, shape=(channels, height // size, width // size))

    def upsample(self, at: int) -> None:
        channels, height, width = self.shapes[at]
        if height * width <= 12:
            self.call(lambda x: F.interpolate(x, scale_factor=2), at, shape=(channels, 2 * height, 2 * width))

    def mean(self, at: int) -> None:
        channels, *_ = self.shapes[at]
        function = self.chance.choice([torch.mean, torch.sum, torch.amax])
        self.call(lambda x: function(x, (2, 3)), at, shape=(channels,))

    def flatten(self, at: int) -> None:
        channels, height, width = self.shapes[at]
        if channels * height * width <= 64:
            self.call(lambda x: x.flatten(1), at, shape=(channels * height * width,))

    def turn(self, at: int) -> None:
        channels, height, width = self.shapes[at]
        self.call(lambda x: x.permute(0, 1, 3, 2), at, shape=(channels, width, height))

    def pad(self, at: int) -> None:
        channels, height, width = self.shapes[at]
        self.call(lambda x: F.pad(x, (1, 0, 0, 1)), at, shape=(channels, height + 1, width + 1))


_D = _Drawing
_ANY = [_D.elementwise, _D.elementwise, _D.tabulated, _D.join, _D.join, _D.with_constant, _D.concat, _D.part]
_VECTOR = [_D.linear, _D.linear, _D.linear, _D.normalised_linear, _D.softmax, _D.layer_norm]
_IMAGE = [_D.conv, _D.conv, _D.normalised_conv, _D.pool, _D.upsample, _D.mean, _D.flatten, _D.turn, _D.pad]


def _trained(norm: Any) -> nn.Module:
    """A BatchNorm that has seen data: its statistics are not those of the first day."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(-1.5, 1.5)
        norm.bias.normal_()
    assert isinstance(norm, nn.Module)
    return norm
