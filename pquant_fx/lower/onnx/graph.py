"""A small builder of ONNX files: unique names, initializers, shapes of every tensor, and the same bytes every time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.files import write_atomically

if TYPE_CHECKING:
    import onnx

__all__ = ["IR_VERSION", "OPSET", "Dtype", "OnnxGraph", "Shape", "Value", "Version", "information", "write_model"]

IR_VERSION = 10
OPSET = 17
"""Read by onnxruntime 1.31, qonnx 1.0 and hls4ml 1.3; the last one in which ReduceMean takes its axes as attribute."""
OPSETS = (13, 23)
IR_VERSIONS = (7, 13)
"""Which versions a file may have: the first opset with ReduceSum as it is written, the last IR version that onnxruntime 1.31 reads."""


@dataclass(frozen=True)
class Version:
    """Opset of the standard operators and version of the file format. Raises ConfigError (PQ407) outside of what we write."""

    opset: int = OPSET
    ir: int = IR_VERSION

    def __post_init__(self) -> None:
        limits = (("opset", self.opset, OPSETS), ("ir_version", self.ir, IR_VERSIONS))
        found = [
            Problem("PQ407", f"{name}={value!r} can not be written", f"use a number from {low} to {high}")
            for name, value, (low, high) in limits
            if not isinstance(value, int) or not low <= value <= high
        ]
        if found:
            raise ConfigError(found)


Dtype = Literal["float32", "float64", "int64", "bool", "int8", "uint8", "int16", "uint16", "int32"]
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the file: name, shape (a symbolic batch is a string), element type."""

    name: str
    shape: Shape
    dtype: Dtype = "float32"


class OnnxGraph:
    """Collects nodes in order; `model` makes the file."""

    def __init__(self, version: Version | None = None) -> None:
        self.version = version or Version()
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._information: list[onnx.ValueInfoProto] = []
        self._taken: set[str] = set()
        self._domains: set[str] = set()

    def unique(self, wanted: str) -> str:
        """`wanted`, or `wanted_2`, `wanted_3`, ... when it is taken; it is taken from now on."""
        name, n = wanted, 1
        while name in self._taken:
            n += 1
            name = f"{wanted}_{n}"
        self._taken.add(name)
        return name

    def constant(self, wanted: str, array: npt.ArrayLike, dtype: Dtype = "float32") -> Value:
        """An initializer."""
        from onnx import numpy_helper

        data = np.ascontiguousarray(array, dtype=dtype).reshape(np.shape(array))
        value = Value(self.unique(wanted), data.shape, dtype)
        self._initializers.append(numpy_helper.from_array(data, value.name))
        self._information.append(information(value))
        return value

    def node(
        self,
        operator: str,
        inputs: Sequence[Value],
        output: Value,
        name: str | None = None,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> Value:
        """One node whose only output is `output`; its tensor name must come from `unique`."""
        from onnx import helper

        named = [v.name for v in inputs]
        made = helper.make_node(operator, named, [output.name], name or output.name, domain=domain, **(attributes or {}))
        self._nodes.append(made)
        self._information.append(information(output))
        self._domains.add(domain)
        return output

    def model(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.ModelProto:
        """The checked file. Its bytes depend on the calls made and on nothing else."""
        from onnx import checker, helper

        ends = {v.name for v in (*inputs, *outputs)}
        graph = helper.make_graph(
            self._nodes,
            "pquant_fx",
            [information(v) for v in inputs],
            [information(v) for v in outputs],
            self._initializers,
            value_info=[i for i in self._information if i.name not in ends],
        )
        opsets = [helper.make_opsetid("", self.version.opset), *(helper.make_opsetid(d, 1) for d in sorted(self._domains - {""}))]
        model = helper.make_model(graph, producer_name="pquant_fx", ir_version=self.version.ir, opset_imports=opsets)
        checker.check_model(model)
        return model


def write_model(model: onnx.ModelProto, path: str | os.PathLike[str] | None) -> onnx.ModelProto:
    """Write the file as a whole or not at all, unless `path` is None. Raises OutputError (PQ505)."""
    if path is not None:
        write_atomically(path, model.SerializeToString(deterministic=True))
    return model


def information(value: Value) -> onnx.ValueInfoProto:
    """Name, element type and shape as the file states them."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return helper.make_tensor_value_info(value.name, kind, list(value.shape))
