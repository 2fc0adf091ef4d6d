"""Keys of PQuantML's own files that have no effect, there or here: they are accepted, set aside, and reported as notes."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["IGNORED", "set_aside", "why_ignored"]

_SPLIT = "it is an old name that nothing reads: write default_weight_{0} and default_data_{0}"
_INSIDE = "nothing reads it there: write it inside 'weight', 'bias', 'input' or 'output' of the layer"

# where the key stands, with * for the name of a layer -> why it has no effect, and what to write instead
IGNORED: Mapping[tuple[str, ...], str] = {
    ("quantization_parameters", "hgq_heterogeneous"): "nothing uses it: granularity and data_granularity say who shares bits",
    ("quantization_parameters", "use_symmetric_quantization"): "nothing reads it: write overflow_mode_parameters: SAT_SYM",
    ("quantization_parameters", "default_integer_bits"): _SPLIT.format("integer_bits"),
    ("quantization_parameters", "default_fractional_bits"): _SPLIT.format("fractional_bits"),
    ("quantization_parameters", "layer_specific", "*", "keep_negatives"): _INSIDE,
    ("quantization_parameters", "layer_specific", "*", "integer_bits"): _INSIDE,
    ("quantization_parameters", "layer_specific", "*", "fractional_bits"): _INSIDE,
    ("hpo_parameters", "epochs"): "nothing reads it: write training_parameters.epochs",
}


def set_aside(data: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`data` without the keys of the table, and their paths with dots, sorted."""
    left: dict[str, Any] = dict(data)
    found: list[str] = []
    for path in IGNORED:
        left = _without(left, path, "", found)
    return left, tuple(sorted(found))


def _without(data: Mapping[str, Any], path: tuple[str, ...], place: str, found: list[str]) -> dict[str, Any]:
    head, *rest = path
    left = dict(data)
    for key in [key for key in data if head in ("*", key)]:
        if not rest:
            found.append(place + key)
            del left[key]
        elif isinstance(data[key], Mapping):
            left[key] = _without(data[key], tuple(rest), f"{place}{key}.", found)
    return left


def why_ignored(path: str) -> str | None:
    """Why the key at this path (with dots) has no effect; None for a path that is not in the table."""
    return next((why for pattern, why in IGNORED.items() if fnmatchcase(path, ".".join(pattern))), None)
