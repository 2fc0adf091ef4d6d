"""Which lsb every value of a graph has, as fraction bits f: what a bias has to be rounded to.

    quantizer: its f          grid ops, relu, add, sub, maximum: the largest f of the operands
    weighted, mul, matmul, prelu: f_a + f_b          average over P = 2^m values: f + m

A value without a finite lsb (an unquantized input, an average over 3) has None.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import frexp, prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.graph.dialect import IDENTITIES, Op, Quantizer, module_of, op_of
from pquant_fx.graph.info import info
from pquant_fx.quantize.fixed_point import EXPONENT_LIMIT
from pquant_fx.quantize.quantizers import AccumulatorQuantizer

__all__ = ["bias_fractions", "fraction_bits"]

_ALIGNED = ("add", "sub", "maximum", "minimum", "neg", "sum", "relu")
_PRODUCTS = ("mul", "matmul")
_MOST = 60  # constants with more fraction bits (0.1 has 55) count as real numbers
_FALLBACK_WIDTH = 16
Bits = dict[Node, float | None]


def fraction_bits(gm: GraphModule, values: Mapping[str, Tensor]) -> Bits:
    """f of every node, the largest over channels; `values`: by module path, what each value-following quantizer quantized.

    A bias on its way to an accumulator adds no bits of its own: -inf.
    """
    found: Bits = {}
    for node in gm.graph.nodes:
        found[node] = _of(gm, node, found, values)
    return found


def bias_fractions(gm: GraphModule, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """f for each AccumulatorQuantizer, by module path: f_w + f_x of the layer (one entry an output channel), or the f of the
    value it is added to; of several consumers the finest.

    Where the data operand has no lsb, f_w plus the weight's width stands in for it; where nothing is known, the bias gets 16 bits.
    """
    bits = fraction_bits(gm, values)
    found: dict[str, Tensor] = {}
    for node in gm.graph.nodes:
        op = op_of(node)
        for operand in node.all_input_nodes if op is not None else ():
            if op is None or not isinstance(module_of(gm, operand), AccumulatorQuantizer):
                continue
            path = str(operand.target)
            if path not in values:
                continue
            wanted = _wanted(gm, node, op, operand, bits, values).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
            found[path] = torch.maximum(found[path], wanted) if path in found else wanted
    return found


def _wanted(gm: GraphModule, node: Node, op: Op, operand: Node, bits: Bits, values: Mapping[str, Tensor]) -> Tensor:
    bias = values[str(operand.target)]
    x, other = node.args[0], node.args[1]
    if op.kind == "weighted" and isinstance(x, Node) and isinstance(other, Node):
        weight = _per_channel(gm, other, op, len(bias), bits, values)
        if weight is not None:
            data = bits[x]
            return weight + (data if data is not None else float(getattr(module_of(gm, other), "width", _FALLBACK_WIDTH)))
    elif op.name in ("add", "sub", "maximum", "minimum"):
        data = _operand(other if x is operand else x, bits)
        if data is not None and data > -torch.inf:
            return torch.tensor(data)
    largest = float(bias.detach().abs().max()) if bias.numel() else 0.0
    return torch.tensor(float(_FALLBACK_WIDTH - 1 - frexp(largest)[1]))


def _per_channel(gm: GraphModule, weight: Node, op: Op, channels: int, bits: Bits, values: Mapping[str, Tensor]) -> Tensor | None:
    """Fraction bits of each output channel of a weight."""
    f = _format_f(gm, weight, values)
    if f is None:
        common = bits[weight]
        return None if common is None or common == -torch.inf else torch.tensor(common)
    if f.dim() > op.channels and channels % f.shape[op.channels] == 0:
        own = f.movedim(op.channels, 0).flatten(1).amax(1) if f.dim() > 1 else f
        return own.repeat(channels // len(own)).float().cpu()  # the groups of a transposed convolution share their formats
    return f.amax().float().cpu()


def _of(gm: GraphModule, node: Node, found: Bits, values: Mapping[str, Tensor]) -> float | None:
    module = module_of(gm, node)
    if isinstance(module, AccumulatorQuantizer):
        return -torch.inf
    if isinstance(module, Quantizer):
        f = _format_f(gm, node, values)
        return None if f is None else float(f.max())
    if isinstance(module, IDENTITIES):
        return _operand(node.args[0], found)
    op = op_of(node)
    return None if op is None else _result(node, op, found)


def _result(node: Node, op: Op, found: Bits) -> float | None:
    if op.kind == "weighted":
        x, weight, bias = (_operand(a, found) for a in node.args[:3])
        product = _sum(x, weight)
        return _most(product, -torch.inf if node.args[2] is None else bias)
    if op.name in _ALIGNED or op.kind == "grid":
        operands = node.args[0] if op.data < 0 else node.args[: op.data]
        assert isinstance(operands, tuple | list)
        return _most(*(_operand(a, found) for a in operands))
    if op.name in _PRODUCTS:
        return _sum(_operand(node.args[0], found), _operand(node.args[1], found))
    if op.name in ("avg_pool1d", "avg_pool2d", "mean"):
        return _sum(_operand(node.args[0], found), _halvings(_averaged(node, op)))
    if op.kind == "embedding":
        return _operand(node.args[1], found)
    if op.name in ("scaled_pool", "scaled_sum"):
        return _sum(_operand(node.args[0], found), _operand(node.args[-1], found))
    if op.name == "relu6":
        return _most(_operand(node.args[0], found), -1.0)
    if op.name == "hardtanh":
        return _most(*(_operand(a, found) for a in node.args[:3]))
    if op.name in ("leaky_relu", "prelu"):
        slope = _operand(node.args[1], found)
        return _sum(_operand(node.args[0], found), None if slope is None else max(slope, 0.0))
    return None


def _averaged(node: Node, op: Op) -> int | None:
    """Over how many values an average goes."""
    if op.name != "mean":
        kernel: Any = node.args[1]
        return prod(kernel)
    source = node.args[0]
    shape = info(source).shape if isinstance(source, Node) else None
    axes: Any = node.args[1]
    return None if shape is None else prod(shape[a] for a in axes)


def _halvings(count: int | None) -> float | None:
    return float(count.bit_length() - 1) if count and count & (count - 1) == 0 else None


def _operand(value: Any, found: Bits) -> float | None:
    if isinstance(value, Node):
        return found[value]
    if not isinstance(value, int | float):
        return None
    bits = Fraction(value).denominator.bit_length() - 1
    return float(bits) if bits <= _MOST else None


def _format_f(gm: GraphModule, node: Node, values: Mapping[str, Tensor]) -> Tensor | None:
    module = module_of(gm, node)
    if not isinstance(module, Quantizer) or isinstance(module, AccumulatorQuantizer) or not module.calibrated:
        return None
    return module.kif(values.get(str(node.target)))[2].detach()


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _most(*bits: float | None) -> float | None:
    known = [b for b in bits if b is not None]
    return max(known) if len(known) == len(bits) and known else None
