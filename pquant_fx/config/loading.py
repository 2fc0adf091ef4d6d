"""From a preset's name, a file, a text or a mapping to a `Config`."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pquant_fx.config.explain import InvalidConfigError
from pquant_fx.config.merging import merged, nested
from pquant_fx.config.root import Config
from pquant_fx.config.yaml_text import from_text
from pquant_fx.errors import ConfigError, Place, PQuantWarning, Problem

__all__ = ["ConfigLike", "load_config", "preset_names", "preset_titles"]

ConfigLike = str | Path | Mapping[str, Any] | Config
"""A preset's name, a path, YAML text, a mapping or a Config."""
Lines = dict[tuple[str, ...], int]


def preset_names() -> tuple[str, ...]:
    """The names of the shipped presets, sorted."""
    found = (entry.name for entry in files("pquant_fx.configs").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def preset_titles() -> dict[str, str]:
    """What each shipped preset is for, in a sentence, by its name, sorted."""
    return {name: _text_of(name).partition("\n")[0].removeprefix("# ") for name in preset_names()}


def load_config(source: ConfigLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration.

    source: a preset's name (`fixed8`), a `.yaml`, `.yml` or `.json` file, YAML text (of more than one line), a mapping, or a
    Config. A mapping or file may name a `preset` that it builds on. overrides: dotted keys that are set last, such as
    `{"training_parameters.epochs": 3, "layers.layer1.*.conv*.weight_bits": 6}`; a value of None means the default.

    Raises ConfigError with every finding: unknown preset PQ405, unknown key PQ406, file that can not be read or invalid
    value PQ407, feature of a later version PQ408. Warns (PQuantWarning) of own training parameters that look misspelt.
    """
    if isinstance(source, Config):
        if not overrides:
            return source
        data, lines, place = source.to_dict(given_only=True), Lines(), "config"
    else:
        data, lines, place = _read(source)
    if overrides:
        data = merged(data, nested(overrides))
    config = _build(data, lines, place)
    for key, near in config.training_parameters.likely_typos().items():
        text = f"training_parameters.{key} is kept as a parameter of your own; did you mean '{near}'?"
        warnings.warn(text, PQuantWarning, stacklevel=2)
    return config


def _build(data: Mapping[str, Any], lines: Lines, place: str) -> Config:
    try:
        return Config(**data)
    except InvalidConfigError as error:
        if place:
            raise error.located(place, lines) from None
        raise


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Lines, str]:
    if isinstance(source, Mapping):
        return _on_preset(_plain_mapping(source, ""), ""), {}, ""
    if isinstance(source, str) and "\n" in source:
        raw, lines = from_text(source, "<text>")
        return _on_preset(_plain_mapping(raw, "<text>"), "<text>"), lines, "<text>"
    if isinstance(source, Path) or str(source).endswith((".yaml", ".yml", ".json")):
        raw, lines = _file(Path(source))
        return _on_preset(_plain_mapping(raw, str(source)), str(source)), lines, str(source)
    if not isinstance(source, str):
        what = f"a configuration can not be a {type(source).__name__}"
        raise ConfigError(Problem("PQ407", what, "give a preset's name, a path, a dict or a Config"))
    return _preset(source, ""), {}, f"preset {source}"


def _preset(name: str, source: str) -> dict[str, Any]:
    known = preset_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        remedy = f"{hint}presets: {', '.join(known)}; the name of a file ends in .yaml, .yml or .json"
        raise ConfigError(Problem("PQ405", f"there is no preset '{name}'", remedy, Place(line=source or None)))
    text = _text_of(name)
    return _on_preset(_plain_mapping(from_text(text, f"{name}.yaml")[0], name), name)  # a variant builds on another one


def _text_of(preset: str) -> str:
    return files("pquant_fx.configs").joinpath(f"{preset}.yaml").read_text(encoding="utf-8")


def _on_preset(data: dict[str, Any], source: str) -> dict[str, Any]:
    if data.get("preset") is None:
        return {key: value for key, value in data.items() if key != "preset"}
    name = data.pop("preset")
    if not isinstance(name, str):
        remedy = f"presets: {', '.join(preset_names())}"
        raise ConfigError(Problem("PQ407", f"preset: {name!r} is no name", remedy, Place(line=source or None)))
    return merged(_preset(name, source), data)


def _file(path: Path) -> tuple[Any, Lines]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, 1)
        remedy = f"did you mean '{path.parent / near[0]}'?" if near else "give the path of an existing file"
        raise ConfigError(Problem("PQ407", f"there is no file '{path}'", remedy)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("PQ407", f"'{path}' can not be read: {error}", "give a YAML or JSON file in UTF-8")) from None
    if path.suffix != ".json":
        return from_text(text, str(path))
    try:
        return json.loads(text), {}
    except json.JSONDecodeError as error:
        place = Place(line=f"{path}:{error.lineno}")
        raise ConfigError(Problem("PQ407", f"the JSON can not be read: {error.msg}", "mend the line", place)) from None


def _plain_mapping(value: Any, source: str) -> dict[str, Any]:
    """A copy in plain lists and dicts, with text for keys (an output may be named by its index)."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        what = f"a configuration is a mapping of sections, not a {type(value).__name__}"
        raise ConfigError(Problem("PQ407", what, "begin with a section, such as 'training_parameters:'", Place(line=source or None)))
    copied: dict[str, Any] = _plain(value)
    return copied


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
