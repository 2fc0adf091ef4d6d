"""A frozen graph as a QONNX file (Pappalardo et al. 2022): standard operators and `Quant` nodes, for any QONNX toolchain."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.lower.extras import require
from pquant_fx.lower.onnx.emission import Emission, Target
from pquant_fx.lower.onnx.graph import IR_VERSION, OPSET, Version, write_model
from pquant_fx.lower.onnx.ops import TABLE
from pquant_fx.lower.onnx.pools import mean_as_pool
from pquant_fx.lower.onnx.precision import float32_problems
from pquant_fx.lower.onnx.qonnx_quant import OWN_DOMAIN, QUANT_DOMAIN, data_quantizer, parameter

if TYPE_CHECKING:
    import onnx

__all__ = ["OWN_DOMAIN", "QUANT_DOMAIN", "float32_problems", "qonnx_emission", "to_qonnx"]


def to_qonnx(
    gm: GraphModule,
    path: str | os.PathLike[str] | None = None,
    *,
    strict: bool = False,
    batch: int = 1,
    formats: FormatMap | None = None,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> onnx.ModelProto:
    """Write the frozen graph `gm`; layout as in torch (N, C, H, W), batch fixed to `batch` samples, every shape known.

    formats: an analysis of `gm` made before, to save its cost. opset (13 to 23), ir_version (7 to 13): of the file; ConfigError
    (PQ407) for others.
    strict: only the standard domain and `qonnx.custom_op.general`; without it, quantizers that a `Quant` can not express
    exactly become `FixedPoint` nodes of the domain `pquant_fx.lower.qonnx_ops`, which qonnx imports by itself.
    Two exports are equal byte for byte. Raises LoweringError with all problems at once: PQ201 and PQ202 for operators,
    PQ205 for formats that are no scalar width, PQ207 for modes (strict), PQ303 for values beyond float32; OutputError (PQ505);
    ExtraMissingError (PQ503) without the package onnx.
    """
    return write_model(qonnx_emission(gm, batch, formats, strict, Version(opset, ir_version)).run(), path)


def qonnx_emission(
    gm: GraphModule, batch: int = 1, formats: FormatMap | None = None, strict: bool = False, version: Version | None = None
) -> Emission:
    """The export behind `to_qonnx`, not yet run."""
    require("onnx")
    table = TABLE | {torch.mean: mean_as_pool}
    quantize, hold = partial(data_quantizer, strict=strict), partial(parameter, strict=strict)
    return Emission(gm, Target("QONNX", table, quantize, hold, doubles=False), batch, formats, version)
