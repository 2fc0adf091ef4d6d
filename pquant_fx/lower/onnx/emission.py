"""From a frozen graph to ONNX: the walk that both files share. What differs is a `Target`: how quantizers and parameters
are written, and whether wide values may be computed in double.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from torch.fx import GraphModule, Node

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, module_of, op_of
from pquant_fx.graph.info import place
from pquant_fx.graph.values import output_of
from pquant_fx.lower.onnx.graph import Dtype, OnnxGraph, Shape, Value, Version
from pquant_fx.lower.onnx.names import containers, input_name, node_name, output_names, parameter_name, sample_shapes
from pquant_fx.lower.onnx.precision import FLOAT32_BITS, FLOAT64_BITS, is_fixed_point, value_bits, work_bits

if TYPE_CHECKING:
    import onnx

__all__ = ["Emission", "Emit", "Layout", "Target", "numbers"]

Layout = Literal["as is", "transposed"]
_CODES: dict[str, int] = {"float32": 1, "float64": 11, "int64": 7, "bool": 9}  # TensorProto.DataType


@dataclass(frozen=True)
class Target:
    """One kind of file.

    table: dialect function -> emitter; quantize(emission, node, quantizer, x): the value of a data quantizer;
    parameter(emission, node, layout): the value of a parameter; doubles: nodes beyond float32 are computed in float64.
    """

    name: str
    table: Mapping[Callable[..., Any], Emit]
    quantize: Callable[[Emission, Node, Quantizer, Value], Value]
    parameter: Callable[[Emission, Node, Layout], Value]
    doubles: bool


class Emission:
    """One export of one graph. Emitters call `data`, `parameter`, `step` and `result`."""

    def __init__(
        self, gm: GraphModule, target: Target, batch: int | None, formats: FormatMap | None = None, version: Version | None = None
    ) -> None:
        self.gm = gm
        self.target = target
        self.formats = analyse(gm) if formats is None else formats
        self.graph = OnnxGraph(version)
        self.problems: list[Problem] = []
        self._batch: int | str = "N" if batch is None else batch
        self._inside = containers(gm)
        self._values: dict[Node, Value] = {}
        self._parameters: dict[tuple[Node, Layout], Value] = {}
        self._casts: dict[tuple[str, Dtype], Value] = {}
        self._outputs: dict[Node, str] = {}
        self._shapes: dict[Node, tuple[int, ...]] = {}
        self._refused: set[Node] = set()

    def run(self) -> onnx.ModelProto:
        """The file. Raises LoweringError with every problem of every node."""
        self._refuse_unsupported()
        self._shapes = sample_shapes(self.gm, self.formats.constants, 1 if isinstance(self._batch, str) else self._batch)
        inputs = self._inputs()
        output = output_of(self.gm)
        returned = [(self._free_output(name), node) for name, node in output_names(output)]
        for name, node in returned:
            if node.op != "placeholder" and not self.is_constant(node):
                self._outputs.setdefault(node, name)
        for node in self._work():
            self._emit(node)
        self._raise()
        outputs = [self._returned(name, node) for name, node in returned]
        return self.graph.model(inputs, outputs)

    @property
    def values(self) -> Mapping[Node, Value]:
        """The tensor that holds the value of each data node, once the file is written."""
        return self._values

    # ---- what emitters use
    def is_constant(self, node: Node) -> bool:
        """Whether the value of `node` is one of the circuit's constants."""
        return node in self.formats.constants

    def shape(self, node: Node) -> Shape:
        """The shape of a value, batch included."""
        found = self._shapes[node]
        return found if self.is_constant(node) else (self._batch, *found[1:])

    def compute(self, node: Node) -> Dtype:
        """The type in which `node` is exact."""
        return "float64" if self.target.doubles and work_bits(self.formats, node) > FLOAT32_BITS else "float32"

    def data(self, node: Node, operand: Any, at: int = 0) -> Value:
        """An operand of `node` (a value, a parameter or a number) in the type in which `node` is computed."""
        dtype = self.compute(node)
        if not isinstance(operand, Node):
            return self.graph.constant(f"{self.name(node)}.{'ab'[at]}", operand, dtype)
        if self.is_constant(operand):
            return self.cast(self.parameter(operand), dtype)
        return self.cast(self._values[operand], dtype)

    def parameter(self, node: Node, layout: Layout = "as is") -> Value:
        """A parameter, written once however often it is used."""
        if (node, layout) not in self._parameters:
            self._parameters[node, layout] = self.target.parameter(self, node, layout)
        return self._parameters[node, layout]

    def cast(self, value: Value, dtype: Dtype) -> Value:
        """The value in another type; one Cast however often it is needed."""
        if value.dtype == dtype:
            return value
        if (value.name, dtype) not in self._casts:
            output = Value(self.graph.unique(f"{value.name}/{dtype}"), value.shape, dtype)
            self._casts[value.name, dtype] = self.graph.node("Cast", [value], output, attributes={"to": _CODES[dtype]})
        return self._casts[value.name, dtype]

    def name(self, node: Node) -> str:
        """The name of a graph node in the file, before it is made unique."""
        return parameter_name(node) if node.op == "get_attr" else node_name(node, self._inside)

    def step(
        self, node: Node, what: str, operator: str, inputs: Sequence[Value], shape: Shape, domain: str = "", **attributes: Any
    ) -> Value:
        """An auxiliary ONNX node of `node`, named `<name>/<what>`."""
        output = Value(self.graph.unique(f"{self.name(node)}/{what}"), shape, inputs[0].dtype)
        return self.graph.node(operator, inputs, output, domain=domain, attributes=attributes)

    def result(self, node: Node, operator: str, inputs: Sequence[Value], domain: str = "", **attributes: Any) -> Value:
        """The ONNX node whose output is the value of `node`, narrowed to float32 where that is exact."""
        wide, store = inputs[0].dtype, self._store(node)
        name = self.graph.unique(self.name(node))
        tensor = self._outputs.get(node, name)
        if wide == store:
            return self.graph.node(operator, inputs, Value(tensor, self.shape(node), store), name, domain, attributes)
        exact = Value(self.graph.unique(f"{name}/{wide}"), self.shape(node), wide)
        made = self.graph.node(operator, inputs, exact, None, domain, attributes)
        return self.graph.node("Cast", [made], Value(tensor, self.shape(node), store), name, attributes={"to": _CODES[store]})

    def final(self, node: Node, operator: str, inputs: Sequence[Value], **attributes: Any) -> Value:
        """The ONNX node whose output is the value of `node` in float32, whatever type its inputs have."""
        name = self.graph.unique(self.name(node))
        output = Value(self._outputs.get(node, name), self.shape(node), "float32")
        return self.graph.node(operator, inputs, output, name, attributes=attributes)

    def reduced_over(self, node: Node, axes: Sequence[int]) -> tuple[list[Value], dict[str, Any]]:
        """(inputs, attributes) that say over which axes ReduceMean and ReduceMax go: an input since opset 18, an attribute before."""
        if self.graph.version.opset < 18:
            return [], {"axes": list(axes)}
        return [self.constant(node, "axes", list(axes), "int64")], {}

    def constant(self, node: Node, what: str, array: npt.ArrayLike, dtype: Dtype = "float32") -> Value:
        """An initializer of `node`, named `<name>.<what>`."""
        return self.graph.constant(f"{self.name(node)}.{what}", array, dtype)

    def refuse(self, node: Node, code: str, what: str, remedy: str) -> None:
        """Remember a problem; `run` raises all of them at once."""
        self._refused.add(node)
        self.problems.append(Problem(code, what, remedy, place(node)))

    # ---- the walk
    def _work(self) -> list[Node]:
        """The nodes that compute data, in order."""
        live = live_nodes(self.gm)
        return [n for n in self.gm.graph.nodes if n in live and n.op in ("call_function", "call_module") and not self.is_constant(n)]

    def _emit(self, node: Node) -> None:
        if any(n not in self._values and not self.is_constant(n) for n in node.all_input_nodes):
            return  # an operand was refused: that problem is reported, this node can not be judged
        module = module_of(self.gm, node)
        if isinstance(module, Quantizer):
            made = self.target.quantize(self, node, module, self._values[node.all_input_nodes[0]])
        elif isinstance(module, IDENTITIES):
            made = self._values[node.all_input_nodes[0]]
        else:
            made = self.target.table[node.target](self, node)  # type: ignore[index]
        if node not in self._refused or isinstance(module, Quantizer):  # a refused quantizer still has a shape
            self._values[node] = made

    def _store(self, node: Node) -> Dtype:
        return "float64" if self.target.doubles and value_bits(self.formats, node) > FLOAT32_BITS else "float32"

    def _inputs(self) -> list[Value]:
        made = []
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = Value(self.graph.unique(input_name(node)), self.shape(node))
                made.append(self._values[node])
        return made

    def _free_output(self, wanted: str) -> str:
        taken = {v.name for v in self._values.values()}
        return self.graph.unique(f"{wanted}_out" if wanted in taken else wanted)

    def _returned(self, name: str, node: Node) -> Value:
        if self._outputs.get(node) == name:
            return self._values[node]
        source = self.parameter(node) if self.is_constant(node) else self._values[node]
        return self.graph.node("Identity", [source], Value(name, source.shape, source.dtype))

    def _refuse_unsupported(self) -> None:
        """Everything that is known before a single node is written: operators without emitter, values without exact meaning."""
        fixed_point = is_fixed_point(self.gm)
        for node in self._work():
            bits = work_bits(self.formats, node)
            known = isinstance(module_of(self.gm, node), (Quantizer, *IDENTITIES)) or node.target in self.target.table
            exact = self.formats.problems.get(node) or self.formats.raw.get(node) if fixed_point else None
            if exact is not None:
                self.problems.append(exact)
            elif not known:
                what = f"{self.target.name} has no operator for '{getattr(node.target, '__name__', node.target)}'"
                self.refuse(node, "PQ201", what, "use operators of the dialect, or keep this part outside of the compiled model")
            elif self._has_data_weight(node):
                self.refuse(node, "PQ202", "its weight is computed from data", "use torch.matmul for a product of two values")
            elif self.target.doubles and bits > FLOAT64_BITS:
                what = f"'{node.name}' needs {bits} bits to be exact, float64 has {FLOAT64_BITS}"
                self.refuse(node, "PQ303", what, "quantize its inputs to fewer bits")
        self._raise()

    def _has_data_weight(self, node: Node) -> bool:
        op = op_of(node)
        weights = [n for n in node.args[1:3] if isinstance(n, Node)]
        return op is not None and op.kind == "weighted" and not all(self.is_constant(n) for n in weights)

    def _raise(self) -> None:
        if self.problems:
            raise LoweringError(self.problems)


Emit = Callable[[Emission, Node], Value]


def numbers(argument: Any) -> list[int]:
    """A tuple of ints from a graph node's arguments."""
    return [int(n) for n in np.atleast_1d(np.asarray(argument))]
