"""ONNX domain `pquant_fx.lower.qonnx_double`: what has no double kernel in onnxruntime, and `Quant`, which qonnx ends in float32.

As `qonnx_ops`, this module is loaded by qonnx, never by pquant_fx itself. Sums of at most 53 bits are exact in any order.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from onnx import helper
from qonnx.custom_op.base import CustomOp
from qonnx.custom_op.general.intquant import IntQuant, int_quant
from torch.nn import functional as F

__all__ = ["AveragePool", "Conv", "ConvTranspose", "Quant", "Resize"]


class Quant(IntQuant):
    """qonnx's own arithmetic, without the float32 at its end."""

    def execute_node(self, context: dict[str, Any], graph: Any) -> None:
        given = [context[name] for name in self.onnx_node.input]
        modes = [self.get_nodeattr(name) for name in ("signed", "narrow", "rounding_mode")]
        context[self.onnx_node.output[0]] = np.asarray(int_quant(*given, *modes), dtype=np.float64)


class _Double(CustomOp):
    """An operator of ONNX 17 on (N, C, *spatial), with the attributes that our exporter writes."""

    functions: tuple[Any, Any]
    """For one and for two spatial axes."""

    def get_nodeattr_types(self) -> dict[str, tuple[str, bool, Any]]:
        return {}

    def make_shape_compatible_op(self, model: Any) -> Any:
        node = helper.make_node(self.onnx_node.op_type, list(self.onnx_node.input), list(self.onnx_node.output))
        node.attribute.extend(self.onnx_node.attribute)
        return node

    def infer_node_datatype(self, model: Any) -> None:
        from qonnx.core.datatype import DataType

        model.set_tensor_datatype(self.onnx_node.output[0], DataType["FLOAT32"])

    def execute_node(self, context: dict[str, Any], graph: Any) -> None:
        given = {a.name: helper.get_attribute_value(a) for a in self.onnx_node.attribute}
        inputs = [torch.from_numpy(context[name]) for name in self.onnx_node.input]
        function = self.functions[inputs[0].dim() - 3]
        context[self.onnx_node.output[0]] = self.compute(function, inputs, given).numpy()

    @abstractmethod
    def compute(self, function: Any, inputs: list[torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        """The node's result; given: its attributes."""

    def verify_node(self) -> list[str]:
        return []


class Conv(_Double):
    functions = (F.conv1d, F.conv2d)

    def compute(self, function: Any, inputs: list[torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        bias = inputs[2] if len(inputs) > 2 else None
        half = inputs[0].dim() - 2
        return function(inputs[0], inputs[1], bias, given["strides"], given["pads"][:half], given["dilations"], given["group"])


class ConvTranspose(_Double):
    functions = (F.conv_transpose1d, F.conv_transpose2d)

    def compute(self, function: Any, inputs: list[torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        bias = inputs[2] if len(inputs) > 2 else None
        half = inputs[0].dim() - 2
        more = given.get("output_padding", [0] * half)
        return function(inputs[0], inputs[1], bias, given["strides"], given["pads"][:half], more, given["group"], given["dilations"])


class AveragePool(_Double):
    functions = (F.avg_pool1d, F.avg_pool2d)

    def compute(self, function: Any, inputs: list[torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        half = inputs[0].dim() - 2
        whole, padded = bool(given.get("ceil_mode", 0)), bool(given.get("count_include_pad", 0))
        return function(inputs[0], given["kernel_shape"], given["strides"], given["pads"][:half], whole, padded)


class Resize(_Double):
    """Nearest by whole scales, the only kind that our exporter writes."""

    functions = (F.interpolate, F.interpolate)

    def compute(self, function: Any, inputs: list[torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
        x, _, scales = inputs
        return function(x, [int(n * s) for n, s in zip(x.shape[2:], scales[2:].tolist())], mode="nearest")
