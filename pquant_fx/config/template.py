"""A configuration that names every layer of a network with the settings that hold for it, to be edited by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from pquant_fx.config.kinds import Granularity
from pquant_fx.config.layer_settings import LayerSettings
from pquant_fx.config.loading import load_config
from pquant_fx.config.patterns import names
from pquant_fx.config.root import Config

__all__ = ["LayerRow", "template_text"]


_ORIGIN: Mapping[str, str] = {
    "calibrated": "the binary point is calibrated",
    "dynamic": "the binary point follows the values",
    "tqt": "the range is learned",
    "lsq": "the range is learned",
    "pact": "the range is learned",
    "hgq": "bits are learned from here on",
}


class LayerRow(NamedTuple):
    """One place that a rule can name: module path, type (`Conv2d`, `relu`), call site from 1, the operator's kind in the
    dialect ("weighted" has weights), and the shape of its result with batch (None when it is no tensor)."""

    path: str
    type_name: str
    site: int
    kind: str
    shape: Sequence[int] | None


def template_text(layers: Sequence[LayerRow], inputs: Mapping[str, Sequence[int]], preset: str) -> str:
    """YAML that builds on `preset`, names the inputs (shapes without batch) and every layer with its effective settings.

    Every layer resolves to the same settings with the text as with the preset alone. Rows of equal path, type and call
    site (two calls of one function in one module) share a rule. Raises ConfigError (PQ405) for an unknown preset.
    """
    config = load_config(preset)
    lines = [
        "# Every layer with the settings that hold for it. Edit, delete, or replace several by one pattern ('conv*', 'Conv2d');",
        "# the last rule that matches wins. 'name@2' is the second call of a module.",
        f"preset: {preset}",
        "inputs:" if inputs else "inputs: {}",
    ]
    for name, shape in inputs.items():
        lines.append(f"  {_key(name)}: {{shape: {list(shape)}}}  # a fixed interface: {{shape: ..., format: 'fixed<16,6>'}}")
    lines.append("layers:" if layers else "layers: {}")
    places = list({(row.path, row.type_name, row.site): row for row in layers}.values())
    for row, pattern in zip(places, _patterns(places), strict=True):
        where = "" if row.shape is None else f", result {' x '.join(['N', *map(str, row.shape[1:])])}"
        lines += [f"  {_key(pattern)}:  # {row.type_name}{where}", *_settings(config, row)]
    return "\n".join(lines) + "\n"


def _settings(config: Config, row: LayerRow) -> list[str]:
    found = config.settings_for(row.path, row.kind, row.type_name, row.site)
    if not found.quantize and not found.prune:
        return ["    {}  # neither quantized nor pruned under this preset"]
    lines: list[str] = []
    if found.quantize and row.kind == "weighted":
        lines += _weight(found)
    if found.quantize:
        lines.append(f"    {_width('data', found)}")
    if row.kind == "weighted" and found.prune:
        lines.append("    prune: true")
    elif row.kind == "weighted":
        lines.append("    # sparsity: 0.5  (takes effect with pruning_parameters: {enable_pruning: true})")
    return lines


def _weight(found: LayerSettings) -> list[str]:
    others = ", ".join(choice for choice in get_args(Granularity) if choice != found.granularity)
    shared = [] if found.weight_format is not None else [f"    granularity: {found.granularity}  # or {others}"]
    return [f"    {_width('weight', found)}", *shared]


def _width(what: str, found: LayerSettings) -> str:
    made = found.weight_format if what == "weight" else found.data_format
    if made is not None:
        return f"{what}_format: '{made}'"
    bits, kind = (found.weight_bits, found.weight_quantizer) if what == "weight" else (found.data_bits, found.data_quantizer)
    return f"{what}_bits: {bits}  # {'of the result, ' if what == 'data' else ''}k + i + f: {_ORIGIN[kind]}"


def _patterns(rows: Sequence[LayerRow]) -> list[str]:
    """The shortest name of each row that no other row answers to."""
    calls = Counter(name for row in rows for name in names(row.path, row.type_name))
    found = []
    for row in rows:
        own = [name for name in (row.path, f"{row.path}.{row.type_name}") if name and calls[name] == 1]
        found.append(own[0] if own else f"{row.path or row.type_name}@{row.site}" if _sites(rows, row) == 1 else _full(row))
    return found


def _sites(rows: Sequence[LayerRow], row: LayerRow) -> int:
    wanted = row.path or row.type_name
    return sum(other.site == row.site and wanted in names(other.path, other.type_name) for other in rows)


def _full(row: LayerRow) -> str:
    return f"{row.path}.{row.type_name}@{row.site}" if row.path else f"{row.type_name}@{row.site}"


def _key(name: str) -> str:
    return json.dumps(name)
