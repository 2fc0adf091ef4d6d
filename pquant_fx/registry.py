"""Tables that other packages may extend through entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from pquant_fx.errors import ConfigError, Problem

__all__ = ["Registry"]

V = TypeVar("V")


class Registry(Mapping[str, V], Generic[V]):
    """A name -> value table. Installed packages add to it under the entry-point group `pquant_fx.<kind>`.

    Entry points are loaded on the first miss, so that importing pquant_fx imports nobody else's code.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, V] = {}
        self._plugins_loaded = False

    def add(self, name: str, value: V) -> V:
        """Register `value`. Raises ConfigError (PQ405) when the name is taken by something else."""
        if name in self._items and self._items[name] is not value:
            raise ConfigError(Problem("PQ405", f"'{name}' is registered twice among the {self.kind}", "rename one of the two"))
        self._items[name] = value
        return value

    def __getitem__(self, name: str) -> V:
        if name not in self._items:
            self._load_plugins()
        if name not in self._items:
            near = difflib.get_close_matches(name, list(self._items), 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(self._items)) or 'none'}"
            raise UnknownNameError(Problem("PQ405", f"there is nothing named '{name}' among the {self.kind}", hint))
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(self._items)

    def __len__(self) -> int:
        self._load_plugins()
        return len(self._items)

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for point in entry_points(group=f"pquant_fx.{self.kind}"):
            self.add(point.name, point.load())


class UnknownNameError(ConfigError, KeyError):
    """A name that is in no table; also a KeyError, so that `name in registry` and `.get` work as for any mapping."""

    __str__ = Exception.__str__
