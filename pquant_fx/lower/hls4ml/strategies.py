"""Strategy and reuse factor of every layer with weights, decided before hls4ml sees them.

hls4ml replaces a reuse factor that its kernels can not do by the closest one, and a strategy that a layer does not have by
another, and only prints it. Here, what was asked for a single layer is done or refused, and what was asked for all layers at
once is adapted to each of them, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pquant_fx.errors import ExtraMissingError, Place, Problem
from pquant_fx.lower.hls4ml.builder import Plan
from pquant_fx.lower.hls4ml.options import LayerOptions, Options

__all__ = ["plan_strategies", "require_distributed_arithmetic", "valid_reuse_factors"]

_WEIGHTED = ("Dense", "Conv1D", "Conv2D")
_OF_BACKEND = {
    "Vitis": ("latency", "resource", "resource_unrolled", "distributed_arithmetic"),
    "Vivado": ("latency", "resource", "resource_unrolled", "distributed_arithmetic"),
    "Catapult": ("latency", "resource"),
    "oneAPI": ("resource",),
    "Quartus": ("resource",),
}


def valid_reuse_factors(n_in: int, n_out: int) -> list[int]:
    """What hls4ml's resource kernels do exactly, for n_in inputs (of one window) and n_out outputs, ascending.

    The factor divides the products; up to n_in each multiplier serves one output, beyond that it takes whole rows.
    """
    count = n_in * n_out
    divisors = [f for low in range(1, math.isqrt(count) + 1) if count % low == 0 for f in {low, count // low}]
    return sorted(f for f in divisors if (f % n_in == 0 if f >= n_in else math.ceil(count / f) % n_out == 0))


def plan_strategies(plan: Plan, options: Options) -> tuple[dict[str, LayerOptions], list[Problem], list[Problem]]:
    """(layer name -> what it gets, problems, notes). Layers without weights are not in it.

    Problems: PQ405 for a strategy that the backend or the layer does not have, PQ407 for a reuse factor, PQ402 for a node of
    `options.layers` that no layer with weights comes from. Notes (severity "info"): where a general setting was adapted.
    """
    found: dict[str, LayerOptions] = {}
    problems: list[Problem] = []
    notes: list[Problem] = []
    used: set[str] = set()
    for layer in plan.layers:
        if layer["class_name"] not in _WEIGHTED:
            continue
        node = plan.sources[layer["name"]]
        asked, alone = options.of(node)
        used |= {name for name in options.layers if node == name or node.startswith(f"{name}/")}
        made, why = _possible(layer, asked, options)
        if why and alone:
            problems.append(Problem(*why, place=Place(node=node)))
        elif why:
            notes.append(Problem(why[0], why[1], f"hls4ml gets {_text(made)}; {why[2]}", Place(node=node), severity="info"))
        found[layer["name"]] = made
    problems += [
        Problem("PQ402", f"layers: no layer with weights comes from the node '{name}'", _known(plan))
        for name in options.layers.keys() - used
    ]
    return found, problems, notes


def _known(plan: Plan) -> str:
    names = [plan.sources[layer["name"]] for layer in plan.layers if layer["class_name"] in _WEIGHTED]
    return f"nodes with weights: {', '.join(names) or 'none'}"


def _text(made: LayerOptions) -> str:
    return f"strategy {made.strategy}, reuse factor {made.reuse_factor}"


def _possible(layer: dict[str, Any], asked: LayerOptions, options: Options) -> tuple[LayerOptions, tuple[str, str, str] | None]:
    """What the layer can do that is closest to `asked`, and (code, what, remedy) where that is something else."""
    able = _OF_BACKEND[options.backend]
    made, why = asked, None
    if asked.strategy not in able:
        made = replace(asked, strategy=able[0])
        why = "PQ405", f"{options.backend} has no strategy '{asked.strategy}'", f"choose one of {', '.join(able)}"
    conv = layer["class_name"] != "Dense"
    if made.strategy == "resource_unrolled" and (made.reuse_factor == 1 or (conv and options.io_type == "io_parallel")):
        what = "of a convolution needs io_stream" if made.reuse_factor > 1 else "needs a reuse factor above 1"
        made = replace(made, strategy="resource")
        why = "PQ405", f"strategy 'resource_unrolled' {what}", "choose resource or latency"
    if made.strategy == "latency":
        return made, why
    n_in, n_out = _sizes(layer)
    valid = [1] if made.strategy == "distributed_arithmetic" else valid_reuse_factors(n_in, n_out)
    if made.strategy == "resource_unrolled":
        valid = valid[1:-1]
    if not valid:
        made, why = LayerOptions("latency"), ("PQ407", f"no reuse factor divides {n_in} x {n_out} products", "choose latency")
    elif made.reuse_factor not in valid:
        why = (
            "PQ407",
            f"a reuse factor of {made.reuse_factor} for {n_in} x {n_out} products in strategy {made.strategy}",
            _near(valid, made),
        )
        made = replace(made, reuse_factor=min(valid, key=lambda f: (abs(f - made.reuse_factor), f)))
    return made, why


def _near(valid: list[int], made: LayerOptions) -> str:
    below = [f for f in valid if f < made.reuse_factor][-2:]
    above = [f for f in valid if f > made.reuse_factor][:2]
    return f"possible next to it: {', '.join(map(str, [*below, *above]))}"


def _sizes(layer: dict[str, Any]) -> tuple[int, int]:
    """(inputs of one output, outputs that are computed together)."""
    if layer["class_name"] == "Dense":
        return int(layer["n_in"]), int(layer["n_out"])
    return int(layer["n_chan"]) * int(layer.get("filt_height", 1)) * int(layer["filt_width"]), int(layer["n_filt"])


def require_distributed_arithmetic(chosen: Iterable[LayerOptions]) -> None:
    """Raises ExtraMissingError (PQ503) when a layer is computed by distributed arithmetic (Sun et al. 2025) and da4ml is missing."""
    if not any(one.strategy == "distributed_arithmetic" for one in chosen):
        return
    try:
        import da4ml  # noqa: F401
        import numba  # noqa: F401
    except ImportError as error:
        what = f"strategy 'distributed_arithmetic' needs the packages da4ml and numba ({error})"
        raise ExtraMissingError(Problem("PQ503", what, "pip install 'pquant_fx[da]'")) from error
