"""The graph that a QONNX file becomes, node by node: names, parameters, shapes and where everything stands in the file."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx import Node as FxNode
from torch.fx.node import map_arg

from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.graph.rewriter import OWN
from pquant_fx.lower.hls4ml.net import Array
from pquant_fx.lower.hls4ml.read import Node
from pquant_fx.quantize.quantizers import FixedQuantizer

__all__ = ["Constant", "Draft", "Grid"]

_PLAIN = nn.Module()


@dataclass(frozen=True, eq=False)
class Grid:
    """The format that a `Quant` node gives a value: k, i, f that broadcast to it, and the modes."""

    k: Array
    i: Array
    f: Array
    rounding: str
    overflow: str

    def moved(self, move: Callable[[Array], Array]) -> Grid:
        """The format of the value after a movement of its elements; k, i and f have the value's full shape."""
        return Grid(move(self.k), move(self.i), move(self.f), self.rounding, self.overflow)


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of the file that depends on no input: its values, its format if a `Quant` gave it one, its name as a parameter."""

    values: Any
    name: str
    grid: Grid | None = None
    quantizer: str = ""


class Draft:
    """Readers look up operands with `operand` and `parameter` and add nodes with `call` and `quantize`.

    constants, values: what each tensor of the file is; readers: how many nodes and outputs read it; padded: begins and ends of
    the spatial axes that a Pad with minus infinity put around a value for the MaxPool behind it.
    """

    def __init__(self, label: str, batch: int, readers: Mapping[str, int]) -> None:
        self.batch = batch
        self.constants: dict[str, Constant] = {}
        self.values: dict[str, FxNode] = {}
        self.readers = readers
        self.padded: dict[str, tuple[list[int], list[int]]] = {}
        self._label = label
        self._graph = Graph()
        self._root = nn.Module()
        self._shapes: dict[FxNode, torch.Tensor] = {}
        self._parameters: dict[tuple[str, bool, tuple[int, ...]], FxNode] = {}
        self._where = NodeInfo()
        self._tensors: dict[FxNode, str] = {}

    # ---- reading
    def sample(self, tensor: str) -> tuple[int, ...]:
        """Shape of a computed value without its batch axis."""
        return tuple(self._shapes[self.values[tensor]].shape[1:])

    def single(self, tensor: str) -> FxNode | None:
        """The node that makes a tensor, where one other node reads it and no output does."""
        return self.values.get(tensor) if self.readers.get(tensor, 0) == 1 else None

    def shape(self, node: FxNode) -> tuple[int, ...]:
        """Shape of a node's value, batch included where it is data."""
        return tuple(self._shapes[node].shape)

    def module(self, node: Any) -> nn.Module | None:
        """The module that a node calls."""
        called = isinstance(node, FxNode) and node.op == "call_module"
        return self._root.get_submodule(str(node.target)) if called else None

    def counted(self, node: FxNode) -> int:
        """How many nodes and outputs of the file read what `node` makes."""
        return self.readers.get(self._tensors.get(node, ""), 0)

    def numbers(self, node: FxNode) -> Array:
        """The values of a parameter."""
        owner, _, last = str(node.target).rpartition(".")
        held: torch.Tensor = getattr(self._root.get_submodule(owner), last)
        return held.double().numpy()

    # ---- writing
    def at(self, name: str, position: int) -> None:
        """What is added from now on comes from the node `name`, the file's `position`-th."""
        self._where = NodeInfo(path=name, line=f"{self._label}:{position}")

    def input(self, tensor: str, sample: Sequence[int]) -> None:
        """An input of the network."""
        name = re.sub(r"\W", "_", tensor)
        node = self._graph.placeholder(name if name.isidentifier() else f"_{name}")
        self._record(node, torch.empty((self.batch, *sample), device="meta"))
        self._is(tensor, node)

    def call(self, node: Node, function: Callable[..., Any], *args: Any, name: str = "", output: str = "") -> FxNode:
        """A node that calls `function`; its value is the (first) output of the ONNX node. LoweringError (PQ202) where shapes do not fit."""
        made = self._graph.create_node("call_function", function, args, name=_identifier(name or node.name))
        try:
            shape = function(*map_arg(args, lambda n: self._shapes[n]))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self._graph.erase_node(made)
            raise node.refuse(
                "PQ202", f"{node.proto.op_type}: its operands do not fit ({_first(error)})", "export the file again"
            ) from error
        if shape.ndim == 0 or shape.shape[0] != self.batch:
            self._graph.erase_node(made)
            raise node.refuse("PQ202", f"{node.proto.op_type} does not keep the batch as the first axis", "keep axis 0 for the samples")
        self._record(made, shape)
        return self._is(output or node.output, made)

    def quantize(self, node: Node, source: FxNode, grid: Grid) -> FxNode:
        """A data quantizer. Its format has the sample's shape."""
        k, i, f = (_compact(t) for t in (grid.k, grid.i, grid.f))
        k, i, f = (t[None] if t.ndim else t for t in (k, i, f))
        made = self._quantizer(node.name, source, k, i, f, grid, saturates=True)
        self._record(made, self._shapes[source], node.name.rpartition(".")[0])  # ours are called after the value: `fc.quantizer`
        return self._is(node.output, made)

    def alias(self, node: Node) -> None:
        """The output is the first input."""
        self.values[node.output] = self.values[node.inputs[0]]

    def nothing(self, node: Node, source: FxNode) -> FxNode:
        """A quantizer that lets nothing but 0 through."""
        zero = np.zeros(())
        return self.quantize(node, source, Grid(zero, zero, zero, "TRN", "SAT"))

    def made(self, node: Node, what: str, values: Array) -> FxNode:
        """A constant that the node stands for, as a parameter."""
        name = f"{node.name}.{what}"
        self.constants[name] = Constant(values, name)
        return self.parameter(name)

    def operand(self, node: Node, position: int) -> FxNode | float:
        """A computed value, a parameter, or a number where the file has a plain scalar."""
        tensor = node.inputs[position]
        if tensor in self.values:
            return self.values[tensor]
        held = self.constants[tensor]
        if held.grid is None and np.ndim(held.values) == 0:
            return float(node.reals(position, "operand"))
        return self.parameter(tensor)

    def parameter(self, tensor: str, move: Callable[[Array], Array] | None = None) -> FxNode:
        """A constant as a parameter; move: a movement of its elements that the operator's form in the graph asks for."""
        held = self.constants[tensor]
        values = np.asarray(held.values, dtype=np.float64)
        grid = held.grid
        if move is not None:
            values, grid = move(values), grid.moved(move) if grid is not None else None
        key = (tensor, move is not None, values.shape)
        if key not in self._parameters:
            name = held.name.removesuffix(".T") if move is not None else held.name
            self._parameters[key] = self._held(name, held.quantizer, values, grid)
        return self._parameters[key]

    def done(self, result: Any) -> GraphModule:
        """The graph module that returns `result`."""
        self._graph.output(result)
        gm = GraphModule(self._root, self._graph).eval()
        gm.graph.eliminate_dead_code()
        gm.delete_all_unused_submodules()
        gm.recompile()
        return gm

    # ---- inside
    def _is(self, tensor: str, node: FxNode) -> FxNode:
        self.values[tensor] = node
        self._tensors[node] = tensor
        return node

    def _held(self, name: str, quantizer: str, values: Array, grid: Grid | None) -> FxNode:
        exact = bool((values.astype(np.float32) == values).all())
        value = torch.from_numpy(np.array(values, order="C")).to(torch.float32 if exact else torch.float64)
        path = self._free(_path(name))
        owner, _, last = path.rpartition(".")
        self._owner(owner).register_buffer(last, value)
        node = self._graph.create_node("get_attr", path, name=_identifier(path))
        set_info(node, NodeInfo(path=owner, line=self._where.line, shape=tuple(value.shape), dtype="float32"))
        self._shapes[node] = value.to("meta", torch.float32)
        if grid is None:
            return node
        k, i, f = (_compact(t) for t in (grid.k, grid.i, grid.f))
        made = self._quantizer(quantizer, node, k, i, f, grid, saturates=False)
        set_info(made, NodeInfo(path=owner, line=self._where.line, shape=tuple(value.shape), dtype="float32"))
        self._shapes[made] = self._shapes[node]
        return made

    def _quantizer(self, name: str, source: FxNode, k: Array, i: Array, f: Array, grid: Grid, saturates: bool) -> FxNode:
        path = self._free(f"{OWN}.{'.'.join(part if part.isidentifier() else f'_{part}' for part in _path(name).split('.'))}")
        owner, _, last = path.rpartition(".")
        a, b, c = (torch.from_numpy(np.array(t, dtype=np.float32)) for t in (k, i, f))
        self._owner(owner).add_module(last, FixedQuantizer(a, b, c, grid.rounding, grid.overflow, saturates=saturates))
        return self._graph.create_node("call_module", path, (source,), name=_identifier(path))

    def _record(self, node: FxNode, value: torch.Tensor, path: str = "") -> None:
        self._shapes[node] = value
        record = self._where if node.op != "placeholder" else NodeInfo()
        set_info(node, NodeInfo(path or record.path, line=record.line, shape=tuple(value.shape), dtype="float32"))

    def _owner(self, path: str) -> nn.Module:
        owner = self._root
        for part in filter(None, path.split(".")):
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        return owner

    def _free(self, path: str) -> str:
        """`path`, or `path_2`, ... where something stands in its way; without its dots where that is one of its parents."""
        wanted = path if self._has_parents(path) else path.replace(".", "_")
        found, n = wanted, 1
        while not self._is_free(found):
            n += 1
            found = f"{wanted}_{n}"
        return found

    def _has_parents(self, path: str) -> bool:
        """Whether every parent is a module, or can become one."""
        owner: nn.Module = self._root
        for part in path.split(".")[:-1]:
            if part not in owner._modules:
                return not hasattr(owner, part)
            owner = owner.get_submodule(part)
        return True

    def _is_free(self, path: str) -> bool:
        """Whether neither a tensor of ours nor something that every module has (`half`, `type`) goes by that path."""
        owner: nn.Module = self._root
        *parents, last = path.split(".")
        for part in parents:
            if part not in owner._modules:
                return not hasattr(_PLAIN, last)
            owner = owner.get_submodule(part)
        return not hasattr(owner, last)


def _compact(t: Array) -> Array:
    """Size 1 on every axis along which nothing changes; a scalar where nothing changes at all."""
    for axis in range(t.ndim):
        first = np.take(t, [0], axis) if t.shape[axis] else t
        t = first if (t == first).all() else t
    return t.reshape(()) if t.size == 1 else t


def _path(name: str) -> str:
    """A tensor's name as the path of an attribute that Python can read."""
    parts = [part for part in re.sub(r"[^\w.]", "_", name).split(".") if part] or ["value"]
    return ".".join(f"{part}_" if keyword.iskeyword(part) else part for part in parts)


def _identifier(name: str) -> str:
    found = re.sub(r"\W+", "_", name.removeprefix(f"{OWN}.")).strip("_") or "node"
    return found if found.isidentifier() else f"_{found}"


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
