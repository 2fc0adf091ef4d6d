"""Frozen graph -> one combinational program of alkaid, with the ports that lead into and out of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.graph.analysis import FormatMap, sample_shape
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, module_of, op_of
from pquant_fx.graph.info import place
from pquant_fx.graph.interval_codes import Formats
from pquant_fx.graph.interval_quantizer import formats_of
from pquant_fx.graph.intervals import Inexact
from pquant_fx.graph.values import output_of
from pquant_fx.lower.integer import IntegerInterpreter
from pquant_fx.lower.integer_ops import OPERATORS as MOVES
from pquant_fx.lower.integer_ops import Codes, real
from pquant_fx.lower.rtl.adapter import Solver, Symbols, interpret, logic, require_alkaid, variables
from pquant_fx.lower.rtl.elements import each
from pquant_fx.lower.rtl.operators import OPERATORS
from pquant_fx.lower.rtl.products import SUMS_OF_PRODUCTS
from pquant_fx.lower.rtl.quantizing import quantized

__all__ = ["Builder", "Circuit", "Design", "Port", "Reals", "build_circuit", "flattened", "ports_of", "rounded", "symbolic_outputs"]


@dataclass(frozen=True)
class Port:
    """One value at the border of the circuit. kif: (k, i, f) of each element, arrays of its shape; elements without bits are 0."""

    name: str
    shape: tuple[int, ...]
    kif: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which of the flattened elements have bits."""
        k, i, f = self.kif
        return ((i + f >= 0) & (k + i + f > 0)).ravel()


@dataclass(frozen=True)
class Reals:
    """Numbers that no quantizer has rounded: for each element, which element of the inputs it is, counted from 1; 0 is the number 0."""

    index: NDArray[np.int64]


@dataclass(frozen=True)
class Design(ABC):
    """What computes a frozen graph on the codes of its input quantizers.

    inputs: the values of the quantizers that see the network's real inputs, in graph order; outputs: of the network, in order of
    its result's structure. sources: for each input port, which numbers it rounds, counted from 1 over all inputs.
    """

    gm: GraphModule
    formats: FormatMap
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sources: tuple[NDArray[np.int64], ...] = field(repr=False)

    @property
    def input_kif(self) -> NDArray[np.int64]:
        """Formats of the inputs' elements that have bits, side by side: (3, elements)."""
        return np.concatenate([np.stack([a.ravel() for a in p.kif])[:, p.used] for p in self.inputs], axis=1)

    @property
    def output_kif(self) -> NDArray[np.int64]:
        """Formats of all of the outputs' elements, side by side."""
        return np.concatenate([np.stack([a.ravel() for a in p.kif]) for p in self.outputs], axis=1)

    @abstractmethod
    def evaluate(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What alkaid's interpreter makes of input codes as real numbers (samples, elements)."""

    @abstractmethod
    def node_values(self, x: NDArray[np.float64]) -> Iterator[tuple[Node, NDArray[np.float64]]]:
        """The same for single nodes, in order of computation."""


@dataclass(frozen=True)
class Circuit(Design):
    """One program for the whole network. `values`: the variables of every node; `symbols`: those of the inputs."""

    program: Any
    values: dict[Node, Symbols] = field(repr=False)
    symbols: tuple[Any, ...] = field(repr=False)

    @property
    def input_kif(self) -> NDArray[np.int64]:
        return np.asarray(self.program.inp_kifs, dtype=np.int64)

    def evaluate(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return interpret(self.program, x)

    def node_values(self, x: NDArray[np.float64]) -> Iterator[tuple[Node, NDArray[np.float64]]]:
        for node, symbols in self.values.items():
            yield node, interpret(logic(self.symbols, list(symbols.ravel())), x)


def symbolic_outputs(gm: GraphModule, formats: FormatMap, inputs: Sequence[Symbols]) -> list[Symbols]:
    """The outputs of a frozen graph on variables of somebody else's circuit: one array an input, without a batch axis, and so returned.

    Raises like `build_circuit`.
    """
    builder = Builder(gm, formats)
    builder.visit(inputs)
    return [builder.state[n][0] for n in output_of(gm).all_input_nodes if n not in formats.constants]


def build_circuit(gm: GraphModule, formats: FormatMap) -> Circuit:
    """The circuit of a frozen `gm`: every node as adders, tests and tables of alkaid's.

    Raises LoweringError with every node that alkaid has no exact form for (PQ201 operator, PQ202 option, PQ303 too wide),
    ExtraMissingError (PQ503) without alkaid.
    """
    require_alkaid()
    builder = Builder(gm, formats)
    builder.visit()
    returned = builder.returned()
    program = logic(builder.symbols, [v for node in returned for v in builder.state[node].ravel()])
    outputs = ports_of(builder, returned, np.asarray(program.out_kifs, dtype=np.int64))
    values = {n: v for n, v in builder.state.items() if not isinstance(v, Reals)}
    return Circuit(gm, formats, tuple(builder.inputs), outputs, tuple(builder.sources), program, values, tuple(builder.symbols))


def ports_of(builder: Builder, returned: Sequence[Node], kif: NDArray[np.int64]) -> tuple[Port, ...]:
    """The output ports; kif: (3, elements) of all of them side by side."""
    made, start = [], 0
    for node in returned:
        shape = builder.state[node].shape[1:]
        size = int(np.prod(shape))
        part = kif[:, start : start + size].reshape(3, *shape)
        made.append(Port(node.name, shape, (part[0], part[1], part[2])))
        start += size
    return tuple(made)


class Builder:
    """Walks a frozen graph and computes its nodes on alkaid's variables; every refusal is kept until the end."""

    def __init__(self, gm: GraphModule, formats: FormatMap) -> None:
        self.gm, self.formats = gm, formats
        self.solve = Solver()
        self.constants = {n: real(*c) for n, c in IntegerInterpreter(gm, formats).constants.items()}
        self.state: dict[Node, Any] = {}
        self.problems: list[Problem] = []
        self.inputs: list[Port] = []
        self.symbols: list[Any] = []
        self.sources: list[NDArray[np.int64]] = []

    def visit(self, given: Sequence[Symbols] | None = None) -> None:
        """Compute every node; given: variables to use as the network's inputs."""
        live, count = live_nodes(self.gm), 0
        waiting = iter(given or ())
        for node in self.gm.graph.nodes:
            if node.op == "placeholder" and given is not None:
                self.state[node] = np.asarray(next(waiting), dtype=object)[None]
            elif node.op == "placeholder":
                shape = sample_shape(node) or ()
                size = int(np.prod(shape))
                self.state[node] = Reals(np.arange(count + 1, count + size + 1).reshape(1, *shape))
                count += size
            elif node.op != "output" and node in live and node not in self.formats.constants:
                self._visit(node)
        if self.problems:
            raise LoweringError(self.problems)

    def returned(self) -> list[Node]:
        """The output nodes that are no constants. Raises LoweringError (PQ202) when there is nothing to build."""
        found = [n for n in output_of(self.gm).all_input_nodes if n not in self.formats.constants]
        varies = any(v.low != v.high for n in found for v in self.state[n].ravel())
        if not varies or not self.symbols:
            what = "every output is a constant: there is nothing to build"
            raise LoweringError(Problem("PQ202", what, "look at the formats: did a quantizer lose all of its bits?"))
        return found

    # ---- one node
    def _visit(self, node: Node) -> None:
        if any(n not in self.state and n not in self.constants for n in node.all_input_nodes):
            return  # behind a refused node
        try:
            self.state[node] = self._value(node)
        except Inexact as error:
            self.problems.append(Problem(error.code, f"'{node.name}': {error.what}", error.remedy, place(node)))
        except AssertionError as error:  # alkaid states its limits as assertions
            what = f"'{node.name}': alkaid can not express it: {error or 'an assertion of its own fails'}"
            self.problems.append(Problem("PQ202", what, "give the value another format, or use to_hls4ml", place(node)))

    def _value(self, node: Node) -> Any:
        module = module_of(self.gm, node)
        source: Any = self.state.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        if isinstance(module, Quantizer):
            formats = formats_of(module, source.index.shape[1:] if isinstance(source, Reals) else source.shape[1:], data=True)
            return self._port(node, source, formats) if isinstance(source, Reals) else rounded(source, formats, module)
        if isinstance(module, IDENTITIES):
            return source
        if any(isinstance(self.state.get(n), Reals) for n in node.all_input_nodes):
            return self._moved(node)
        args: Any = map_arg((*node.args, *node.kwargs.values()), cast(Any, self._operand))
        if node.target in SUMS_OF_PRODUCTS:
            return SUMS_OF_PRODUCTS[node.target](self.solve, *args)
        if node.target not in OPERATORS:
            name = op.name if (op := op_of(node)) is not None else str(node.target)
            raise Inexact("PQ201", f"{name} has no form in RTL", "use to_hls4ml, or replace it")
        return OPERATORS[node.target](*args)

    def _operand(self, node: Node) -> Any:
        return self.state[node] if node in self.state else self.constants[node]

    def _moved(self, node: Node) -> Reals:
        """Real inputs may be moved about before their quantizer: which element is where is all that changes."""
        op = op_of(node)
        if op is None or op.kind != "grid" or op.name in ("max_pool1d", "max_pool2d", "amax"):
            raise Inexact(
                "PQ202", "it compares inputs before a quantizer has rounded them", "quantize the input first (quantize_input: true)"
            )

        def numbered(n: Node) -> Any:
            return Codes(self.state[n].index, 0)

        args: Any = map_arg((*node.args, *node.kwargs.values()), cast(Any, numbered))
        return Reals(MOVES[node.target](*args).codes)  # type: ignore[index]

    def _port(self, node: Node, source: Reals, formats: Formats) -> Symbols:
        shape = source.index.shape[1:]
        k, i, f = (np.where(source.index[0] == 0, 0, np.broadcast_to(a, shape)) for a in (formats.k, formats.i, formats.f))
        port = Port(node.name, shape, (k, i, f))
        made = variables(k, i, f)
        self.inputs.append(port)
        self.symbols += list(made.ravel()[port.used])
        self.sources.append(source.index[0])
        return made[None]


def rounded(x: Symbols, formats: Formats, quantizer: Quantizer) -> Symbols:
    shape = x.shape[1:]
    k, i, f = (np.broadcast_to(a, shape)[None] for a in (formats.k, formats.i, formats.f))

    def element(v: Any, k: int, i: int, f: int) -> Any:
        return quantized(v, int(k), int(i), int(f), quantizer.rounding, quantizer.overflow)

    return each(element, x, k, i, f)


def flattened(ports: Sequence[Port], values: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The values of the ports' used elements, side by side: (samples, elements)."""
    return np.concatenate([values[p.name].reshape(len(values[p.name]), -1)[:, p.used] for p in ports], axis=1)
