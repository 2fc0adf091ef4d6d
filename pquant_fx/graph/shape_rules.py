"""Shapes of the most common operators by formula.

torch's own meta kernels give the same; but the first one that runs imports a symbolic algebra system (one to four
seconds), and many take 100 microseconds and more. A rule returns None where it is not sure: then torch is asked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant_fx.graph.tables import TABLE_FUNCTIONS, Tabulated, lookup

__all__ = ["same_layout", "shape_of_call", "shape_of_layer"]

T = torch.Tensor


def shape_of_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The meta result of `function(*args, **kwargs)` for plain floating tensors of known operators, else None."""
    if function in _ELEMENTWISE:
        return _like(args[0]) if args and not (isinstance(kwargs.get("dtype"), torch.dtype) or kwargs.get("inplace")) else None
    if function in _BINARY:
        return _binary(*args) if len(args) == 2 and not kwargs else None
    if function is F.linear and 2 <= len(args) <= 3 and not kwargs:
        return _linear(args[0], args[1])
    if function is F.dropout and args and _is_plain(args[0]) and not kwargs.get("inplace") and len(args) <= 3:
        training = args[2] if len(args) == 3 else kwargs.get("training", True)
        return same_layout(args[0]) if training else args[0]
    if function is torch.cat and args and all(_is_plain(t) for t in args[0]):
        return _cat(args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0))
    if function in _CALLS:
        names, rule = _CALLS[function]
        named = {**dict(zip(names, args)), **kwargs}
        return rule(named) if len(args) <= len(names) and set(named) <= set(names) and _is_plain(named.get("input")) else None
    return None


def shape_of_layer(module: nn.Module, x: Any, weight: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The meta result of one of torch.nn's layers on the meta tensor x, else None. `weight` gives a parameter's meta tensor."""
    rule = _LAYERS.get(type(module))
    if rule is None or not _is_plain(x) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if isinstance(getattr(module, "weight", None), Tensor) and weight(module.weight).dtype != x.dtype:  # type: ignore[arg-type]
        return None
    return rule(module, x)


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.device.type == "meta"


def _fresh(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=x.dtype, device="meta")


def same_layout(x: Tensor) -> Tensor | None:
    """A new meta tensor of x's shape, dtype and strides; None when x has gaps, where torch chooses other strides."""
    if x.is_contiguous():
        return _fresh(x, x.shape)
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape)):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _like(x: Any) -> Tensor | None:
    return same_layout(x) if _is_plain(x) else None


def _binary(a: Any, b: Any) -> Tensor | None:
    if _is_plain(a) and type(b) in (int, float):
        return same_layout(a)
    if _is_plain(b) and type(a) in (int, float):
        return same_layout(b)
    if _is_plain(a) and _is_plain(b) and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride():
        return same_layout(a)
    return None


def _cat(tensors: Sequence[Tensor], axis: Any) -> Tensor | None:
    first = tensors[0]
    if not isinstance(axis, int) or not -first.dim() <= axis < first.dim():
        return None
    axis %= first.dim()
    rest = {(t.dtype, *t.shape[:axis], None, *t.shape[axis + 1 :]) for t in tensors}
    if len(rest) != 1 or not all(t.is_contiguous() for t in tensors):
        return None
    return _fresh(first, (*first.shape[:axis], sum(t.shape[axis] for t in tensors), *first.shape[axis + 1 :]))


def _linear(x: Any, weight: Any) -> Tensor | None:
    if not _is_plain(x) or not _is_plain(weight) or x.dtype != weight.dtype or weight.dim() != 2 or not x.dim():
        return None
    return _fresh(x, (*x.shape[:-1], weight.shape[0])) if x.shape[-1] == weight.shape[1] else None


def _linear_layer(m: Any, x: Tensor) -> Tensor | None:
    return _fresh(x, (*x.shape[:-1], m.out_features)) if x.dim() and x.shape[-1] == m.in_features else None


def _window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def _windows(x: Tensor, channels: int, n: int, kernel: Any, stride: Any, padding: Any, dilation: Any = 1) -> Tensor | None:
    options = zip(x.shape[-n:], *(_each(v, n) for v in (kernel, stride, padding, dilation)))
    sizes = [_window(*o) for o in options]
    if x.dim() != n + 2 or not x.is_contiguous() or min(sizes) < 1:
        return None
    return _fresh(x, (x.shape[0], channels, *sizes))


def _convolution(m: Any, x: Tensor) -> Tensor | None:
    n = len(m.kernel_size)
    if isinstance(m.padding, str) or m.padding_mode != "zeros" or x.dim() != n + 2 or x.shape[1] != m.in_channels:
        return None
    return _windows(x, m.out_channels, n, m.kernel_size, m.stride, m.padding, m.dilation)


def _pool(m: Any, x: Tensor) -> Tensor | None:
    if m.ceil_mode or getattr(m, "return_indices", False) or x.dim() < 2:
        return None
    n = 1 if isinstance(m, (nn.MaxPool1d, nn.AvgPool1d)) else 2
    return _windows(x, x.shape[1], n, m.kernel_size, m.stride or m.kernel_size, m.padding, getattr(m, "dilation", 1))


def _convolution_call(n: int) -> Callable[[dict[str, Any]], Tensor | None]:
    def rule(given: dict[str, Any]) -> Tensor | None:
        x, w, padding = given["input"], given.get("weight"), given.get("padding", 0)
        if w is None or not _is_plain(w) or w.dtype != x.dtype or isinstance(padding, str) or x.dim() != n + 2 or w.dim() != n + 2:
            return None
        if x.shape[1] != w.shape[1] * given.get("groups", 1):
            return None
        return _windows(x, w.shape[0], n, w.shape[2:], given.get("stride", 1), padding, given.get("dilation", 1))

    return rule


def _transposed(x: Tensor, channels: int, n: int, options: tuple[Any, ...]) -> Tensor | None:
    """options: kernel, stride, padding, output_padding, dilation."""
    each = zip(x.shape[2:], *(_each(v, n) for v in options))
    sizes = [(size - 1) * step - 2 * pad + spread * (taps - 1) + more + 1 for size, taps, step, pad, more, spread in each]
    return _fresh(x, (x.shape[0], channels, *sizes)) if x.dim() == n + 2 and x.is_contiguous() and min(sizes) > 0 else None


def _transposed_layer(m: Any, x: Tensor) -> Tensor | None:
    if x.dim() < 2 or x.shape[1] != m.in_channels:
        return None
    return _transposed(x, m.out_channels, len(m.kernel_size), (m.kernel_size, m.stride, m.padding, m.output_padding, m.dilation))


def _transposed_call(n: int) -> Callable[[dict[str, Any]], Tensor | None]:
    def rule(given: dict[str, Any]) -> Tensor | None:
        x, w = given["input"], given.get("weight")
        if w is None or not _is_plain(w) or w.dtype != x.dtype or x.dim() != n + 2 or w.dim() != n + 2 or x.shape[1] != w.shape[0]:
            return None
        options = (given.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1)))
        return _transposed(x, w.shape[1] * given.get("groups", 1), n, (w.shape[2:], *options))

    return rule


def _lookup_call(given: dict[str, Any]) -> Tensor | None:
    x, entries = given["input"], given.get("entries")
    return _fresh(x, x.shape) if x.is_contiguous() and isinstance(entries, Tensor) and entries.dtype == x.dtype else None


def _pool_call(n: int) -> Callable[[dict[str, Any]], Tensor | None]:
    def rule(given: dict[str, Any]) -> Tensor | None:
        x, kernel = given["input"], given.get("kernel_size")
        if kernel is None or given.get("ceil_mode") or given.get("return_indices") or x.dim() != n + 2:
            return None
        stride = given.get("stride") or kernel
        return _windows(x, x.shape[1], n, kernel, stride, given.get("padding", 0), given.get("dilation", 1))

    return rule


def _reduction_call(given: dict[str, Any]) -> Tensor | None:
    x, axes, keep = given["input"], given.get("dim"), given.get("keepdim", False)
    axes = [axes] if isinstance(axes, int) else axes
    if not axes or given.get("dtype") is not None or not all(-x.dim() <= a < x.dim() for a in axes):
        return None
    gone = {a % x.dim() for a in axes}
    return _fresh(x, [1 if n in gone else s for n, s in enumerate(x.shape) if keep or n not in gone])


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_REDUCTION = ("input", "dim", "keepdim", "dtype")
_CALLS: dict[Callable[..., Any], tuple[tuple[str, ...], Callable[[dict[str, Any]], Tensor | None]]] = {
    F.conv1d: (_CONVOLUTION, _convolution_call(1)),
    F.conv2d: (_CONVOLUTION, _convolution_call(2)),
    F.conv_transpose1d: (_TRANSPOSED, _transposed_call(1)),
    F.conv_transpose2d: (_TRANSPOSED, _transposed_call(2)),
    F.max_pool1d: (_MAX_POOL, _pool_call(1)),
    F.max_pool2d: (_MAX_POOL, _pool_call(2)),
    F.avg_pool1d: (_AVG_POOL, _pool_call(1)),
    F.avg_pool2d: (_AVG_POOL, _pool_call(2)),
    **dict.fromkeys((torch.mean, T.mean, torch.sum, T.sum), (_REDUCTION, _reduction_call)),
    torch.amax: (_REDUCTION[:3], _reduction_call),
    lookup: (("input", "entries", "f", "low"), _lookup_call),
}
_ELEMENTWISE = {
    *(F.relu, torch.relu, T.relu, F.relu6, F.leaky_relu, F.hardtanh, F.prelu, *TABLE_FUNCTIONS),
    *(T.sigmoid, T.tanh, torch.neg, T.neg, operator.neg, T.exp),
    *(torch.softmax, T.softmax, F.softmax),
}
_BINARY = {
    *(operator.add, operator.sub, operator.mul, operator.truediv),
    *(torch.add, torch.sub, torch.mul, torch.div, T.add, T.sub, T.mul, T.div),
}
_LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {
    nn.Linear: _linear_layer,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.ConvTranspose1d: _transposed_layer,
    nn.ConvTranspose2d: _transposed_layer,
    nn.MaxPool1d: _pool,
    nn.MaxPool2d: _pool,
    nn.AvgPool1d: _pool,
    nn.AvgPool2d: _pool,
    **dict.fromkeys(
        (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Softmax, Tabulated), lambda m, x: _like(x)
    ),
}
