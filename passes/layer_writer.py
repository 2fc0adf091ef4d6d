"""Writes out the canonical operators that a layer consists of, in the place of the node that called it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F
from torch.nn.utils import parametrize

from pquant_fx.graph.batch import mark_without_batch_axis
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.rewriter import Rewriter

__all__ = ["CanNotWrite", "LayerWriter", "is_changed", "shape_of"]

Shape = tuple[int, ...]


class CanNotWrite(Exception):
    """A layer has no exact meaning as it is called: what keeps it from having one, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class LayerWriter:
    """New nodes go right before `node`; all of them have its provenance, and the module path `path`.

    Data values have the batch on axis 0; shapes include it.
    """

    def __init__(self, rw: Rewriter, node: Node, path: str | None = None) -> None:
        self.rw, self.node = rw, node
        self.path = str(node.target) if path is None and node.op == "call_module" else path or ""

    def at(self, name: str) -> LayerWriter:
        """A writer for the submodule `name`."""
        return LayerWriter(self.rw, self.node, f"{self.path}.{name}")

    @property
    def module(self) -> Any:
        return self.rw.gm.get_submodule(self.path)

    def replace(self, old: Node, new: Node) -> None:
        """Let the users of `old` take `new`, which keeps its own provenance."""
        record = info(new)
        self.rw.replace(old, new)
        set_info(new, record)

    def call(self, function: Callable[..., Any], shape: Sequence[int], *args: Any) -> Node:
        return self._described(self.rw.call(function, *args), tuple(shape))

    def module_call(self, path: str, x: Node) -> Node:
        """A call of the module of ours at `path`, which keeps the shape of x."""
        return self._described(self.rw.call_module(path, x), shape_of(x))

    def parameter(self, name: str) -> Node | None:
        """The parameter or buffer `name` of the module at `path`; None where it has none."""
        value = getattr(self.module, name, None)
        return None if value is None else self._constant(self.rw.get_attr(f"{self.path}.{name}"), value)

    def constant(self, name: str, value: Tensor) -> Node:
        """A constant of ours."""
        like = next((p for p in self.rw.gm.parameters()), None)
        value = value if like is None else value.to(like.device)
        return self._constant(self.rw.constant(f"{self.path}.{name}" if self.path else name, value), value)

    def of_parameters(self, function: Callable[..., Any], shape: Sequence[int], *args: Any) -> Node:
        """A constant that is computed from parameters."""
        made = self.call(function, shape, *args)
        mark_without_batch_axis(made)
        return made

    # ---- operators
    def linear(self, x: Node, weight: Node, bias: Node | None) -> Node:
        """A call site of its own: reports and rules tell the linear layers of a module apart by it."""
        made = self.call(F.linear, (*shape_of(x)[:-1], shape_of(weight)[0]), x, weight, bias)
        path = info(made).path
        known = [
            info(n).site for n in self.rw.graph.find_nodes(op="call_function", target=F.linear) if n is not made and info(n).path == path
        ]
        set_info(made, replace(info(made), site=max(known, default=0) + 1))
        return made

    def add(self, a: Node, b: Node | float) -> Node:
        return self.call(operator.add, _broadcast(a, b), a, b)

    def sub(self, a: Node | float, b: Node) -> Node:
        return self.call(operator.sub, _broadcast(a, b), a, b)

    def mul(self, a: Node, b: Node | float) -> Node:
        return self.call(operator.mul, _broadcast(a, b), a, b)

    def matmul(self, a: Node, b: Node) -> Node:
        return self.call(torch.matmul, (*shape_of(a)[:-1], shape_of(b)[-1]), a, b)

    def reshape(self, x: Node, *sample: int) -> Node:
        assert prod(sample) == prod(shape_of(x)[1:])
        return self.call(torch.reshape, (shape_of(x)[0], *sample), x, (-1, *sample))

    def permute(self, x: Node, *axes: int) -> Node:
        return self.call(torch.permute, [shape_of(x)[a] for a in axes], x, axes)

    def cut(self, x: Node, axis: int, start: int, stop: int) -> Node:
        """x[start:stop] along `axis`."""
        shape = shape_of(x)
        slices = tuple(
            slice(start, stop, 1) if n == axis else slice(0, s, 1) if n else slice(None, None, None) for n, s in enumerate(shape)
        )
        return self.call(operator.getitem, [stop - start if n == axis else s for n, s in enumerate(shape)], x, slices)

    def rows(self, parameter: Node, start: int, stop: int) -> Node:
        """parameter[start:stop]."""
        shape = shape_of(parameter)
        return self.of_parameters(operator.getitem, (stop - start, *shape[1:]), parameter, slice(start, stop))

    def cat(self, values: Sequence[Node], axis: int) -> Node:
        if len(values) == 1:
            return values[0]
        shape = list(shape_of(values[0]))
        shape[axis] = sum(shape_of(v)[axis] for v in values)
        return self.call(torch.cat, shape, tuple(values), axis)

    def sum(self, x: Node, axes: Sequence[int]) -> Node:
        """Over `axes`, which stay with one element each."""
        return self.call(torch.sum, [1 if n in axes else s for n, s in enumerate(shape_of(x))], x, tuple(axes), True)

    def unary(self, function: Callable[..., Any], x: Node, *options: Any) -> Node:
        return self.call(function, shape_of(x), x, *options)

    def dropout(self, x: Node, p: float) -> Node:
        """Dropout in training; nothing where p is 0."""
        if p == 0:
            return x
        path = self.rw.own(f"{self.path}.dropout" if self.path else "dropout", nn.Dropout(p))
        return self.module_call(path, x)

    # ---- provenance
    def _described(self, made: Node, shape: Shape) -> Node:
        record = info(self.node)
        set_info(made, replace(record, shape=shape, path=self.path or record.path, dtype=None))
        return made

    def _constant(self, read: Node, value: Tensor) -> Node:
        mark_without_batch_axis(read)
        return self._described(read, tuple(value.shape))


def shape_of(x: Any) -> Shape:
    """Raises CanNotWrite where the shape is not known."""
    shape = info(x).shape if isinstance(x, Node) else None
    if shape is None:
        raise CanNotWrite("the shape of an operand is not known", "pass tensors")
    return shape


def _broadcast(a: Any, b: Any) -> Shape:
    made: Shape = torch.broadcast_shapes(*(shape_of(v) for v in (a, b) if isinstance(v, Node)))  # type: ignore[no-untyped-call]
    return made


def is_changed(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module does something else than torch's class: a forward of its own, hooks, a parametrization."""
    inside = list(module.modules())
    hooks = [h for m in inside for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)]
    foreign = [m for m in inside if not type(m).__module__.startswith("torch.nn.")]
    return type(module).forward is not kind.forward or any(hooks) or any(map(parametrize.is_parametrized, inside)) or bool(foreign)
