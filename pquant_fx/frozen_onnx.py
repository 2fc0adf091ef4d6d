"""What a frozen model becomes as a file: QONNX for other toolchains, plain ONNX and QCDQ for runtimes, QONNX as FINN reads it."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch.fx import GraphModule

from pquant_fx.graph.analysis import FormatMap

__all__ = ["OnnxTargets"]

Path = str | PathLike[str] | None


class OnnxTargets:
    """The ONNX side of a FrozenModel. Each file is returned as onnx.ModelProto, and written when `path` is given.

    opset (13 to 23) and ir_version (7 to 13) are those of the file; two exports are equal byte for byte. All raise LoweringError with
    every problem at once, ConfigError (PQ407) for a version, OutputError (PQ505), ExtraMissingError (PQ503) without the package onnx.
    """

    graph_module: GraphModule
    formats: FormatMap

    def to_qonnx(self, path: Path = None, strict: bool = False, *, opset: int = 17, ir_version: int = 10) -> Any:
        """The interchange file: standard operators and `Quant` nodes.

        strict=True raises LoweringError (PQ205, PQ207) instead of using operators of our own domain.
        """
        from pquant_fx.lower.onnx.qonnx import to_qonnx

        return to_qonnx(self.graph_module, path, strict=strict, formats=self.formats, opset=opset, ir_version=ir_version)

    def to_onnx(self, path: Path = None, *, opset: int = 17, ir_version: int = 10) -> Any:
        """Plain ONNX: standard operators only, any batch size, the same bits in onnxruntime."""
        from pquant_fx.lower.onnx.plain import to_onnx

        return to_onnx(self.graph_module, path, formats=self.formats, opset=opset, ir_version=ir_version)

    def to_qcdq(self, path: Path = None, *, opset: int = 17, ir_version: int = 10) -> Any:
        """QuantizeLinear and DequantizeLinear for plain runtimes, any batch size: the same bits, or LoweringError (PQ205, PQ207)."""
        from pquant_fx.lower.onnx.qcdq import to_qcdq

        return to_qcdq(self.graph_module, path, formats=self.formats, opset=opset, ir_version=ir_version)

    def to_finn(self, path: Path = None, *, opset: int = 13, ir_version: int = 8) -> Any:
        """QONNX in the form that FINN's conversion and streamlining take, exact by FINN's reading and by QONNX's, or LoweringError.

        FINN turns quantizers into thresholds that round ties up, whatever their rounding mode: quantizers have to round that way
        (RND), and the file is written so that no tie occurs inside the network. Train under `joins: {policy: shared}`.
        """
        from pquant_fx.lower.onnx.finn import to_finn

        return to_finn(self.graph_module, path, formats=self.formats, opset=opset, ir_version=ir_version)
