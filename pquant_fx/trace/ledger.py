"""The ledger of a trace: which value belongs to which node, and what is known about it at two batch sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from pquant_fx.errors import Place
from pquant_fx.graph.batch import mark_without_batch_axis
from pquant_fx.graph.info import NodeInfo, info, set_info
from pquant_fx.graph.shapes import Shapes, map_structure
from pquant_fx.trace.lines import Lines
from pquant_fx.trace.refusals import Refusals
from pquant_fx.trace.values import BatchSize, Memory, ShapeInt, Sketch, Value, sketch

__all__ = ["Ledger", "dtype_name"]


class Ledger:
    """Writes nodes and makes the values that stand for them.

    A value is a new `Value`, a parameter or buffer of the model (found by identity, however it was reached), or a tensor
    that the user's code made, which becomes a constant of the graph.
    """

    def __init__(self, root: nn.Module, shapes: Shapes, batches: tuple[int, int], lines: Lines) -> None:
        self.root = root
        self.shapes = shapes
        self.batches = batches
        self.graph = Graph()
        self.lines = lines
        self.refusals = Refusals(lines)
        self.constants: dict[str, Tensor] = {}
        self.stack: list[tuple[str, int]] = [("", 1)]
        self.paths: dict[int, str] = {}
        self.reads: dict[Any, tuple[Node, str]] = {}  # dtypes and devices that were read off a value
        self.owned: dict[int, Value] = {}
        self.lifted: dict[int, tuple[Tensor, Value]] = {}
        self._index()

    def _index(self) -> None:
        for path, module in self.root.named_modules():
            self.paths[id(module)] = path
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and id(tensor) not in self.owned:
                    meta = self.shapes.meta(tensor)
                    full = f"{path}.{name}" if path else name
                    self.owned[id(tensor)] = Value.make(Sketch(None, meta, meta, tensor.device, parameter=full))

    # ---- results
    def emit(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        """A node for a call whose arguments may hold values."""
        return self.node("call_function", function, self.nodes(args), self.nodes(kwargs or {}))

    def result(self, low: Any, high: Any, node: Node, device: torch.device, inputs: list[Sketch]) -> Any:
        """Values for a result of any structure, with a `getitem` node for each part."""
        if isinstance(low, Tensor):
            if not isinstance(high, Tensor) or low.dim() != high.dim():
                self.refusals.rank_depends(low, high, self.batches, self.place())
                high = low
            if not torch.is_grad_enabled():  # inside the user's torch.no_grad()
                node = self.node("call_function", torch.Tensor.detach, (node,), {})
            self._describe(node, low, high)
            memory = next((r.memory for r in inputs if _share(r.low, low)), None) or Memory()
            return Value.make(Sketch(node, low, high, device, memory, memory.writes))
        if isinstance(low, (tuple, list)) and not isinstance(low, torch.Size):
            if len(low) != len(high):
                self.refusals.iterated(len(low), self.place())
                high = low
            parts = [self._item(a, b, node, i, device, inputs) for i, (a, b) in enumerate(zip(low, high))]
            return type(low)(*parts) if hasattr(low, "_make") else type(low)(parts)
        if isinstance(low, dict):
            return {k: self._item(v, high[k], node, k, device, inputs) for k, v in low.items()}
        return self.number(low, high, lambda: node, (node,))

    def _item(self, low: Any, high: Any, node: Node, key: Any, device: torch.device, inputs: list[Sketch]) -> Any:
        if low is None:
            return None
        return self.result(low, high, self.node("call_function", operator.getitem, (node, key), {}), device, inputs)

    def number(self, low: Any, high: Any, node: Callable[[], Node], args: Any) -> Any:
        """A result that is no tensor: a constant when both witnesses agree, else a number that depends on the batch."""
        if isinstance(low, torch.Size):
            source = args[0]
            sizes = [
                ShapeInt.make(a, self) if a == b else BatchSize.of_witnesses(a, b, self._size(source, axis), self)
                for axis, (a, b) in enumerate(zip(low, high))
            ]
            return torch.Size(sizes)  # type: ignore[arg-type]
        if type(low) in (tuple, list) and low != high:
            return type(low)(self.number(a, b, self._part(node, i), ()) for i, (a, b) in enumerate(zip(low, high)))
        if type(low) is int:
            return ShapeInt.make(low, self) if low == high else BatchSize.of_witnesses(low, high, node, self)
        if isinstance(low, (bool, float)) and low != high:
            return BatchSize.of_witnesses(low, high, node, self)
        return low

    def _part(self, source: Callable[[], Node], i: int) -> Callable[[], Node]:
        return lambda: self.node("call_function", operator.getitem, (source(), i), {})

    def _size(self, source: Node, axis: int) -> Callable[[], Node]:
        return lambda: self.node("call_function", torch.Tensor.size, (source, axis), {})

    # ---- from values to nodes
    def node(self, kind: str, target: Any, args: Any, kwargs: Any) -> Node:
        node = self.graph.create_node(kind, target, args, kwargs)
        path, site = self.stack[-1]
        set_info(node, NodeInfo(path, site, self.lines.here()))
        return node

    def _describe(self, node: Node, low: Tensor, high: Tensor) -> None:
        set_info(node, replace(info(node), shape=tuple(low.shape), dtype=dtype_name(low)))
        if not low.dim() or (low.shape[0], high.shape[0]) != self.batches or low.shape[1:] != high.shape[1:]:
            mark_without_batch_axis(node)

    def place(self) -> Place:
        return Place(None, self.stack[-1][0], self.lines.here())

    def concerns(self, value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return any(self.concerns(v) for v in value)
        if isinstance(value, dict):
            return any(self.concerns(v) for v in value.values())
        if isinstance(value, slice):
            return self.concerns((value.start, value.stop, value.step))
        return isinstance(value, (Value, BatchSize)) or (
            isinstance(value, Tensor) and (id(value) in self.owned or id(value) in self.lifted)
        )

    def tensors(self, value: Any) -> list[Tensor]:
        found: list[Tensor] = []
        map_structure(lambda x: found.append(x) if isinstance(x, Tensor) else None, value)
        return found

    def record_of(self, value: Tensor) -> Sketch:
        """The record of a value, of a parameter reached by another way, or of a tensor that the user's code made."""
        if isinstance(value, Value):
            return sketch(value)
        if id(value) in self.owned:
            return sketch(self.owned[id(value)])
        if id(value) not in self.lifted:
            if value.device.type == "meta":
                raise self.refusals.escaped(self.place())
            name = "pq.constant" if not self.constants else f"pq.constant_{len(self.constants) + 1}"
            self.constants[f"{name}.value"] = value.detach()
            meta = self.shapes.meta(value)
            node = self.node("get_attr", f"{name}.value", (), {})
            self._describe(node, meta, meta)
            self.lifted[id(value)] = (value, Value.make(Sketch(node, meta, meta, value.device)))
        return sketch(self.lifted[id(value)][1])

    def node_of(self, value: Tensor) -> Node:
        record = self.record_of(value)
        if record.node is None:
            assert record.parameter is not None
            record.node = self.graph.create_node("get_attr", record.parameter)
            owner = record.parameter.rpartition(".")[0]
            mark_without_batch_axis(record.node)
            set_info(record.node, NodeInfo(owner, 1, self.lines.here(), tuple(record.low.shape), dtype_name(record.low)))
        return record.node

    def attribute(self, value: Tensor) -> Tensor:
        owner, _, name = str(self.record_of(value).parameter).rpartition(".")
        module = self.root.get_submodule(owner)
        found = module._parameters.get(name)
        return found if found is not None else module._buffers[name]  # type: ignore[return-value]

    def nodes(self, value: Any) -> Any:
        """The same structure with nodes in the place of values."""
        return map_structure(self._argument, value)

    def _argument(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.node_of(x)
        if isinstance(x, BatchSize):
            return x.node
        if isinstance(x, ShapeInt):
            return int(x)
        if isinstance(x, (torch.dtype, torch.device)) and x in self.reads:
            node, name = self.reads[x]
            return self.node("call_function", getattr, (node, name), {})
        if isinstance(x, (nn.Module, torch.Generator, FunctionType, MethodType)):
            raise self.refusals.argument(x, self.place())
        if is_dataclass(x) and not isinstance(x, type):
            return self.node("call_function", type(x), (), {f.name: self.nodes(getattr(x, f.name)) for f in fields(x)})
        return x

    def witnesses(self, value: Any, which: int) -> Any:
        """The same structure with the witnesses of one batch size in the place of values."""

        def pick(x: Any) -> Any:
            if isinstance(x, Tensor):
                record = self.record_of(x)
                return record.high if which else record.low
            if isinstance(x, BatchSize):
                return x.values[which]
            return int(x) if isinstance(x, ShapeInt) else x

        return map_structure(pick, value)

    # ---- what values ask for
    def batch_needed(self, number: BatchSize, use: str) -> Any:
        self.refusals.batch_needed(use, self.place())
        return number.values[0]

    def shape_tested(self, result: bool) -> None:
        if torch._C._is_torch_function_mode_enabled():  # the user's code is running, not ours
            self.refusals.shape_tested(result, self.place())


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
