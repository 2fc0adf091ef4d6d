"""Rules in order, found by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from pquant_fx.config.layer_settings import LayerSettings
from pquant_fx.config.patterns import Pattern, names
from pquant_fx.config.rules import Update

__all__ = ["RuleBook"]


class RuleBook:
    """Rules in order, indexed by name, so that a config that names every layer costs no more per layer than a short one."""

    def __init__(self, rules: Iterable[tuple[str, Update]]) -> None:
        self._by_name: dict[str, list[tuple[int, Pattern, Update]]] = {}
        self._globs: list[tuple[int, Pattern, Update]] = []
        for order, (text, update) in enumerate(rules):
            pattern = Pattern.parse(text)
            (self._globs if pattern.glob else self._by_name.setdefault(pattern.name, [])).append((order, pattern, update))

    def apply(self, settings: LayerSettings, path: str, type_name: str, site: int) -> LayerSettings:
        """`settings` after every rule that matches, in order."""
        merged: dict[str, Any] = {}
        for update in self.matching(path, type_name, site):
            merged |= update
        return replace(settings, **merged) if merged else settings

    def matching(self, path: str, type_name: str, site: int) -> Iterator[Update]:
        """The updates of the rules that match, in order."""
        named = [entry for name in names(path, type_name) for entry in self._by_name.get(name, ())]
        hits = [entry for entry in (*named, *self._globs) if entry[1].matches(path, type_name, site)]
        return iter([update for _, _, update in sorted(hits, key=lambda entry: entry[0])])
