"""Patterns that name places in a network: module-path globs, type names and call sites."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pquant_fx.errors import Problem

__all__ = ["Known", "Pattern", "unmatched"]

Known = tuple[str, str, int]
"""module path, type name (`Conv2d`, or `relu` for a function), call site counted from 1"""


@dataclass(frozen=True)
class Pattern:
    """`layer1.*.conv*` (a path, `*` crosses dots), `Conv2d` (a type), `relu@1` (the first call), `block.relu@2`."""

    name: str
    site: int | None
    glob: bool

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern. A `@` that no positive number follows is part of the name."""
        name, at, number = text.rpartition("@")
        if not (at and name and number.isascii() and number.isdigit() and int(number) > 0):
            return cls(text, None, any(sign in text for sign in "*?["))
        return cls(name, int(number), any(sign in name for sign in "*?["))

    def matches(self, path: str, type_name: str, site: int) -> bool:
        if self.site is not None and self.site != site:
            return False
        return any(fnmatchcase(name, self.name) if self.glob else name == self.name for name in names(path, type_name))


def names(path: str, type_name: str) -> tuple[str, ...]:
    """What a place answers to: its path, its type, and `path.type`, which tells functions called in one module apart."""
    found = [name for name in (path, type_name) if name]
    if path and type_name:
        found.append(f"{path}.{type_name}")
    return tuple(dict.fromkeys(found)) or ("",)


def unmatched(section: str, patterns: Iterable[str], known: Sequence[Known]) -> list[Problem]:
    """One PQ402 for each pattern that matches none of `known`, with the closest name."""
    return [
        Problem("PQ402", f"{section}: the pattern '{text}' matches nothing", _closest(Pattern.parse(text), known))
        for text in patterns
        if not any(Pattern.parse(text).matches(*place) for place in known)
    ]


def _closest(pattern: Pattern, known: Sequence[Known]) -> str:
    sites = [site for path, type_name, site in known if Pattern(pattern.name, None, pattern.glob).matches(path, type_name, site)]
    if pattern.site is not None and sites:
        return f"'{pattern.name}' is called at the sites {', '.join(f'@{site}' for site in sorted(set(sites)))}"
    if any(path.startswith(pattern.name + ".") for path, _, _ in known):
        return f"write '{pattern.name}.*' for everything inside '{pattern.name}'"
    candidates = sorted({name for path, type_name, _ in known for name in (path, type_name) if name})
    near = difflib.get_close_matches(pattern.name, candidates, 1, 0.5)
    if not near:
        lowered = {name.lower(): name for name in candidates}
        near = [lowered[name] for name in difflib.get_close_matches(pattern.name.lower(), list(lowered), 1, 0.4)]
    if near:
        return f"did you mean '{near[0]}'?"
    shown = ", ".join(candidates[:8]) + (", ..." if len(candidates) > 8 else "")
    return f"known names: {shown or 'none'}"
