"""Laying one configuration over another: settings that exclude each other replace each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pquant_fx.config.layer_specific import LayerSpecific
from pquant_fx.config.rules import LayerRule

__all__ = ["merged", "nested"]

_SPECIFIC = "quantization_parameters.layer_specific."
_STATIC = ("keep_negatives", "integer_bits", "fractional_bits")
Rivals = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
"""pairs of groups of keys: giving one of the first group drops those of the second"""


def _each_other(one: tuple[str, ...], other: tuple[str, ...]) -> Rivals:
    return (one, other), (other, one)


def _default(what: str) -> tuple[str, ...]:
    return tuple(f"default_{what}_{part}" for part in _STATIC)


_QUANTIZATION: Rivals = (
    *_each_other(("default_data_bits",), _default("data")),
    *_each_other(("default_weight_bits",), _default("weight")),
    *_each_other(("use_hgq",), ("use_high_granularity_quantization",)),
    (_default("weight"), ("granularity",)),  # beside a static format it would say that the binary point moves
)
_LAYER: Rivals = (
    *(pair for what in ("data", "weight", "input") for pair in _each_other((f"{what}_bits",), (f"{what}_format",))),
    *(pair for what in ("data", "weight") for pair in _each_other((f"{what}_quantizer",), (f"{what}_format",))),
)
_ANY_METHODS = ("disable_pruning_for_layers", "enable_pruning")  # threshold_decay: a number of one method says nothing in another


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section. Rules of `over` come after those of `base`."""
    return _merged(_one_goal(base, over), over)


def _one_goal(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A budget sets beta itself: of the two, a schedule or controller and a budget, the one that `over` gives stays."""
    beta, limit = ("quantization_parameters", "hgq_beta"), ("budget", "ebops")
    made = dict(base)
    for given, (section, key) in ((limit, beta), (beta, limit)):
        steered = isinstance(_at(over if given is beta else base, beta), (Mapping, list, tuple))
        if steered and _at(over, given) is not None and _at(base, (section, key)) is not None:
            made[section] = {name: value for name, value in made[section].items() if name != key}
    return made


def _at(data: Mapping[str, Any], path: tuple[str, str]) -> Any:
    section = data.get(path[0])
    return section.get(path[1]) if isinstance(section, Mapping) else None


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for key, value in over.items():
        below = made.get(key)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            if value is not None or below is None or not isinstance(below, Mapping):
                made[key] = value
        elif key == "layers":
            made[key] = _rules(below, value)
        elif key == "quantization_parameters":
            made[key] = _merged(_without_rivals(below, value, _QUANTIZATION), value)
        elif key == "pruning_parameters":
            made[key] = _merged(_same_method(below, value), value)
        else:
            made[key] = _merged(below, value)
    return made


def _rules(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    made = {pattern: rule for pattern, rule in below.items() if pattern not in over}
    for pattern, rule in over.items():
        old = below.get(pattern)
        both = isinstance(old, Mapping) and isinstance(rule, Mapping)
        made[pattern] = _merged(_without_rivals(old, rule, _LAYER), rule) if both else rule  # type: ignore[arg-type]
    return made


def _without_rivals(below: Mapping[str, Any], over: Mapping[str, Any], rivals: Rivals) -> dict[str, Any]:
    made = dict(below)
    for given, dropped in rivals:
        if any(over.get(key) is not None for key in given):
            made = {key: value for key, value in made.items() if key not in dropped}
    return made


def _same_method(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    method = over.get("pruning_method")
    if method is None or method == below.get("pruning_method", "magnitude"):
        return dict(below)
    return {key: value for key, value in below.items() if key in _ANY_METHODS}


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
    if key.startswith(_SPECIFIC):
        return [*_SPECIFIC.strip(".").split("."), *_place(key.removeprefix(_SPECIFIC).split("."))]
    return key.split(".")


def _place(parts: list[str]) -> list[str]:
    """The layer's name, which may hold dots, then `weight`, `bias`, `input` or `output`, then the setting."""
    depth = next((n for n in (2, 1) if len(parts) > n and parts[-n] in LayerSpecific.model_fields), 0)
    return [".".join(parts[: len(parts) - depth]), *parts[len(parts) - depth :]]
