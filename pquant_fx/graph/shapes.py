"""Shapes without numbers: functions and modules run on meta tensors, so that nothing is computed and nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pquant_fx.graph.dialect import DROPOUTS, Mask, Quantizer
from pquant_fx.graph.shape_rules import same_layout, shape_of_call, shape_of_layer

__all__ = ["DataDependentShape", "Shapes", "map_structure", "tensors_of"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_META = torch.device("meta")


class DataDependentShape(Exception):
    """The shape of a result depends on values, not on shapes."""


class Shapes:
    """Runs code on meta tensors; `meta` gives every real tensor its shape twin, `twin` every module its twin."""

    def __init__(self) -> None:
        self._metas: dict[int, tuple[Tensor, Tensor]] = {}
        self._twins: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._copies: dict[int, nn.Module] = {}

    def meta(self, tensor: Tensor) -> Tensor:
        """The meta tensor of the same shape, strides and dtype; always the same one for the same tensor."""
        known = self._metas.get(id(tensor))
        if known is None:
            known = self._metas[id(tensor)] = (tensor, _as_meta(tensor))
        return known[1]

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `function` on witnesses. Raises DataDependentShape, or what the function raises for wrong shapes."""
        args, kwargs = map_structure(_to_meta_device, args), map_structure(_to_meta_device, kwargs)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            known = shape_of_call(function, args, kwargs)
            if known is not None:
                return known
            try:
                return map_structure(_only_meta, function(*args, **kwargs))
            except NotImplementedError:  # no meta kernel: either it needs the values, or real zeros tell the shape as well
                return self._run_twice(function, args, kwargs)

    def run_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a leaf module on witnesses; its parameters, buffers and state stay untouched."""
        if args and isinstance(args[0], Tensor) and not kwargs:
            if isinstance(module, _NORMS):
                return _norm(module, args[0])
            if isinstance(module, (*DROPOUTS, Quantizer, Mask)):
                return args[0].view_as(args[0])
        with torch.no_grad(), torch._C.DisableTorchFunction():
            known = shape_of_layer(module, args[0], self.meta) if len(args) == 1 and not kwargs else None
            if known is not None:
                return known
            try:
                return map_structure(_only_meta, self._twin(module)(*args, **kwargs))
            except Exception as error:  # a leaf may do anything (numpy, item, C++): then real zeros through a real copy
                if type(module).__module__.startswith("torch.nn"):
                    raise
                try:
                    return self._run_real(self._copy(module), args, kwargs, 0.0)
                except Exception:
                    raise error from None

    def _twin(self, module: nn.Module) -> nn.Module:
        known = self._twins.get(id(module))
        if known is None:
            tensors = (*module.parameters(), *module.buffers())
            memo: dict[int, Any] = {id(t): self.meta(t) for t in tensors}
            known = self._twins[id(module)] = (module, _bare(copy.deepcopy(module, memo)))
        if known[1].training != module.training:
            known[1].train(module.training)
        return known[1]

    def _copy(self, module: nn.Module) -> nn.Module:
        if id(module) not in self._copies:
            self._copies[id(module)] = _bare(copy.deepcopy(module))
        return self._copies[id(module)]

    def _run_twice(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        zeros, ones = (self._run_real(function, args, kwargs, fill) for fill in (0.0, 1.0))
        if [t.shape for t in tensors_of(zeros)] != [t.shape for t in tensors_of(ones)]:
            raise DataDependentShape(getattr(function, "__name__", str(function)))
        return zeros

    def _run_real(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], fill: float) -> Any:
        def real(x: Any) -> Any:
            return torch.full(x.shape, fill, dtype=x.dtype) if isinstance(x, Tensor) else x

        return map_structure(_only_meta, function(*map_structure(real, args), **map_structure(real, kwargs)))


def map_structure(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply `function` to the leaves of nested tuples, lists, dicts and slices; the containers keep their types."""
    kind = type(value)
    if kind is tuple:
        return tuple([map_structure(function, v) for v in value])
    if kind is list:
        return [map_structure(function, v) for v in value]
    if kind is dict:
        return {k: map_structure(function, v) for k, v in value.items()}
    if kind is slice:
        return slice(*(map_structure(function, v) for v in (value.start, value.stop, value.step)))
    if isinstance(value, tuple):
        items = [map_structure(function, v) for v in value]
        if isinstance(value, torch.Size):
            return torch.Size(items) if all(type(i) is int for i in items) else tuple(items)
        return kind(*items) if hasattr(value, "_make") else kind(items)
    if isinstance(value, list):
        return [map_structure(function, v) for v in value]
    if isinstance(value, dict) and not is_dataclass(value):
        made = copy.copy(value)
        for k, v in value.items():
            made[k] = map_structure(function, v)
        return made
    return function(value)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a nested structure, in order."""
    found: list[Tensor] = []
    map_structure(lambda x: found.append(x) if isinstance(x, Tensor) else None, value)
    return found


def _bare(module: nn.Module) -> nn.Module:
    """Without the instance attributes that hide parameters during a trace."""
    for m in module.modules():
        for name in (*m._parameters, *m._buffers):
            m.__dict__.pop(name, None)
    return module


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm keeps the shape; torch's own decomposition of it on meta tensors takes a millisecond."""
    if not isinstance(module, nn.SyncBatchNorm):
        module._check_input_dim(x)  # type: ignore[operator]
    if x.shape[1] != module.num_features:
        raise ValueError(f"{type(module).__name__} expects {module.num_features} features but gets {x.shape[1]}")
    known = same_layout(x)
    return torch.empty_like(x) if known is None else known


def _as_meta(tensor: Tensor) -> Tensor:
    with torch.no_grad(), torch._C.DisableTorchFunction():
        if tensor.layout is not torch.strided:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=_META)
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _to_meta_device(x: Any) -> Any:
    return _META if isinstance(x, torch.device) else x


def _only_meta(x: Any) -> Any:
    return _as_meta(x) if isinstance(x, Tensor) and x.device != _META else x
