"""YAML as this project reads it: `1e-3` is a number, a key given twice is an error, and every key knows its line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from pquant_fx.errors import ConfigError, Place, Problem

__all__ = ["from_text", "scalar", "to_text"]

_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
_FLOAT_TAG = "tag:yaml.org,2002:float"


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's rules, with YAML 1.2's numbers and without dates, which no setting needs."""
    dropped = (_FLOAT_TAG, "tag:yaml.org,2002:timestamp")
    standard = yaml.SafeLoader.yaml_implicit_resolvers
    rules = {first: [rule for rule in found if rule[0] not in dropped] for first, found in standard.items()}
    for first in "-+0123456789.":
        rules.setdefault(first, []).insert(0, (_FLOAT_TAG, re.compile(f"^(?:{_FLOAT.pattern})$")))
    return rules


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_text(data: Any) -> str:
    """Block-style YAML in the order of the data."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=140)
    return text


def scalar(text: str) -> Any:
    """One value of a command line as YAML reads it: `3`, `true`, `1e-3`, `[1, 2]`. Raises ConfigError (PQ407)."""
    return from_text(text, "--set")[0]


def from_text(text: str, source: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The data, and the line of each key path. Raises ConfigError (PQ407) at the line of a syntax error or a repeated key."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[tuple[str, ...], int] = {}
            repeated: list[Problem] = []
            _visit(node, (), source, lines, repeated)
            if repeated:
                raise ConfigError(repeated)
            return (None if node is None else loader.construct_document(node)), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_syntax(error, source)) from None


def _visit(node: Any, path: tuple[str, ...], source: str, lines: dict[tuple[str, ...], int], repeated: list[Problem]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            name = str(key.value)
            inner = (*path, name)
            line = key.start_mark.line + 1
            if name in seen and name != "<<":
                place = Place(line=f"{source}:{line}")
                repeated.append(Problem("PQ407", f"the key '{'.'.join(inner)}' is given twice", "keep one of the two", place))
            seen.add(name)
            lines.setdefault(inner, line)
            _visit(value, inner, source, lines, repeated)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*path, str(index))
            lines.setdefault(inner, value.start_mark.line + 1)
            _visit(value, inner, source, lines, repeated)


def _syntax(error: yaml.YAMLError, source: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = f"{source}:{mark.line + 1}" if mark is not None else source
    return Problem("PQ407", f"the YAML can not be read: {what}", "mend the line; a text with ': ' or '*' needs quotes", Place(line=line))
