"""Transposed convolutions as ordinary ones: steps of s give every output one of s smaller kernels (sub-pixel convolution).

    y[s q + phase] = sum_d w[s d + r] x[q + d]      r the remainder that belongs to the phase

One convolution computes all phases as channels of a small image, which are then put side by side (Shi et al. 2016): no product
with an inserted zero is made. With steps of one it is the convolution with the turned kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from pquant_fx.graph.interval_arrays import turned
from pquant_fx.lower.hls4ml.net import Array, Conv, Copy, Ints, Op, Shape, View
from pquant_fx.lower.hls4ml.read import Node, Reader
from pquant_fx.lower.hls4ml.windows import dilated, ungrouped, window

__all__ = ["TRANSPOSED_READERS"]


def _conv_transpose(node: Node) -> list[Op]:
    weight, shape, group = node.reals(1, "weight"), node.shape(0), int(node.attribute("group", 1))
    half = len(shape) - 1
    strides, pads = window(node, half)
    if half not in (1, 2) or weight.ndim != half + 2 or weight.shape[0] != shape[0]:
        what = f"ConvTranspose of {shape} with a weight of shape {weight.shape}"
        raise node.refuse("PQ202", what, "use 1-d or 2-d transposed convolutions")
    weight = dilated(ungrouped(turned(weight, group), group), node.attribute("dilations", [1] * half))
    more = [int(p) for p in node.attribute("output_padding", [0] * half)]
    kernel, outputs = weight.shape[2:], weight.shape[0]
    kernel, outputs = weight.shape[2:], weight.shape[0]
    before, after = pads[:half], pads[half:]
    reach = zip(shape[1:], strides, kernel, before, after, more, strict=True)
    sizes = [(n - 1) * s + k - p - q + m for n, s, k, p, q, m in reach]
    if min(sizes) < 1:
        raise node.refuse("PQ202", "ConvTranspose that crops more than its kernel adds", "use a smaller padding")
    axes = [_Axis(*given) for given in zip(shape[1:], strides, kernel, before, sizes, strict=True)]
    small = _phases(weight, axes)
    bias = np.tile(np.broadcast_to(node.reals(2, "bias") if node.has(2) else np.zeros(()), (outputs,)), len(small))
    made = (len(small) * outputs, *(axis.made for axis in axes))
    alone = len(small) == 1 and made[1:] == tuple(sizes)
    name, output = (node.name, node.output) if alone else (f"{node.name}/phases", f"{node.output}/phases")
    conv = Conv(
        name=name, inputs=(node.inputs[0],), output=output, shape=made,
        weight=small.reshape(-1, *small.shape[2:]), bias=bias, strides=(1,) * half,
        pads=(*(axis.front for axis in axes), *(axis.back for axis in axes)),
    )  # fmt: skip
    return [conv] if alone else [conv, _side_by_side(node, conv, strides, (outputs, *sizes))]


def _phases(weight: Array, axes: Sequence[_Axis]) -> Array:
    """(O, C, *kernel) -> (phases, O, C, *taps)."""
    phases = list(itertools.product(*(range(axis.stride) for axis in axes)))
    small = np.zeros((len(phases), *weight.shape[:2], *(axis.taps for axis in axes)))
    for part, phase in zip(small, phases, strict=True):
        taken, places = zip(*(axis.of_phase(p) for axis, p in zip(axes, phase, strict=True)), strict=True)
        part[(slice(None), slice(None), *np.ix_(*places))] = weight[(slice(None), slice(None), *np.ix_(*taken))]
    return small


class _Axis:
    """One axis: the places of a small kernel of `taps`, and the padding (front, back) with which it gives at least what is needed.

    y[t] = sum_k w[k] z[t + k], where z holds x[n] at s n + before and zeros elsewhere.
    """

    def __init__(self, size: int, stride: int, kernel: int, pad: int, wanted: int) -> None:
        self.stride, self.kernel, self.before = stride, kernel, kernel - 1 - pad
        places = [n for phase in range(stride) for n in self._places(phase)[1].tolist()]
        self.front = max(0, -min(places))
        self.taps = max(places) + self.front + 1
        needed = -(-wanted // stride) + self.taps - 1
        self.back = max(0, needed - size - self.front)
        self.made = size + self.front + self.back - self.taps + 1

    def of_phase(self, phase: int) -> tuple[Ints, Ints]:
        """(taps of the kernel that meet values in this phase, where they stand in the small kernel)."""
        taken, places = self._places(phase)
        return taken, places + self.front

    def _places(self, phase: int) -> tuple[Ints, Ints]:
        taps = np.arange(self.kernel)
        taken = taps[(phase + taps - self.before) % self.stride == 0]
        return taken, (phase + taken - self.before) // self.stride


def _side_by_side(node: Node, conv: Conv, strides: Sequence[int], shape: Shape) -> Op:
    """Channel (phase, o) at position q -> channel o at position s q + phase; what was made beyond the result is left out."""
    elements = np.arange(math.prod(conv.shape)).reshape(*strides, shape[0], *conv.shape[1:])
    half = len(strides)
    order = (half, *(axis for n in range(half) for axis in (half + 1 + n, n)))
    wide = elements.transpose(order).reshape(shape[0], *(s * q for s, q in zip(strides, conv.shape[1:], strict=True)))
    index = wide[tuple(slice(0, n) for n in shape)].reshape(-1)
    kind = View if half == 1 and index.size == elements.size else Copy
    return kind(name=node.name, inputs=(conv.output,), output=node.output, shape=shape, index=index)


TRANSPOSED_READERS: dict[str, Reader] = {"ConvTranspose": _conv_transpose}
