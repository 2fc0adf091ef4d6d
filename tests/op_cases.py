"""One small model for every operator, and what each engine makes of it: the list behind the README's table of operators.

A case is a model of one operator on quantized inputs. An engine gives the same bits as torch ("exact") or refuses with a code, which
is written here; `test_op_cases*.py` run every case through every engine. The cases are in `op_cases_*.py`, one file a family or two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.frozen import FrozenModel

__all__ = ["ENGINES", "HLS", "Call", "Call2", "Case", "case", "frozen", "load_cases"]

HLS = ("io_parallel", "io_stream")
ENGINES = ("integer", "onnx", "qonnx", *HLS)
SAMPLES = 40

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """family, operator: where the README's table shows it; name: of the case; refused: engine -> code, where it is not exact.

    shapes: of the inputs' samples; below: the inputs are whole numbers from 0 up to this, not included.
    """

    family: str
    operator: str
    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    refused: dict[str, str]
    below: int = 0

    def expected(self, engine: str) -> str:
        """`exact`, or the code of the refusal."""
        return self.refused.get(engine, "exact")

    def model(self) -> nn.Module:
        torch.manual_seed(sum(map(ord, self.name)))
        return self.build()

    def inputs(self, samples: int = SAMPLES) -> tuple[Tensor, ...]:
        """Ordinary, saturating and tiny values, and ties of the grids that 8 bits have for them."""
        generator = torch.Generator().manual_seed(samples)
        if self.below:
            return tuple(torch.randint(self.below, (samples, *shape), generator=generator) for shape in self.shapes)
        made = []
        for shape in self.shapes:
            x = torch.randn(samples, *shape, generator=generator)
            x[1::5] = (torch.round(x[1::5] * 32) + 0.5) / 32
            x[2::5] *= 30
            x[3::5] *= 0.02
            made.append(x)
        return tuple(made)


def case(
    where: str, name: str, build: Callable[[], nn.Module], *shapes: tuple[int, ...], below: int = 0, every: str = "", **refused: str
) -> None:
    """Register a case. where: "family: operator"; every: the code with which all engines refuse; refused: engine=code for single ones."""
    if name in CASES:
        raise ValueError(f"two cases are called '{name}'")
    family, operator = where.split(": ", 1)
    CASES[name] = Case(family, operator, name, build, shapes, dict.fromkeys(ENGINES, every) if every else refused, below)


@cache
def load_cases() -> dict[str, Case]:
    """All cases, by name, in the order of their files."""
    for path in sorted(Path(__file__).parent.glob("op_cases_*.py")):
        import_module(f"tests.{path.stem}")
    return CASES


@cache
def frozen(name: str) -> FrozenModel:
    """The case with 8 bits everywhere, calibrated on ordinary values. Raises LoweringError where all engines refuse."""
    one = load_cases()[name]
    return pq.compile(one.model(), "fixed8", tuple(x[::5] for x in one.inputs(5 * SAMPLES))).eval().freeze()


class Call(nn.Module):
    """A function of one value, with layers that it may use: function(x), or function(self, x) where there are some."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.takes_self = function, bool(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x) if self.takes_self else self.function(x)


class Call2(nn.Module):
    """A function of two values."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)
