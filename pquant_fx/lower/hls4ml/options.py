"""What the user may choose about an hls4ml project."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pquant_fx.errors import ConfigError, Problem

__all__ = ["BACKENDS", "STRATEGIES", "LayerOptions", "Options", "require_options"]

BACKENDS: Final = ("Vitis", "Vivado", "Quartus", "oneAPI", "Catapult")
IO_TYPES: Final = ("io_parallel", "io_stream")
STRATEGIES: Final = ("latency", "resource", "resource_unrolled", "distributed_arithmetic")
FIFO_DEPTHS: Final = ("static", "whole")


@dataclass(frozen=True)
class LayerOptions:
    """How one layer multiplies. reuse_factor: how many multiplications share a multiplier."""

    strategy: str = "latency"
    reuse_factor: int = 1


@dataclass(frozen=True)
class Options:
    """Settings of an hls4ml project. part: None is the backend's own default; clock_period in ns.

    strategy, reuse_factor hold for every layer with weights; `layers` overrules them for ONNX nodes, by name.
    fifo_depths (io_stream): `static` computes what joins need, `whole` is hls4ml's: every FIFO holds a whole image.
    """

    backend: str = "Vitis"
    io_type: str = "io_parallel"
    part: str | None = None
    clock_period: float = 5
    strategy: str = "latency"
    reuse_factor: int = 1
    layers: Mapping[str, LayerOptions] = field(default_factory=dict)
    fifo_depths: str = "static"

    def problems(self) -> list[Problem]:
        """PQ405 for names that do not exist, PQ407 for numbers that can not be."""
        asked = [("backend", self.backend, BACKENDS), ("io type", self.io_type, IO_TYPES), ("fifo depths", self.fifo_depths, FIFO_DEPTHS)]
        each = [("", LayerOptions(self.strategy, self.reuse_factor)), *((f"layers: {name}: ", one) for name, one in self.layers.items())]
        asked += [(f"{where}strategy", one.strategy, STRATEGIES) for where, one in each]
        found = [
            Problem("PQ405", f"there is no {what} '{value}'", f"choose one of {', '.join(choices)}")
            for what, value, choices in asked
            if value not in choices
        ]
        if not isinstance(self.clock_period, int | float) or not 0 < self.clock_period < math.inf:
            found.append(Problem("PQ407", f"clock_period={self.clock_period!r}", "give the clock period in ns, such as 5"))
        for where, one in each:
            if not isinstance(one.reuse_factor, int) or isinstance(one.reuse_factor, bool) or one.reuse_factor < 1:
                found.append(Problem("PQ407", f"{where}reuse_factor={one.reuse_factor!r}", "give a whole number of at least 1"))
        return found

    def of(self, node: str) -> tuple[LayerOptions, bool]:
        """(what holds for this ONNX node, whether it was asked for this node alone). `fc` holds for `fc/matmul` as well."""
        found = [name for name in self.layers if node == name or node.startswith(f"{name}/")]
        if found:
            return self.layers[max(found, key=len)], True
        return LayerOptions(self.strategy, self.reuse_factor), False


def require_options(io_type: str, backend: str = "Vitis", clock_period: Any = 5) -> None:
    """Raises ConfigError with all of them: PQ405 for an unknown io type or backend, PQ407 for a clock period that is none (ns)."""
    problems = Options(backend=backend, io_type=io_type, clock_period=clock_period).problems()
    if problems:
        raise ConfigError(problems)
