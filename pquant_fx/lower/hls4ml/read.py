"""QONNX file -> Net: the nodes put in order, constants folded, every node that can not be read named at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pquant_fx.errors import LoweringError, Place, Problem
from pquant_fx.lower.fixed_point_numpy import quantize_array
from pquant_fx.lower.hls4ml.net import Array, Input, Ints, Net, Op, Shape, refusal

if TYPE_CHECKING:
    import onnx

__all__ = ["Node", "Reader", "domain_of", "fold", "load", "ordered", "read"]

Constant = Any
"""A numpy array of any element type."""


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX node as its reader sees it. `shapes` holds data tensors, `constants` everything known beforehand."""

    proto: onnx.NodeProto
    name: str
    shapes: Mapping[str, Shape]
    constants: Mapping[str, Constant]

    @property
    def inputs(self) -> list[str]:
        return list(self.proto.input)

    @property
    def output(self) -> str:
        return str(self.proto.output[0])

    def attribute(self, name: str, default: Any = None) -> Any:
        from onnx import helper

        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def has(self, position: int) -> bool:
        return len(self.proto.input) > position and self.proto.input[position] != ""

    def constant(self, position: int, what: str) -> Constant:
        """The constant at an input; raises LoweringError (PQ202) when it is computed by the net."""
        if self.inputs[position] not in self.constants:
            raise self.refuse("PQ202", f"{self.proto.op_type}: {what} is not a constant", "make it a constant of the file")
        return self.constants[self.inputs[position]]

    def reals(self, position: int, what: str) -> Array:
        """A constant as float64; NaN and infinities are refused (PQ305)."""
        value = np.asarray(self.constant(position, what), dtype=np.float64)
        if not np.isfinite(value).all():
            raise self.refuse("PQ305", f"{self.proto.op_type}: {what} holds NaN or infinity", "train or load finite weights")
        return value

    def sample(self, position: int, what: str) -> Array:
        """A constant operand of an element-by-element operation, without its batch axis."""
        value, rank = self.reals(position, what), len(self.shape(0 if position else 1))
        if value.ndim == rank + 1 and value.shape[0] == 1:
            value = value[0]
        if value.ndim > rank:
            raise self.refuse("PQ202", f"{self.proto.op_type}: {what} has shape {value.shape}, one axis too many", "drop its batch axis")
        return value

    def integers(self, position: int, what: str) -> Ints:
        return np.asarray(self.constant(position, what), dtype=np.int64)

    def is_constant(self, position: int) -> bool:
        return self.inputs[position] in self.constants

    def shape(self, position: int) -> Shape:
        return self.shapes[self.inputs[position]]

    def refuse(self, code: str, what: str, remedy: str) -> LoweringError:
        return refusal(code, what, remedy, self.name)


Reader = Callable[[Node], list[Op]]


def load(model: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """The file's model. Raises LoweringError (PQ508) when it is missing, damaged or empty."""
    import onnx

    if isinstance(model, onnx.ModelProto):
        proto = model
    else:
        try:
            proto = onnx.load(os.fspath(model))
        except Exception as error:  # protobuf, the file system and onnx each raise their own
            raise LoweringError(Problem("PQ508", f"'{model}' can not be read as ONNX: {error}", "write it again with to_qonnx")) from error
    if not proto.graph.node or not proto.graph.output:
        raise LoweringError(Problem("PQ508", "the model has no nodes or no outputs", "write it again with to_qonnx"))
    return proto


def read(model: onnx.ModelProto | str | os.PathLike[str]) -> tuple[Net, list[Problem]]:
    """(net, problems). Nodes behind a problem are still looked at for operators that nobody knows.

    Raises LoweringError (PQ508) when the graph itself is broken: unreadable, cyclic, a tensor that nobody makes.
    """
    from onnx import numpy_helper

    from pquant_fx.lower.hls4ml.nodes import READERS

    graph = load(model).graph
    constants: dict[str, Constant] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    ops, problems = _inputs(graph, constants)
    shapes: dict[str, Shape] = {op.output: op.shape for op in ops}
    pinned: list[str] = []
    for proto in ordered(graph, {*constants, *(i.name for i in graph.input)}):
        node = Node(proto, proto.name or proto.output[0], shapes, constants)
        try:
            if all(name in constants for name in node.inputs if name):
                constants.update(fold(node))
                continue
            reader = READERS.get((domain_of(proto.domain), proto.op_type))
            if reader is None:
                raise node.refuse("PQ201", f"hls4ml has no exact layer for {proto.domain or 'ai.onnx'}::{proto.op_type}", _REMEDY)
            if any(name and name not in constants and name not in shapes for name in node.inputs):
                continue
            made = reader(node)
        except LoweringError as error:
            problems += error.problems
            pinned += [name for name in node.inputs if name in shapes]
            continue
        ops += made
        shapes.update({op.output: op.shape for op in made})
    outputs = tuple((o.name, o.name) for o in graph.output)
    return Net(tuple(ops), outputs, tuple(pinned)), problems + _constant_outputs(graph, constants)


_REMEDY = "write it with linear, convolution, ReLU, add, multiply, max, min, clip, concat, pooling, pad, slice, reshape or permute"
_QUANTIZER_DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")


def domain_of(name: str) -> str:
    """`qonnx` for the domains that a `Quant` is known under, the empty name for standard operators."""
    return "qonnx" if name in _QUANTIZER_DOMAINS else {"ai.onnx": ""}.get(name, name)


def _inputs(graph: onnx.GraphProto, constants: Mapping[str, Constant]) -> tuple[list[Op], list[Problem]]:
    ops: list[Op] = []
    problems: list[Problem] = []
    for value in graph.input:
        if value.name in constants:
            continue
        dimensions = value.type.tensor_type.shape.dim
        shape = tuple(int(d.dim_value) for d in dimensions[1:])
        if not 1 <= len(shape) <= 3 or min(shape) < 1:
            what = f"input '{value.name}' has the shape {shape} without batch; hls4ml wants one to three static dimensions"
            problems.append(Problem("PQ202", what, "export with static shapes", Place(node=value.name)))
            continue
        ops.append(Input(name=value.name, inputs=(), output=value.name, shape=shape))
    return ops, problems


def _constant_outputs(graph: onnx.GraphProto, constants: Mapping[str, Constant]) -> list[Problem]:
    """A part of the net that depends on no input is no circuit."""
    found = [o.name for o in graph.output if o.name in constants]
    return [Problem("PQ202", f"output '{name}' is a constant", "leave it out of the model's outputs", Place(node=name)) for name in found]


def ordered(graph: onnx.GraphProto, known: set[str]) -> list[onnx.NodeProto]:
    """The nodes, each after those it reads. Raises LoweringError (PQ508) naming every node in a cycle or without a source."""
    makers: dict[str, str] = {}
    for node in graph.node:
        for output in filter(None, node.output):
            if output in makers or output in known:
                raise refusal("PQ508", f"tensor '{output}' is made twice", "write the file again", node.name or output)
            makers[output] = node.name or output
    done, waiting = set(known), list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        later: list[onnx.NodeProto] = []
        for node in waiting:
            if all(name in done for name in node.input if name):
                done.update(node.output)
                ordered.append(node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise LoweringError([_unreachable(node, done, makers) for node in waiting])
        waiting = later
    for output in graph.output:
        if output.name not in done:
            raise refusal("PQ508", f"output '{output.name}' is made by no node", "write the file again", output.name)
    return ordered


def _unreachable(node: onnx.NodeProto, done: set[str], makers: Mapping[str, str]) -> Problem:
    missing = [name for name in node.input if name and name not in done]
    nobody = [name for name in missing if name not in makers]
    what = f"reads '{nobody[0]}', which nothing makes" if nobody else f"waits for '{missing[0]}', which waits for it: a cycle"
    return Problem("PQ508", what, "write the file again", Place(node=node.name or node.output[0]))


def fold(node: Node) -> dict[str, Constant]:
    """The outputs of a node that reads constants only."""
    if domain_of(node.proto.domain) == "qonnx" or node.proto.op_type == "FixedPoint":
        from pquant_fx.lower.hls4ml.nodes import quantizer

        q = quantizer(node, None)
        return {node.output: quantize_array(node.reals(0, "value"), q.k, q.i, q.f, q.rounding, q.overflow)}
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    values = {name: node.constants[name] for name in node.inputs if name}
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in values.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.proto.output if name]
    try:
        model = helper.make_model(helper.make_graph([node.proto], "constant", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)])
        results = ReferenceEvaluator(model).run(None, values)
    except Exception as error:  # whatever a foreign node makes the reference evaluator raise
        raise node.refuse("PQ202", f"the constant {node.proto.op_type} can not be computed: {error}", "fold constants first") from error
    return dict(zip([name for name in node.proto.output if name], results, strict=True))
