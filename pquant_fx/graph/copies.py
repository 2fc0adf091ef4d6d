"""Copies of a GraphModule that keep the user's whole module tree.

torch.fx copies only what the graph uses; a compiled model promises every key of the user's `state_dict`.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

__all__ = ["TREE", "adopt_tree", "copy_graph_module"]

TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""The attributes of an nn.Module that make up its tree."""


def adopt_tree(gm: nn.Module, owner: nn.Module) -> None:
    """Let `gm` hold the very dictionaries of `owner`: one tree, two views of it."""
    for attribute in TREE:
        gm.__dict__[attribute] = owner.__dict__[attribute]


def copy_graph_module(gm: GraphModule, memo: dict[int, Any] | None = None) -> GraphModule:
    """An independent copy: graph, provenance, and every parameter, buffer and submodule, used or not."""
    memo = {} if memo is None else memo
    owner = nn.Module()
    for attribute in TREE:
        owner.__dict__[attribute] = copy.deepcopy(gm.__dict__[attribute], memo)
    graph = Graph()
    mapping: dict[Any, Any] = {}
    result = graph.graph_copy(gm.graph, mapping, return_output_node=True)
    assert isinstance(result, tuple)
    value, old = result
    if old is not None:
        made = graph.output(value, getattr(old, "type", None))
        made.meta = copy.copy(old.meta)
    twin = GraphModule(owner, graph)
    adopt_tree(twin, owner)
    twin.training = gm.training
    twin.meta = dict(gm.meta)
    return twin
