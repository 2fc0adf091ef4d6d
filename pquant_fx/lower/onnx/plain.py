"""A frozen graph as a file of standard ONNX operators only: quantizers decomposed, exact in onnxruntime.

Nodes whose exact accumulator bound stays within float32's 24 bits are computed in float32, the others in float64, with a
Cast at the border; values leave as float32 wherever they fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.means import scaled_pool
from pquant_fx.lower.extras import require
from pquant_fx.lower.onnx.emission import Emission, Layout, Target
from pquant_fx.lower.onnx.graph import IR_VERSION, OPSET, Value, Version, write_model
from pquant_fx.lower.onnx.names import parameter_name
from pquant_fx.lower.onnx.ops import TABLE
from pquant_fx.lower.onnx.pools import pool_behind_pad
from pquant_fx.lower.onnx.quant import data_quantizer

if TYPE_CHECKING:
    import onnx

__all__ = ["PLAIN_TABLE", "plain_emission", "to_onnx"]

_POOLS: tuple[Callable[..., Any], ...] = (F.avg_pool1d, F.avg_pool2d, F.max_pool1d, F.max_pool2d, scaled_pool)
PLAIN_TABLE = TABLE | dict.fromkeys(_POOLS, pool_behind_pad)


def to_onnx(
    gm: GraphModule,
    path: str | os.PathLike[str] | None = None,
    *,
    batch: int | None = None,
    formats: FormatMap | None = None,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
) -> onnx.ModelProto:
    """Write the frozen graph `gm` with a symbolic batch `N`, or a fixed one; layout as in torch.

    formats: an analysis of `gm` made before, to save its cost. opset (13 to 23), ir_version (7 to 13): of the file; ConfigError
    (PQ407) for others.
    All rounding and overflow modes, formats per element. Two exports are equal byte for byte. Raises LoweringError with
    all problems at once: PQ201 and PQ202 for operators, PQ303 beyond float64; OutputError (PQ505);
    ExtraMissingError (PQ503) without the package onnx.
    """
    return write_model(plain_emission(gm, batch, formats, Version(opset, ir_version)).run(), path)


def plain_emission(gm: GraphModule, batch: int | None = None, formats: FormatMap | None = None, version: Version | None = None) -> Emission:
    """The export behind `to_onnx`, not yet run."""
    require("onnx")
    return Emission(gm, Target("plain ONNX", PLAIN_TABLE, data_quantizer, _parameter, doubles=True), batch, formats, version)


def _parameter(e: Emission, node: Node, layout: Layout) -> Value:
    """The quantized values themselves; float64 where float32 can not hold them."""
    values = e.formats.constants[node].detach().cpu().double().numpy()
    exact = bool((values.astype(np.float32) == values).all())
    suffix, values = (".T", values.T) if layout == "transposed" else ("", values)
    return e.graph.constant(f"{parameter_name(node)}{suffix}", values, "float32" if exact else "float64")
