"""The dialect's data movements and sums on numpy arrays with a batch axis, with torch's meaning of every argument.

Exact for int64 codes, and for float64 codes while no sum leaves 53 bits; both the interval rules and the integer
interpreter stand on them. n = number of spatial axes, arrays are (N, C, *spatial).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = [
    "Array",
    "contract",
    "correlate",
    "pad",
    "permute",
    "pool_geometry",
    "reshape",
    "spread",
    "take",
    "turned",
    "upsample",
    "window_max",
    "window_sum",
    "windows",
]

Array: TypeAlias = NDArray[Any]
_CHUNK = 1 << 24
"""Elements of an unfolded convolution input held at once (128 MiB of float64)."""

T = TypeVar("T", bound=np.generic)


def reshape(x: Array, shape: Sequence[int]) -> Array:
    """torch.reshape(x, (-1, *sample shape))."""
    return x.reshape(tuple(int(s) for s in shape))


def permute(x: Array, axes: Sequence[int]) -> Array:
    """torch.permute(x, axes)."""
    return np.transpose(x, tuple(axes))


def take(x: Array, index: tuple[slice, ...]) -> Array:
    """x[slices]."""
    return x[index]


def pad(x: Array, pads: Sequence[int], value: int | float = 0) -> Array:
    """F.pad(x, pads, "constant", value): pairs from the last axis on; negative pads crop."""
    grow = [(0, 0)] * x.ndim
    for n in range(len(pads) // 2):
        grow[x.ndim - 1 - n] = (int(pads[2 * n]), int(pads[2 * n + 1]))
    crop = tuple(slice(max(-a, 0), size - max(-b, 0)) for (a, b), size in zip(grow, x.shape))
    return np.pad(x[crop], [(max(a, 0), max(b, 0)) for a, b in grow], constant_values=value)


def upsample(x: Array, factors: Sequence[int]) -> Array:
    """Every element repeated along the last axes."""
    for n, factor in enumerate(factors):
        x = np.repeat(x, factor, axis=x.ndim - len(factors) + n)
    return x


def windows(x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """A view (N, C, *out, *kernel) of the windows of a padded (N, C, *spatial) array."""
    n = len(kernel)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
    view = sliding_window_view(x, reach, axis=tuple(range(2, 2 + n)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))
    return view[steps]


def pool_geometry(
    spatial: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> list[tuple[int, int]]:
    """(before, after) padding of each spatial axis such that exactly torch's windows remain; `after` < 0 crops."""
    pads = []
    for size, k, s, p, d in zip(spatial, kernel, stride, padding, dilation):
        reach = d * (k - 1) + 1
        room = size + 2 * p - reach
        count = room // s + 1
        if ceil_mode:
            count = -(-room // s) + 1
            if (count - 1) * s >= size + p:  # torch drops a window that starts in the right padding
                count -= 1
        pads.append((p, (count - 1) * s + reach - size - p))
    return pads


def _padded(x: Array, pads: Sequence[tuple[int, int]], value: int | float) -> Array:
    flat = [side for pair in reversed(pads) for side in pair]
    return pad(x, flat, value) if any(flat) else x


def window_max(
    x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> Array:
    """F.max_pool(x, ...) for n spatial axes; padding never wins."""
    n = len(kernel)
    pads = pool_geometry(x.shape[-n:], kernel, stride, padding, dilation, ceil_mode)
    least: int | float = float("-inf") if x.dtype.kind == "f" else int(np.iinfo(x.dtype).min)
    return windows(_padded(x, pads, least), kernel, stride, dilation).max(axis=tuple(range(-n, 0)))


def window_sum(x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool) -> Array:
    """Sums over the windows of F.avg_pool(x, ...)."""
    n = len(kernel)
    ones = (1,) * n
    pads = pool_geometry(x.shape[-n:], kernel, stride, padding, ones, ceil_mode)
    return windows(_padded(x, pads, 0), kernel, stride, ones).sum(axis=tuple(range(-n, 0)))


def contract(x: Array, w: Array) -> Array:
    """sum_j x[..., j] w[o, j]: F.linear without bias."""
    return np.matmul(x, w.T)


def correlate(x: Array, w: Array, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> Array:
    """F.conv1d / F.conv2d without bias: x (N, C, *spatial), w (O, C / groups, *kernel) of the same type -> (N, O, *out).

    One matrix product over unfolded windows, a few samples at a time; no transform that would round.
    """
    n = w.ndim - 2
    kernel = w.shape[2:]
    padded = _padded(x, [(p, p) for p in padding], 0)
    rows = w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)
    view = windows(padded, kernel, stride, dilation)
    batch, channels, out = view.shape[0], view.shape[1], view.shape[2 : 2 + n]
    positions, volume = int(np.prod(out)), int(np.prod(kernel))
    result = np.empty((batch, w.shape[0], *out), dtype=np.result_type(x, w))
    step = max(1, _CHUNK // max(1, positions * channels * volume))
    for start in range(0, batch, step):
        part = view[start : start + step]
        size = part.shape[0]
        part = part.reshape(size, groups, channels // groups, *out, *kernel)
        part = np.moveaxis(part, 2, 2 + n)  # (N, g, *out, C/g, *kernel)
        unfolded = part.reshape(size, groups, positions, channels // groups * volume)
        summed = np.matmul(unfolded, rows)
        result[start : start + step] = summed.transpose(0, 1, 3, 2).reshape(size, w.shape[0], *out)
    return result


def spread(
    x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], output_padding: Sequence[int], dilation: Sequence[int]
) -> Array:
    """x (N, C, *spatial) with stride - 1 zeros between its values and as many around it that `correlate` with `turned` weights,
    stride 1 and no padding, is the transposed convolution.
    """
    wide = np.zeros((*x.shape[:2], *((size - 1) * step + 1 for size, step in zip(x.shape[2:], stride))), dtype=x.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    before = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation)]
    return _padded(wide, [(b, b + more) for b, more in zip(before, output_padding)], 0)


def turned(w: Array, groups: int) -> Array:
    """The weights (C, O / groups, *kernel) of a transposed convolution as those of a convolution, (O, C / groups, *kernel)."""
    parts = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
    return np.flip(parts.reshape(-1, *parts.shape[2:]), axis=tuple(range(2, w.ndim)))
