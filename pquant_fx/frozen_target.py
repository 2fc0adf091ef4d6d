"""What the `target` section says of one frozen network: rules by module path become options of ONNX nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.fx import GraphModule, Node

from pquant_fx.errors import ConfigError
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info
from pquant_fx.lower.hls4ml.options import LayerOptions, Options
from pquant_fx.lower.onnx.names import containers, node_name
from pquant_fx.passes.settings import known_layers

__all__ = ["LayerTypes", "hls4ml_options", "layer_types"]

LayerTypes = Mapping[tuple[str, int], str]
"""(module path, call site) -> type name (`Conv2d`), of the compiled network: a frozen one has no modules left to ask."""


def layer_types(gm: GraphModule) -> LayerTypes:
    """Of everything in a compiled graph that a rule can name."""
    return {(path, site): name for path, name, site in known_layers(gm)}


def hls4ml_options(gm: GraphModule, target: Any, types: LayerTypes, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `lower.hls4ml.convert.to_hls4ml`: the section `target`, overruled by what is `given` (None: not given).

    Raises ConfigError: PQ402 for a pattern that matches no layer, PQ405 and PQ407 for settings that do not exist.
    """
    own = {name: value for name, value in given.items() if value is not None and name != "layers"}
    if isinstance(own.get("strategy"), str):
        own["strategy"] = own["strategy"].lower()
    wrong = Options(**own).problems()
    if wrong:
        raise ConfigError(wrong)
    section = target.overruled(given.get("layers"), **own)
    section.require_known((path, name, site) for (path, site), name in types.items())
    layers = {}
    for name, node in _weighted(gm):
        record = info(node)
        path = record.path or node.name
        found = section.layer_settings(path, types.get((path, record.site), ""), record.site)
        if found is not None:
            layers[name] = LayerOptions(**found)
    fields = ("backend", "io_type", "part", "clock_period", "strategy", "reuse_factor", "fifo_depths")
    return {**{name: getattr(section, name) for name in fields}, "layers": layers}


def _weighted(gm: GraphModule) -> Iterator[tuple[str, Node]]:
    """(name in the ONNX file, node) of what has weights."""
    inside = containers(gm)
    for node in gm.graph.nodes:
        op = op_of(node)
        if op is not None and op.kind == "weighted":
            yield node_name(node, inside), node
