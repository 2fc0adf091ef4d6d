"""Presets: one YAML file each."""

from __future__ import annotations

from pquant_fx.config import Config, load_config, preset_names

__all__ = ["load", "names"]


def names() -> tuple[str, ...]:
    """The names of the presets, sorted."""
    return preset_names()


def load(name: str) -> Config:
    """The preset of that name. Raises ConfigError (PQ405) when there is none."""
    return load_config({"preset": name})
