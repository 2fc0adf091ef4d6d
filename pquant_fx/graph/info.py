"""What is known about where a node comes from: one frozen record under one `node.meta` key.

Pickling drops `meta` and deepcopy shares it, so nothing that the result depends on lives here: only what helps people.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch.fx import Node

from pquant_fx.errors import Place

__all__ = ["KEY", "NodeInfo", "definition_line", "info", "place", "set_info"]

KEY = "pquant_fx"


@dataclass(frozen=True)
class NodeInfo:
    """Provenance of a node.

    path: module path in the user's model ("" is the model itself); site: call site of that module, counted from 1;
    line: the user's `file.py:line`; shape: shape at the example inputs with batch first, None when it is no tensor;
    dtype: of the value at the example inputs, as text ("float32").
    """

    path: str = ""
    site: int = 1
    line: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    @property
    def label(self) -> str:
        """The module path, with the call site where it is not the first."""
        return f"{self.path}@{self.site}" if self.site > 1 else self.path

    def with_shape(self, shape: tuple[int, ...] | None, dtype: str | None = None) -> NodeInfo:
        """The same provenance with another shape; without `dtype`, the element type stays."""
        return replace(self, shape=shape, dtype=dtype if dtype is not None else self.dtype)


def info(node: Node) -> NodeInfo:
    """The record of `node`; an empty one when the node was made without provenance."""
    found: Any = node.meta.get(KEY)
    return found if isinstance(found, NodeInfo) else NodeInfo()


def definition_line(function: Any) -> str | None:
    """`file.py:line` where a user's function begins; None for torch's own and for what has no Python code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if not isinstance(code, CodeType) or code.co_filename.startswith(str(Path(torch.__file__).parent)):
        return None
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def set_info(node: Node, record: NodeInfo) -> None:
    """Let `node` carry `record`: provenance is no edit of the graph, so it needs no Rewriter."""
    node.meta[KEY] = record


def place(node: Node) -> Place:
    """The node as an error names it."""
    record = info(node)
    return Place(node.name, record.path, record.line)
