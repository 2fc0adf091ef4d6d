"""QONNX as FINN (Umuroglu et al. 2017; Blott et al. 2018) takes it: every Quant becomes thresholds there, x >= (n + 1/2) scale.

Thresholds round ties up whatever `rounding_mode` says, while a QONNX runtime rounds them to even. Both readings agree where no
tie can occur, so half an lsb of the sum is added in front of the activation:

    relu(u) -> Quantizer RND     ->     Add(u, lsb(u)/2) -> Relu -> Quant ROUND       (0 stays below the first threshold)
    u -> Quantizer RND           ->     Add(u, lsb(u)/2) -> Quant ROUND               (an unsigned one is a ReLU as well: Relu in between)
    relu(u) -> signed Quantizer  ->     Relu -> unsigned Quant -> signed Quant        FINN wants both, the second changes nothing
    conv(x, w, b)                ->     Conv(x, Quant(w)) -> Add(b)                   FINN moves sums into the thresholds

Right behind a real input there is no lsb: a value right on a tie is rounded up by FINN, as by us, and to even by a QONNX runtime.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.errors import LoweringError
from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.lower.extras import require
from pquant_fx.lower.onnx.emission import Emission, Layout, Target, numbers
from pquant_fx.lower.onnx.finn_rules import finn_problems, pooled, quantizers_of, read_as_it_is
from pquant_fx.lower.onnx.formats import QuantizerFormat, format_of
from pquant_fx.lower.onnx.graph import Value, Version, write_model
from pquant_fx.lower.onnx.names import parameter_name
from pquant_fx.lower.onnx.ops import TABLE
from pquant_fx.lower.onnx.qonnx_quant import QUANT_DOMAIN, parameter, quant_attributes, quant_inputs

if TYPE_CHECKING:
    import onnx

__all__ = ["to_finn"]


def to_finn(
    gm: GraphModule,
    path: str | os.PathLike[str] | None = None,
    *,
    batch: int = 1,
    formats: FormatMap | None = None,
    opset: int = 13,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Write the frozen graph `gm` for FINN. Raises LoweringError with everything that `finn_problems` finds, and like `to_qonnx`."""
    require("onnx")
    known = analyse(gm) if formats is None else formats
    problems = finn_problems(gm, known)
    if problems:
        raise LoweringError(problems)
    pools = dict.fromkeys((F.max_pool1d, F.max_pool2d), _max_pool)
    table = TABLE | pools | {F.relu: _relu, F.conv1d: _conv, F.conv2d: _conv, torch.mean: _mean, F.avg_pool1d: _mean, F.avg_pool2d: _mean}
    target = Target("FINN", table, _quantize, partial(_hold), doubles=False)
    return write_model(Emission(gm, target, batch, known, Version(opset, ir_version)).run(), path)


def _offset(e: Emission, source: Node, quantizer: Quantizer) -> float:
    """Half an lsb of what is quantized, 0 where the quantizer drops nothing of it."""
    interval = e.formats.intervals.get(source)
    f = int(format_of(quantizer).f.max())
    return 0.0 if interval is None or interval.f <= f else 2.0 ** (-interval.f - 1)


def _relu(e: Emission, node: Node) -> Value:
    """The offset of half an lsb serves each quantizer behind it that rounds, and no other minds."""
    x = e.data(node, node.args[0])
    if read_as_it_is(e.gm, node):
        made = e.formats[node].format()
        k, i, f = (np.asarray(float(n)) for n in (0, made.i, made.f))
        spec = QuantizerFormat(k, i, f, "RND_CONV", "SAT")
        inputs = quant_inputs(e, f"{e.name(node)}.format", spec, e.step(node, "relu", "Relu", [x], e.shape(node)))
        return e.result(node, "Quant", inputs, domain=QUANT_DOMAIN, **quant_attributes(spec, "ROUND"))
    offset = max((_offset(e, node, q) for q in quantizers_of(e.gm, node)), default=0.0)
    if offset:
        x = e.step(node, "half", "Add", [x, e.constant(node, "half", offset)], e.shape(node))
    return e.result(node, "Relu", [x])


def _max_pool(e: Emission, node: Node) -> Value:
    """relu -> pool -> Quantizer becomes relu -> Quant -> pool: FINN takes a ReLU and its Quant together."""
    reader = pooled(e.gm, node)
    quantizer = module_of(e.gm, reader) if reader is not None else None
    x = e.data(node, node.args[0])
    if reader is not None and isinstance(quantizer, Quantizer):
        x = _quant(e, reader, quantizer, x, node.all_input_nodes[0])
    kernel, stride, padding = (numbers(a) for a in node.args[1:4])
    return e.result(node, "MaxPool", [x], kernel_shape=kernel, strides=stride, pads=padding * 2)


def _quantize(e: Emission, node: Node, quantizer: Quantizer, x: Value) -> Value:
    source = node.all_input_nodes[0]
    return x if pooled(e.gm, source) is node else _quant(e, node, quantizer, x, source)


def _quant(e: Emission, node: Node, quantizer: Quantizer, x: Value, source: Node) -> Value:
    spec = replace(format_of(quantizer), rounding="RND_CONV")
    if spec.overflow not in ("SAT", "SAT_SYM"):
        spec = replace(spec, overflow="SAT")
    name, behind_relu = e.name(node), source.target is F.relu and not read_as_it_is(e.gm, source)
    offset = 0.0 if behind_relu else _offset(e, source, quantizer)
    if offset:
        x = e.step(node, "half", "Add", [x, e.constant(node, "half", offset)], x.shape)
    if spec.k.max() == 0 and not behind_relu:
        x = e.step(node, "relu", "Relu", [x], x.shape)
    elif spec.k.max() == 1 and behind_relu:
        unsigned = replace(spec, k=np.zeros_like(spec.k), overflow="SAT")
        inputs = quant_inputs(e, f"{name}/unsigned", unsigned, x)
        x = e.step(node, "unsigned", "Quant", inputs, x.shape, QUANT_DOMAIN, **quant_attributes(unsigned, "ROUND"))
    inputs = quant_inputs(e, name, spec, x)
    return e.graph.node("Quant", inputs, Value(e.graph.unique(name), x.shape), None, QUANT_DOMAIN, quant_attributes(spec, "ROUND"))


def _hold(e: Emission, node: Node, layout: Layout) -> Value:
    """Weights through their Quant, biases and other constants as they are."""
    values = e.formats.constants[node].detach().cpu().double().numpy()
    return parameter(e, node, layout, strict=True) if values.ndim > 1 else e.graph.constant(parameter_name(node), values)


def _conv(e: Emission, node: Node) -> Value:
    x, weight, bias, stride, padding, dilation, groups = node.args
    inputs = [e.data(node, x), e.data(node, weight)]
    given: dict[str, Any] = {
        "dilations": numbers(dilation),
        "group": int(groups),  # type: ignore[arg-type]
        "kernel_shape": [int(n) for n in inputs[1].shape[2:]],
        "pads": numbers(padding) * 2,
        "strides": numbers(stride),
    }
    if bias is None:
        return e.result(node, "Conv", inputs, **given)
    product = e.step(node, "conv", "Conv", inputs, e.shape(node), **given)
    values = e.formats.constants[bias].detach().cpu().double().numpy()  # type: ignore[index]
    column = e.graph.constant(parameter_name(bias), values.reshape(1, -1, *(1 for _ in inputs[1].shape[2:])))  # type: ignore[arg-type]
    return e.result(node, "Add", [product, column])


def _mean(e: Emission, node: Node) -> Value:
    x = e.data(node, node.args[0])
    if node.target is not torch.mean or node.args[2]:
        return e.result(node, "GlobalAveragePool", [x])
    pooled = e.step(node, "mean", "GlobalAveragePool", [x], (*x.shape[:2], *(1 for _ in x.shape[2:])))
    return e.result(node, "Reshape", [pooled, e.constant(node, "shape", [-1, x.shape[1]], "int64")])
