"""Laying one configuration over another: settings that exclude each other replace each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pquant_fx.config.pruning import METHODS, MagnitudePruning
from pquant_fx.config.rules import LayerRule

__all__ = ["merged", "nested"]

_STATIC = ("keep_negatives", "integer_bits", "fractional_bits")
Rivals = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
"""pairs of groups of keys: giving one of the first group drops those of the second, and the other way round"""
_QUANTIZATION: Rivals = (
    *(((f"default_{what}_bits",), tuple(f"default_{what}_{part}" for part in _STATIC)) for what in ("data", "weight")),
    (("use_hgq",), ("use_high_granularity_quantization",)),
)
_LAYER: Rivals = tuple(((f"{what}_bits",), (f"{what}_format",)) for what in ("data", "weight"))
_COMMON = frozenset(MagnitudePruning.model_fields) & frozenset(METHODS["cs"].model_fields)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section. Rules of `over` come after those of `base`."""
    made = dict(base)
    for key, value in over.items():
        below = made.get(key)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            if value is not None or below is None or not isinstance(below, Mapping):
                made[key] = value
        elif key == "layers":
            made[key] = _rules(below, value)
        elif key == "quantization_parameters":
            made[key] = merged(_without_rivals(below, value, _QUANTIZATION), value)
        elif key == "pruning_parameters":
            made[key] = merged(_same_method(below, value), value)
        else:
            made[key] = merged(below, value)
    return made


def _rules(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    made = {pattern: rule for pattern, rule in below.items() if pattern not in over}
    for pattern, rule in over.items():
        old = below.get(pattern)
        both = isinstance(old, Mapping) and isinstance(rule, Mapping)
        made[pattern] = merged(_without_rivals(old, rule, _LAYER), rule) if both else rule  # type: ignore[arg-type]
    return made


def _without_rivals(below: Mapping[str, Any], over: Mapping[str, Any], rivals: Rivals) -> dict[str, Any]:
    made = dict(below)
    for one, other in rivals:
        for given, dropped in ((one, other), (other, one)):
            if any(over.get(key) is not None for key in given):
                made = {key: value for key, value in made.items() if key not in dropped}
    return made


def _same_method(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    method = over.get("pruning_method")
    if method is None or method == below.get("pruning_method", "magnitude"):
        return dict(below)
    return {key: value for key, value in below.items() if key in _COMMON - {"pruning_method"}}


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested sections. Patterns of `layers` may hold dots: what follows the last one is the setting."""
    made: dict[str, Any] = {}
    for key, value in overrides.items():
        inner = made
        *sections, last = _parts(key)
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[last] = value
    return made


def _parts(key: str) -> list[str]:
    head, _, rest = key.partition(".")
    if head == "layers" and rest:
        pattern, _, setting = rest.rpartition(".")
        return [head, pattern, setting] if pattern and setting in LayerRule.model_fields else [head, rest]
    if key.startswith("joins.layers."):
        return ["joins", "layers", key.removeprefix("joins.layers.")]
    return key.split(".")
