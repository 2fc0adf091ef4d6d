"""Which configuration rules apply to a node: by module path, by type, by call site."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch.fx import GraphModule, Node

from pquant_fx.config import Config, LayerSettings
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.values import multiplies_parameter, origin_of

__all__ = ["input_settings", "known_layers", "own_path", "parallelism", "settings_of", "type_name"]


def settings_of(config: Config, gm: GraphModule, node: Node) -> LayerSettings:
    """The settings of the layer that `node` stands for, or whose result it adjusts."""
    node = origin_of(node)
    record = info(node)
    op = op_of(node)
    kind = "weighted" if multiplies_parameter(node) else op.kind if op is not None else node.op
    return config.settings_for(path=record.path or node.name, kind=kind, type_name=type_name(gm, node), site=record.site)


def input_settings(config: Config, node: Node) -> LayerSettings:
    """The settings of the network's input `node`: a format declared under `inputs` holds whatever the switches say."""
    name = str(node.target)
    found = config.settings_for(name, "input", "placeholder")
    return replace(found, quantize_input=True) if config.input_format(name) is not None else found


def type_name(gm: GraphModule, node: Node) -> str:
    """The torch.nn class behind `node` (`Conv2d`), or the operator's name (`add`) where no module stands behind it."""
    op = op_of(node)
    path = info(node).path
    module = _module(gm, path) if path else None
    if module is not None and type(module).__module__.startswith("torch.nn") and not list(module.children()):
        return type(module).__name__
    return op.name if op is not None else node.op


def parallelism(config: Config, gm: GraphModule) -> dict[str, int]:
    """n_parallel of the layers that the configuration gives one, by module path (path@site from the second call site on)."""
    weighted = [n for n in gm.graph.nodes if (op := op_of(n)) is not None and op.kind == "weighted" and info(n).path]
    return {info(n).label: asked for n in weighted if (asked := settings_of(config, gm, n).n_parallel) is not None}


def own_path(node: Node) -> str:
    """Where our modules for a node live: the user's module path, with the call site where there are several."""
    record = info(node)
    if node.op == "placeholder" or not record.path:
        return node.name
    return record.path if record.site == 1 else f"{record.path}_{record.site}"


def known_layers(gm: GraphModule) -> Iterator[tuple[str, str, int]]:
    """Path, type and call site of everything that a rule can name."""
    for node in gm.graph.nodes:
        op = op_of(node)
        if node.op in ("placeholder", "call_module") or (op is not None and op.kind != "grid"):
            record = info(node)
            name = type_name(gm, node)
            yield record.path or node.name, "" if name == "call_module" else name, record.site


def _module(gm: GraphModule, path: str) -> nn.Module | None:
    try:
        return gm.get_submodule(path)
    except AttributeError:
        return None
