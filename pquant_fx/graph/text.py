"""The stable text of a graph, one node a line, and its fingerprint.

Names and arguments are deterministic over compiles; formats, shapes and source lines are columns that can be left out.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule, Node

from pquant_fx.graph.dialect import Mask, Quantizer, module_of, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.tables import Tabulated

__all__ = ["diff", "fingerprint", "text"]


def text(gm: GraphModule, formats: Mapping[Node, Any] | None = None, *, lines: bool = True) -> str:
    """One line a node: name, what it computes, shape, format (where given), the user's module and line.

    formats: node -> anything printable, for example a FixedFormat. lines=False leaves out the columns that change
    without the graph changing (shapes, formats, source lines).
    """
    batched = _batched(gm)
    rows = [_row(gm, n, formats or {}, lines, n in batched) for n in gm.graph.nodes]
    widths = [max((len(r[c]) for r in rows), default=0) for c in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows) + "\n"


def fingerprint(gm: GraphModule) -> str:
    """A hash of the graph's structure, equal for every compile of the same model with the same passes."""
    return hashlib.sha256(text(gm, lines=False).encode()).hexdigest()[:16]


def diff(before: str, after: str, name: str = "pass") -> str:
    """A unified diff of two texts, empty when they are equal."""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"before {name}", f"after {name}", n=1))


def _batched(gm: GraphModule) -> set[Node]:
    """Nodes that depend on data: their first axis is the batch."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder" or any(used in found for used in node.all_input_nodes):
            found.add(node)
    return found


def _row(gm: GraphModule, node: Node, formats: Mapping[Node, Any], lines: bool, batched: bool) -> tuple[str, ...]:
    name = "return" if node.op == "output" else node.name
    if not lines:
        return name, _expression(gm, node)
    record = info(node)
    sizes = [] if record.shape is None else ["N" if n == 0 and batched else str(d) for n, d in enumerate(record.shape)]
    shape = "" if record.shape is None else "x".join(sizes) or "scalar"
    return name, _expression(gm, node), shape, str(formats.get(node, "")), record.path, record.line or ""


def _expression(gm: GraphModule, node: Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return f"parameter {node.target}"
    if node.op == "output":
        return _argument(node.args[0])
    called = ", ".join([_argument(a) for a in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()])
    if node.op == "call_module":
        module = module_of(gm, node)
        kind = type(module).__name__
        if isinstance(module, Quantizer):
            kind = f"{kind}[{module.rounding}, {module.overflow}]"
        if isinstance(module, Tabulated):
            return f"{kind}[{module.extra_repr()}]({called})"
        return f"{kind} {node.target}({called})" if not isinstance(module, Quantizer | Mask) else f"{kind}({called})"
    op = op_of(node)
    function = op.name if op is not None else getattr(node.target, "__qualname__", str(node.target))
    return f"{function}({called})"


def _argument(value: Any) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(f'{k}={_argument(v)}' for k, v in zip(value._fields, value))})"
    if isinstance(value, tuple | list):
        inner = ", ".join(_argument(v) for v in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_argument(v)}" for k, v in value.items()) + "}"
    if isinstance(value, slice):
        return ":".join("" if v is None else str(v) for v in (value.start, value.stop, value.step))
    return repr(value)
