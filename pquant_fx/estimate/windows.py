"""EBOPs of convolutions: every product of a weight with an input inside the map, of which padding has none.

    sum_{o, c, t, p} b_w[o, c, t] b_x[c, s p + d t - pad]        o outputs, c channels of a group, t taps, p positions

Where the positions of a map share their bits, only how often each tap hits the map counts. Otherwise one convolution of the
bits with the weight bits summed over the outputs of each group gives the sum: the cost of one output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pquant_fx.estimate.bits import Shape, product_sum
from pquant_fx.estimate.moves import is_uniform

__all__ = ["conv_products", "tap_counts", "transposed_products"]

Ns = Sequence[int]
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


def tap_counts(windows: Ns, size: Ns, kernel: Ns, stride: Ns, padding: Ns, dilation: Ns) -> Tensor:
    """How many of the windows see an element of a map of that size through each tap: float64 of the kernel's shape.

    windows: how many there are along each axis.
    """
    counts = np.ones(())
    for n, reach, k, s, p, d in zip(windows, size, kernel, stride, padding, dilation):
        seen = np.arange(n)[:, None] * s - p + np.arange(k)[None, :] * d
        counts = counts[..., None] * ((seen >= 0) & (seen < reach)).sum(axis=0)
    return torch.from_numpy(counts)


def conv_products(x: Tensor, w: Tensor, counts: Tensor, shape: Shape, weight: Shape, geometry: tuple[Any, ...]) -> Tensor:
    """sum b_x b_w of F.conv1d / F.conv2d on one sample of shape (1, C, *spatial), weight (O, C / groups, *kernel).

    counts: `tap_counts`, in the bits' type; geometry: stride, padding, dilation, groups.
    """
    *window, groups = geometry
    outputs, channels, *kernel = weight
    summed = _split(w, groups, outputs).sum(1) * (outputs // groups if w.shape[0] == 1 else 1)  # (groups | 1, channels | 1, *kernel | 1)
    if is_uniform(x, len(kernel)):
        return _shared(x, summed, counts, groups, channels)
    full = summed.expand(groups, channels, *kernel)
    return CONVOLUTIONS[len(kernel)](x.expand(shape), full, None, *window, groups).sum()


def transposed_products(x: Tensor, w: Tensor, counts: Tensor, shape: Shape, weight: Shape, geometry: tuple[Any, ...]) -> Tensor:
    """The same of F.conv_transpose1d / 2d: weight (C, O / groups, *kernel); geometry: stride, padding, output_padding, groups, dilation.

    counts: through each tap, the input positions whose product lands inside the result.
    """
    groups = geometry[3]
    inputs, outputs, *kernel = weight
    summed = w.sum(1) * (outputs if w.shape[1] == 1 else 1)  # (inputs | 1, *kernel | 1)
    if is_uniform(x, len(kernel)):
        return _shared(x, _split(summed, groups, inputs), counts, groups, inputs // groups)
    full = summed.unsqueeze(1).expand(inputs, 1, *kernel)
    return TRANSPOSED[len(kernel)](x.expand(shape), full, None, *geometry).sum()


def _split(t: Tensor, groups: int, size: int) -> Tensor:
    """Axis 0 of that size, or shared, as (groups, size / groups)."""
    return t.unsqueeze(0) if t.shape[0] == 1 else t.reshape(groups, size // groups, *t.shape[1:])


def _shared(x: Tensor, w: Tensor, counts: Tensor, groups: int, channels: int) -> Tensor:
    """w (groups | 1, channels | 1, *kernel | 1) and x (1, C | 1, 1, ...): a number for each channel on both sides."""
    if is_uniform(w, counts.dim()):
        weights = w.flatten(1) * counts.sum()
    else:
        weights = w.expand(*w.shape[:2], *counts.shape).flatten(2) @ counts.flatten()
    values = x.reshape(1, 1) if x.numel() == 1 else x.reshape(groups, channels)
    return product_sum(values, weights, (groups, channels))
