"""ONNX domain `pquant_fx.lower.qonnx_ops`: what a standard `Quant` node can not say. qonnx imports a domain as a module
and looks its operators up in `__all__`, so a file with this domain executes without any registration.

This module imports qonnx: it is loaded by qonnx, never by pquant_fx itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from qonnx.custom_op.base import CustomOp

from pquant_fx.lower.fixed_point_numpy import quantize_array

__all__ = ["FixedPoint"]


class FixedPoint(CustomOp):
    """`FixedPoint(x, k, i, f)` with attributes rounding and overflow: x on the fixed-point grid (k, i, f).

    k, i, f: tensors that broadcast to x; every rounding and overflow mode of ours; NaN becomes NaN.
    """

    def get_nodeattr_types(self) -> dict[str, tuple[str, bool, str]]:
        return {"rounding": ("s", True, "RND"), "overflow": ("s", True, "SAT")}

    def make_shape_compatible_op(self, model: Any) -> Any:
        return helper.make_node("Identity", [self.onnx_node.input[0]], [self.onnx_node.output[0]])

    def infer_node_datatype(self, model: Any) -> None:
        from qonnx.core.datatype import DataType

        model.set_tensor_datatype(self.onnx_node.output[0], DataType["FLOAT32"])

    def execute_node(self, context: dict[str, Any], graph: Any) -> None:
        x, k, i, f = (context[name] for name in self.onnx_node.input)
        rounding, overflow = str(self.get_nodeattr("rounding")), str(self.get_nodeattr("overflow"))
        context[self.onnx_node.output[0]] = np.asarray(quantize_array(x, k, i, f, rounding, overflow), dtype=x.dtype)

    def verify_node(self) -> list[str]:
        return []
