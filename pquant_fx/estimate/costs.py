"""What each operator costs in EBOPs (HGQ, Sun et al., arXiv 2405.00645): one function an operator.

`cost(read, node, *arguments)` gives a 0-d tensor, or None where the operator is wires only (a shift). b are total bits per
element of one sample, `read` answers for them; the formulas hold for the differentiable surrogate and for the exact count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from pquant_fx.estimate.bits import Uncountable, aligned, product_sum, total
from pquant_fx.estimate.reader import Reader
from pquant_fx.estimate.windows import conv_products, tap_counts, transposed_products
from pquant_fx.graph.values import is_power_of_two

__all__ = ["Cost", "is_shift"]

Cost: TypeAlias = Callable[..., Tensor | None]
Ns: TypeAlias = Sequence[int]
ADD = 0.65  # a bit of an adder against a bit of a multiplier
TABLE = 1e-4  # a bit stored in a table


def is_shift(value: Any) -> bool:
    """Whether a factor is a number +-2^n, or a learned power of two: multiplying by it moves the binary point."""
    if isinstance(value, Node):
        return is_power_of_two(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(math.frexp(value)[0]) in (0.0, 0.5)


# ---- sums of products
def linear(read: Reader, node: Node, x: Node, w: Node, b: Node | None) -> Tensor:
    """sum_{rows, o, j} b_x[j] b_w[o, j] + bias."""
    shape, bits, weight = read.shape(x), read.total(x), read.total(w)
    if bits.numel() == bits.shape[-1] == shape[-1] and weight.shape == read.shape(w):  # a format for each weight, none for each row of data
        products, rows = torch.dot(bits.flatten(), weight.sum(0)), math.prod(shape) // shape[-1]
        return _with_bias(read, node, products if rows == 1 else products * rows, b, -1)
    weight = aligned(weight, len(shape) + 1)
    return _with_bias(read, node, product_sum(bits.unsqueeze(-2), weight, (*shape[:-1], *read.shape(w))), b, -1)


def conv(read: Reader, node: Node, x: Node, w: Node, b: Node | None, stride: Ns, padding: Any, dilation: Ns, groups: int) -> Tensor:
    """sum conv(b_x, b_w) with the operator's own geometry + bias."""
    if isinstance(padding, str):
        raise Uncountable(node, f"padding '{padding}' is not a number", "give the padding as integers")
    shape, weight = read.shape(x), read.shape(w)
    counts = read.once(node, lambda: tap_counts(read.shape(node)[2:], shape[2:], weight[2:], stride, padding, dilation))
    geometry = (stride, padding, dilation, groups)
    return _with_bias(read, node, conv_products(read.total(x), read.total(w), counts, shape, weight, geometry), b, 1)


def conv_transpose(
    read: Reader, node: Node, x: Node, w: Node, b: Node | None, stride: Ns, padding: Ns, output_padding: Ns, groups: int, dilation: Ns
) -> Tensor:
    """The products of F.conv_transpose1d / 2d that land inside the result + bias."""
    shape, weight = read.shape(x), read.shape(w)
    counts = read.once(node, lambda: tap_counts(shape[2:], read.shape(node)[2:], weight[2:], stride, padding, dilation))
    geometry = (stride, padding, output_padding, groups, dilation)
    return _with_bias(read, node, transposed_products(read.total(x), read.total(w), counts, shape, weight, geometry), b, 1)


def _with_bias(read: Reader, node: Node, products: Tensor, bias: Node | None, axis: int) -> Tensor:
    """sum b_bias times the positions that it is added at, besides the products."""
    if bias is None:
        return products
    shape = read.shape(node)
    outputs = shape[axis]
    positions = math.prod(shape) // max(1, outputs)
    return torch.add(products, total(read.total(bias), (outputs,)), alpha=positions)


def matmul(read: Reader, node: Node, a: Node, b: Node) -> Tensor:
    """The product of the bit tensors with the same equation, summed."""
    left, right, first, second = read.total(a), read.total(b), read.shape(a), read.shape(b)
    if len(first) == 1:
        left, first = left.unsqueeze(0), (1, *first)
    if len(second) == 1:
        right, second = right.unsqueeze(-1), (*second, 1)
    left, right = left.unsqueeze(-1), right.unsqueeze(-3)
    rank = max(left.dim(), right.dim())
    batch = torch.broadcast_shapes(first[:-2], second[:-2])  # type: ignore[no-untyped-call]
    return product_sum(aligned(left, rank), aligned(right, rank), (*batch, *first[-2:], second[-1]))


# ---- arithmetic on elements
def add(read: Reader, node: Node, a: Any, b: Any) -> Tensor:
    """0.65 (sum b_0 + sum b_1 - sum min) = 0.65 sum max; a constant costs what a bias does: sum b_c."""
    constant = next((value for value in (b, a) if read.is_constant(value)), None)
    return ADD * extreme(read, node, a, b) if constant is None else _spread(read, node, constant)


def sub(read: Reader, node: Node, a: Any, b: Any) -> Tensor:
    """sum max(b_0, b_1); subtracting a constant is adding one."""
    return _spread(read, node, b) if read.is_constant(b) else extreme(read, node, a, b)


def extreme(read: Reader, node: Node, a: Any, b: Any) -> Tensor:
    """Maximum and minimum: sum b_0 + sum b_1 - sum min = sum max."""
    shape = read.shape(node)
    return total(torch.maximum(*(aligned(read.total(value), len(shape)) for value in (a, b))), shape)


def mul(read: Reader, node: Node, a: Any, b: Any) -> Tensor | None:
    """sum b_0 b_1, a constant factor by its own bits; a shift is free."""
    if is_shift(a) or is_shift(b):
        return None
    shape = read.shape(node)
    left, right = (aligned(read.total(value), len(shape)) for value in (a, b))
    return product_sum(left, right, shape)


def div(read: Reader, node: Node, a: Any, b: Any) -> None:
    """Division by a constant power of two is a shift; no other one is exact."""
    if not read.is_constant(b):
        raise Uncountable(node, "a division by data has no cost in EBOPs", "multiply by a table of reciprocals")


def neg(read: Reader, node: Node, x: Node) -> Tensor:
    """0 - x: sum b."""
    return total(read.total(x), read.shape(node))


def _spread(read: Reader, node: Node, value: Any) -> Tensor:
    """The bits of a value that is broadcast to the result."""
    shape = read.shape(node)
    return total(aligned(read.total(value), len(shape)), shape)


# ---- reductions
def reduce_sum(read: Reader, node: Node, x: Node, axes: Ns, keepdim: bool = False) -> Tensor:
    """0.65 (sum b - the least b of every reduced group)."""
    return ADD * amax(read, node, x, axes)


def amax(read: Reader, node: Node, x: Node, axes: Ns, keepdim: bool = False) -> Tensor:
    """The maximum of n slices: sum b - the least b of every reduced group."""
    shape, bits = read.shape(x), read.total(x)
    where = [a % len(shape) for a in axes]
    groups = [size for axis, size in enumerate(shape) if axis not in where]
    return total(bits, shape) - total(bits.amin(where), groups)


def pool(read: Reader, node: Node, x: Node, *geometry: Any) -> Tensor:
    """sum b_x of average and max pooling."""
    return total(read.total(x), read.shape(x))


# ---- activations
def relu6(read: Reader, node: Node, x: Node) -> Tensor:
    return hardtanh(read, node, x, 0, 6)


def hardtanh(read: Reader, node: Node, x: Node, low: float, high: float) -> Tensor:
    """A maximum and a minimum against constants; the maximum against 0 is a ReLU, which is free."""
    bits = read.bits(x)
    sums = [total(torch.maximum(bits.total if low else bits.magnitude, read.total(bound)), read.shape(x)) for bound in (low, high) if bound]
    return torch.stack(sums).sum()


def leaky_relu(read: Reader, node: Node, x: Node, slope: float = 0.01) -> Tensor | None:
    """sum b_x b_slope; a slope that is a power of two is a shift."""
    return None if is_shift(slope) else total(read.bits(x).magnitude * read.total(slope), read.shape(node))


def prelu(read: Reader, node: Node, x: Node, slopes: Node) -> Tensor:
    """sum b_x b_slope with one slope, or one a channel (axis 1)."""
    shape = read.shape(node)
    return product_sum(read.bits(x).magnitude, read.total(slopes).reshape(1, -1, *(1 for _ in shape[2:])), shape)


def table(read: Reader, node: Node, x: Node, *options: Any) -> Tensor:
    """1e-4 sum 2^b_in b_out: the contents of a table; b_out is what its quantizer stores."""
    behind = read.quantizer_behind(node)
    stored, shape = read.total(node if behind is None else behind), read.shape(node)
    if behind is not None and read.shape(behind) != shape:  # moved in between
        stored = stored.amax().reshape((1,) * len(shape))
    return TABLE * product_sum(torch.exp2(read.total(x)), stored, shape)
