"""From the validator's findings to problems that say where, what, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pquant_fx.config.hgq import BETA_SHAPES
from pquant_fx.config.pruning import METHODS
from pquant_fx.errors import ConfigError, Place, Problem

__all__ = ["InvalidConfigError", "explain"]

Path = tuple[str, ...]
_RETIRED = {
    "finetuning_parameters": "it is called 'hpo_parameters'",
    "preset": "pass it through load_config, which reads presets",
}
_NEEDED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of names to settings",
    "model_type": "a mapping of names to settings",
    "model_attributes_type": "a mapping of names to settings",
}


class InvalidConfigError(ConfigError):
    """A configuration with findings; `paths` holds the key of each, so that a reader of files can add the line."""

    def __init__(self, problems: Problem | Sequence[Problem], paths: Sequence[Path] = ()) -> None:
        super().__init__(problems)
        self.paths = tuple(paths)

    def located(self, source: str, lines: Mapping[Path, int]) -> ConfigError:
        """The same findings, each with `source:line` of its key or of the nearest section around it."""
        return ConfigError([_located(problem, path, source, lines) for problem, path in zip(self.problems, self.paths, strict=True)])


def _located(problem: Problem, path: Path, source: str, lines: Mapping[Path, int]) -> Problem:
    around = [lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines]
    line = f"{source}:{around[0]}" if around else source
    return Problem(problem.code, problem.what, problem.remedy, Place(line=line), problem.severity)


def explain(error: ValidationError, root: type[BaseModel]) -> InvalidConfigError:
    """Every finding of the validator, unknown keys (PQ406) first."""
    found = [item for details in error.errors(include_url=False) for item in _findings(dict(details), root)]
    found.sort(key=lambda item: item[1].code)
    return InvalidConfigError([problem for _, problem in found], [path for path, _ in found])


def _findings(details: Mapping[str, Any], root: type[BaseModel]) -> Iterator[tuple[Path, Problem]]:
    loc = tuple(str(part) for part in details["loc"])
    path = _as_written(loc)
    kind, context = details["type"], details.get("ctx") or {}
    if kind == "findings":
        for code, key, what, remedy in context["findings"]:
            yield (*path, *key.split(".")), Problem(code, f"{'.'.join((*path, key))}: {what}", remedy)
    elif kind == "extra_forbidden":
        yield path, Problem("PQ406", f"unknown key '{'.'.join(path)}'", _suggestion(loc, root))
    elif kind == "later":
        what = f"{'.'.join(path)}: {_shown(details['input'])} {details['msg']}"
        yield path, Problem("PQ408", what, context["remedy"])
    elif kind == "union_tag_invalid":
        near = difflib.get_close_matches(str(context["tag"]), list(METHODS), 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        path = (*path, "pruning_method")
        yield path, Problem("PQ407", f"{'.'.join(path)}: there is no method '{context['tag']}'", f"use one of {', '.join(METHODS)}{hint}")
    else:
        yield path, Problem("PQ407", f"{'.'.join(path)}: {_wrong(details)}", _cure(details))


def _as_written(loc: Path) -> Path:
    """The keys alone: without the names of alternatives that the validator adds."""
    tags = {"pruning_parameters": tuple(METHODS), "hgq_beta": BETA_SHAPES}
    return tuple(part for before, part in zip(("", *loc), loc) if part not in tags.get(before, ()))


def _wrong(details: Mapping[str, Any]) -> str:
    kind = details["type"]
    if kind == "missing":
        return "is missing"
    if kind in ("number", "text"):
        return str(details["msg"])
    return f"{_shown(details['input'])} is not allowed"


def _cure(details: Mapping[str, Any]) -> str:
    context = details.get("ctx") or {}
    if "remedy" in context:
        return str(context["remedy"])
    if details["type"] == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(details["input"]), choices, 1, 0.5)
        return f"use one of {', '.join(choices)}" + (f"; did you mean '{near[0]}'?" if near else "")
    if details["type"] == "missing":
        return "give it a value"
    needed = _NEEDED.get(details["type"])
    return f"give {needed}" if needed else str(details["msg"]).replace("Input should be", "give a value").replace("Value", "the value")


def _shown(value: Any) -> str:
    text = ("true" if value else "false") if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(loc: Path, root: type[BaseModel]) -> str:
    key = loc[-1]
    if key in _RETIRED:
        return _RETIRED[key]
    here = _keys_at(loc[:-1], root)
    homes = [path for path, name in _all_keys(root) if name == key and path != loc[:-1]]
    if homes:
        return f"'{key}' belongs to {_section(homes[0])}"
    near = difflib.get_close_matches(key.lower(), [name.lower() for name in here], 1, 0.6)
    if near:
        return f"did you mean '{next(name for name in here if name.lower() == near[0])}'?"
    elsewhere = {name: path for path, name in _all_keys(root)}
    near = difflib.get_close_matches(key, list(elsewhere), 1, 0.8)
    if near:
        return f"did you mean '{near[0]}' of {_section(elsewhere[near[0]])}?"
    return f"known keys here: {', '.join(here)}"


def _section(path: Path) -> str:
    if path[0] == "pruning_parameters" and len(path) > 1:
        return f"pruning_parameters with pruning_method: {path[1]}"
    return f"'{'.'.join(path)}'"


def _all_keys(root: type[BaseModel]) -> Iterator[tuple[Path, str]]:
    """Every (section, key) of the five sections and ours, pruning methods apart."""
    for section, field in root.model_fields.items():
        for model in _models(field.annotation):
            tag = model.model_fields.get("pruning_method")
            path = (section, str(tag.default)) if tag is not None else (section,)
            if _is_model(field.annotation):
                yield from ((path, name) for name in model.model_fields)


def _keys_at(loc: Path, root: type[BaseModel]) -> list[str]:
    annotation: Any = root
    for part in loc:
        if part in METHODS and loc[0] == "pruning_parameters":
            annotation = METHODS[part]
            continue
        models = list(_models(annotation))
        if _is_model(annotation) and models and part in models[0].model_fields:
            annotation = models[0].model_fields[part].annotation
        # otherwise the part is a name inside a mapping, and the mapping's values come next
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
    return [name for model in _models(annotation) for name in model.model_fields]


def _is_model(annotation: Any) -> bool:
    return get_origin(annotation) is not dict


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _models(part)
    elif get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
    elif get_origin(annotation) is dict:
        yield from _models(get_args(annotation)[1])
