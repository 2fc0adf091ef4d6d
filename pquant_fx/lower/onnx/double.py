"""A file with double tensors instead of float ones: the same nodes on the same real numbers, exact up to 53 bits instead of 24.

A QONNX file means arithmetic on real numbers; that a runtime rounds to float32 is no part of it. Operators that the runtime
has no double kernel for go to the domain `pquant_fx.lower.qonnx_double`, which qonnx imports by itself.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from pquant_fx.lower.onnx.qonnx_quant import QUANT_DOMAIN

if TYPE_CHECKING:
    import onnx

__all__ = ["DOUBLE_DOMAIN", "in_double"]

DOUBLE_DOMAIN = "pquant_fx.lower.qonnx_double"
_MOVED = {("", "AveragePool"), ("", "Conv"), ("", "ConvTranspose"), ("", "Resize"), (QUANT_DOMAIN, "Quant")}


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` for qonnx's execution in float64."""
    from onnx import TensorProto, helper, numpy_helper

    made = copy.deepcopy(model)
    graph = made.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float64"), tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        kind.elem_type = TensorProto.DOUBLE if kind.elem_type == TensorProto.FLOAT else kind.elem_type
    for node in graph.node:
        if (node.domain, node.op_type) in _MOVED:
            node.domain = DOUBLE_DOMAIN
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    made.opset_import.append(helper.make_opsetid(DOUBLE_DOMAIN, 1))
    return made
