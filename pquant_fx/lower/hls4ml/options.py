"""What the user may choose about an hls4ml project."""

from __future__ import annotations

import math
from typing import Any

from pquant_fx.errors import ConfigError, Problem

__all__ = ["require_options"]


_CHOICES = {"backend": ("Vitis", "Vivado"), "io type": ("io_parallel", "io_stream")}


def require_options(io_type: str, backend: str = "Vitis", clock_period: Any = 5) -> None:
    """Raises ConfigError with all of them: PQ405 for an unknown io type or backend, PQ407 for a clock period that is none (ns)."""
    problems = [
        Problem("PQ405", f"there is no {what} '{value}'", f"{what}s: {', '.join(_CHOICES[what])}")
        for what, value in (("backend", backend), ("io type", io_type))
        if value not in _CHOICES[what]
    ]
    if not isinstance(clock_period, int | float) or not 0 < clock_period < math.inf:
        problems.append(Problem("PQ407", f"clock_period={clock_period!r}", "give the clock period in ns, such as 5"))
    if problems:
        raise ConfigError(problems)
