"""A design of layers: the graph is cut at its quantizers, and equal parts of a layer share one module.

    flat     one circuit for the whole network, pipelined as a whole: the smallest latency, adders shared over everything
    layers   for every quantizer (and output) one module that computes one position of it, and an instance for each position

Every position of a convolution has the same module; where its window reaches over the border, zeros are fed in. Instances run
side by side: as with `flat`, a new sample may come every clock cycle. What a synthesis tool has to map is one module a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Quantizer, module_of, op_of
from pquant_fx.graph.interval_codes import Formats
from pquant_fx.graph.interval_quantizer import formats_of
from pquant_fx.lower.rtl.adapter import Solver, Symbols, interpret, leaves, logic, require_alkaid, variables
from pquant_fx.lower.rtl.circuit import Builder, Design, Reals, ports_of

__all__ = ["Instance", "Layer", "Layers", "Module", "build_layers"]

Source = tuple[int, int] | None
"""Where an input of an instance comes from: (layer, element), layer -1 are the network's inputs; None is the number 0."""


@dataclass(frozen=True)
class Module:
    """One circuit that several positions share."""

    program: Any

    @property
    def input_kif(self) -> NDArray[np.int64]:
        return np.asarray(self.program.inp_kifs, dtype=np.int64)

    @property
    def output_kif(self) -> NDArray[np.int64]:
        return np.asarray(self.program.out_kifs, dtype=np.int64)


@dataclass(frozen=True)
class Instance:
    """module: its number; outputs: the elements of the layer that it computes."""

    module: int
    inputs: tuple[Source, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The value of one node. kif: formats of its elements (3, elements); constants: elements that never change, with their values."""

    node: Node
    kif: NDArray[np.int64]
    instances: tuple[Instance, ...]
    constants: dict[int, float]


@dataclass(frozen=True)
class Layers(Design):
    """layers in order of computation; returned: the layer of each output."""

    modules: tuple[Module, ...] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    returned: tuple[int, ...]

    def evaluate(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        values = [value for _, value in self.node_values(x)]
        return np.concatenate([values[n] for n in self.returned], axis=1)

    def node_values(self, x: NDArray[np.float64]) -> Iterator[tuple[Node, NDArray[np.float64]]]:
        known: list[NDArray[np.float64]] = []
        for layer in self.layers:
            value = np.zeros((len(x), layer.kif.shape[1]))
            for element, constant in layer.constants.items():
                value[:, element] = constant
            for one in layer.instances:
                columns = [np.zeros(len(x)) if s is None else (x if s[0] < 0 else known[s[0]])[:, s[1]] for s in one.inputs]
                value[:, list(one.outputs)] = interpret(self.modules[one.module].program, np.stack(columns, axis=1))
            known.append(value)
            yield layer.node, value


def build_layers(gm: GraphModule, formats: FormatMap) -> Layers:
    """The design of a frozen `gm`. Raises like `build_circuit`."""
    require_alkaid()
    builder = _Cutter(gm, formats)
    builder.visit()
    returned = builder.returned()
    for node in returned:
        if node not in builder.numbers:
            builder.cut(node, None)
    numbers = tuple(builder.numbers[n] for n in returned)
    kif = np.concatenate([builder.layers[n].kif for n in numbers], axis=1)
    outputs = ports_of(builder, returned, kif)
    return Layers(
        gm, formats, tuple(builder.inputs), outputs, tuple(builder.sources), tuple(builder.modules), tuple(builder.layers), numbers
    )


class _Cutter(Builder):
    """Ends a layer at every quantizer: what follows sees new variables of its format."""

    def __init__(self, gm: GraphModule, formats: FormatMap) -> None:
        super().__init__(gm, formats)
        self.solve = Solver(self._zero)
        self.origins: dict[Any, Source] = {}
        self.modules: list[Module] = []
        self.layers: list[Layer] = []
        self.numbers: dict[Node, int] = {}
        self._known: dict[Any, int] = {}

    def _zero(self, beside: Any) -> Any:
        """A 0 of the format of the variable beside it, so that a window at the border is like any other."""
        made: Any = variables(*(np.array(int(n)) for n in beside.kif))[()]
        if beside.opr == "new":
            self.origins[made.id] = None
            return made
        return variables(np.array(0), np.array(0), np.array(0))[()]

    def _port(self, node: Node, source: Reals, formats: Formats) -> Symbols:
        start = len(self.symbols)
        made = super()._port(node, source, formats)
        self.origins |= {v.id: (-1, n) for n, v in enumerate(self.symbols[start:], start)}
        return made

    def _visit(self, node: Node) -> None:
        super()._visit(node)
        module, value = module_of(self.gm, node), self.state.get(node)
        if isinstance(module, Quantizer) and value is not None and not isinstance(self.state[node.all_input_nodes[0]], Reals):
            self.cut(node, formats_of(module, value.shape[1:], data=True))

    def cut(self, node: Node, formats: Formats | None) -> None:
        """Make a layer of the value of `node`; formats: of the variables that stand for it from here on."""
        value = self.state[node]
        flat = value.ravel()
        constants = {n: float(v.low) for n, v in enumerate(flat) if v.low == v.high}
        parts = [[n for n in at if n not in constants] for at in _positions(self.gm, node, value.shape)]
        instances = [self._instance(flat, at) for at in parts if at]
        kif = np.zeros((3, flat.size), dtype=np.int64)
        if formats is None:
            for one in instances:
                kif[:, list(one.outputs)] = self.modules[one.module].output_kif
        else:
            kif = np.stack([np.broadcast_to(a, value.shape[1:]).ravel() for a in (formats.k, formats.i, formats.f)])
        for element, number in constants.items():
            kif[:, element] = _kif_of(number)
        if formats is not None:
            made = variables(*(k.reshape(value.shape) for k in kif))
            for element, v in enumerate(made.ravel()):
                self.origins[v.id] = (len(self.layers), element)
            for element in constants:
                made.ravel()[element] = flat[element]
            self.state[node] = made
        self.numbers[node] = len(self.layers)
        self.layers.append(Layer(node, kif, tuple(instances), constants))

    def _instance(self, flat: Symbols, at: list[int]) -> Instance:
        outputs = [flat[n] for n in at]
        inputs = leaves(outputs)
        raw = logic(inputs, outputs, optimize=False)
        key = raw.to_bytecode()
        if key not in self._known:
            self._known[key] = len(self.modules)
            self.modules.append(Module(logic(inputs, outputs)))
        return Instance(self._known[key], tuple(self.origins[v.id] for v in inputs), tuple(at))


def _positions(gm: GraphModule, node: Node, shape: Sequence[int]) -> list[list[int]]:
    """The elements of a value, one list for each position that has its own window of inputs: all channels of it together."""
    index = np.arange(int(np.prod(shape))).reshape(shape[1:])
    if index.ndim < 2:
        return [index.ravel().tolist()]
    last = _last_axis(gm, node)
    rows = index.reshape(-1, index.shape[-1]) if last else np.moveaxis(index, 0, -1).reshape(-1, index.shape[0])
    return [row.tolist() for row in rows]


def _last_axis(gm: GraphModule, node: Node) -> bool:
    """Whether channels are on the last axis: behind a linear layer or a product of matrices."""
    while True:
        op = op_of(node)
        if op is not None and (op.kind in ("weighted", "pool") or op.name == "matmul"):
            return node.target is F.linear or op.name == "matmul"
        if not node.all_input_nodes or (op is not None and op.kind == "grid"):
            return False
        node = node.all_input_nodes[0]


def _kif_of(value: float) -> tuple[int, int, int]:
    """The smallest format that holds the number."""
    if value == 0:
        return 0, 0, 0
    numerator, denominator = abs(value).as_integer_ratio()
    zeros = (numerator & -numerator).bit_length() - 1
    f = denominator.bit_length() - 1 - zeros
    code = int(value * 2.0**f)
    bits = (code if code > 0 else -code - 1).bit_length()
    return int(code < 0), bits - f, f
