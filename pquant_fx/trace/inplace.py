"""Operations that write into a tensor, and the ones that give the same value without writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Write", "find_write"]

_AUGMENTED: dict[str, Callable[..., Any]] = {
    "__ipow__": torch.Tensor.pow,
    "__imod__": torch.Tensor.remainder,
    "__ifloordiv__": torch.Tensor.floor_divide,
    "__iand__": torch.Tensor.bitwise_and,
    "__ior__": torch.Tensor.bitwise_or,
    "__ixor__": torch.Tensor.bitwise_xor,
    "__ilshift__": torch.Tensor.bitwise_left_shift,
    "__irshift__": torch.Tensor.bitwise_right_shift,
}
_FILLS: dict[str, Callable[..., Any]] = {"zero_": torch.zeros_like, "fill_": torch.full_like}


@dataclass(frozen=True)
class Write:
    """A call that writes into `target`. `function(*args, **kwargs)` is the new value; None when there is no such call."""

    target: Tensor
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def find_write(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Write | None:
    """How a call writes: `x.add_(y)`, `x += y`, `F.relu(x, inplace=True)`, `torch.add(x, y, out=z)`, `x[i] = y`. None: it does not."""
    name = getattr(function, "__name__", "")
    if isinstance(kwargs.get("out"), Tensor):
        rest = {k: v for k, v in kwargs.items() if k != "out"}
        return Write(kwargs["out"], function, args, rest)
    if not args or not isinstance(args[0], Tensor):
        return None
    if kwargs.get("inplace") is True:
        return Write(args[0], function, args, {**kwargs, "inplace": False})
    if name in _AUGMENTED:
        return Write(args[0], _AUGMENTED[name], args, kwargs)
    if name in ("__setitem__", "__set__", "__delitem__", "copy_", "set_", "resize_", "data"):
        return Write(args[0], None, args, kwargs)
    if name.endswith("_") and not name.endswith("__") and name not in ("requires_grad_",):
        return Write(args[0], _FILLS.get(name) or _functional(function, name[:-1]), args, kwargs)
    return None


def _functional(function: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    if getattr(torch.Tensor, name + "_", None) is function:
        return getattr(torch.Tensor, name, None)
    for home in (torch, F):
        if getattr(home, name + "_", None) is function:
            return getattr(home, name, None)
    return getattr(torch.Tensor, name, None)
