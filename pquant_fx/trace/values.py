"""What a user's `forward` sees while it is traced: tensors and sizes that carry a node and witnesses.

A `Value` stands for a tensor. It holds the node that computes it and two witnesses, meta tensors of the shapes that the
value has at two different batch sizes: what is the same in both is a constant of the circuit, what differs depends on the
batch. A `BatchSize` stands for such a number; a `ShapeInt` is an ordinary integer that notes the tests it answers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

__all__ = ["BatchSize", "Memory", "ShapeInt", "Sketch", "Value", "sketch"]

_PROBES = (31, 64, 97)  # further batch sizes at which a number must be the same before it counts as a constant


@dataclass
class Memory:
    """The storage that a tensor and its views share: how often it was written, and where last."""

    writes: int = 0
    line: str | None = None


@dataclass
class Sketch:
    """What is known about a `Value`: its node, its witnesses, the device it will live on and its place in memory."""

    node: Node | None  # None: a parameter that nothing has used yet
    low: Tensor
    high: Tensor
    device: torch.device
    memory: Memory = field(default_factory=Memory)
    seen: int = 0
    parameter: str | None = None  # the dotted name when it is a parameter or buffer of the model


class Value(Tensor):
    """A tensor whose operations are recorded. Only lives during a trace."""

    _sketch: Sketch
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # the recorder, a torch function mode, sees every call

    @staticmethod
    def make(record: Sketch) -> Value:
        with torch._C.DisableTorchFunction():
            value: Value = torch.Tensor._make_subclass(Value, record.low.detach())
        value._sketch = record
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self._sketch.low


def sketch(value: Tensor) -> Sketch:
    """The record of a `Value`."""
    return value._sketch  # type: ignore[attr-defined]


class BatchSize(torch.SymInt):
    """A number that depends on the batch size, known by its values at several batches and by the node that computes it.

    Arithmetic is recorded; results that are the same at every batch become plain numbers. What would fix the batch
    (a loop, a test, a conversion) is refused through `owner`.
    """

    def __init__(self, values: tuple[Any, ...], node: Callable[[], Node], owner: Any) -> None:
        self.values = values
        self._make = node
        self._node: Node | None = None
        self.owner = owner

    @staticmethod
    def of_witnesses(low: Any, high: Any, node: Callable[[], Node], owner: Any) -> BatchSize:
        """A number of which two values are known; the others follow from the straight line through them."""
        if isinstance(low, bool):
            return BatchSize((low, high), node, owner)
        first, second = owner.batches
        slope = Fraction(high - low) / (second - first) if isinstance(low, int) else (high - low) / (second - first)
        rest = (low + slope * (b - first) for b in _PROBES)
        return BatchSize((low, high, *(int(v) if v == int(v) else v for v in rest)), node, owner)

    @property
    def node(self) -> Node:
        if self._node is None:
            self._node = self._make()
        return self._node

    def _combine(self, function: Callable[..., Any], *args: Any) -> Any:
        if any(isinstance(a, Tensor) for a in args):
            return NotImplemented
        count = min(len(a.values) for a in args if isinstance(a, BatchSize))
        try:
            values = tuple(function(*(a.values[n] if isinstance(a, BatchSize) else a for a in args)) for n in range(count))
        except TypeError:
            return NotImplemented
        if all(v == values[0] and type(v) is type(values[0]) for v in values):
            return values[0]
        return BatchSize(values, lambda: self.owner.emit(function, args), self.owner)

    def __bool__(self) -> bool:
        return bool(self.owner.batch_needed(self, "a test"))

    def __int__(self) -> int:
        return int(self.owner.batch_needed(self, "a conversion to int"))

    def __index__(self) -> int:
        return int(self.owner.batch_needed(self, "a loop or an index"))

    def __float__(self) -> float:
        return float(self.owner.batch_needed(self, "a conversion to float"))

    def __round__(self, digits: int | None = None) -> Any:
        return self if digits is None else NotImplemented

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"BatchSize({self.values[0]})"

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchSize:
        return self

    def __neg__(self) -> Any:
        return self._combine(operator.neg, self)


def _install(name: str, function: Callable[..., Any], reflected: bool = True) -> None:
    def forward(self: BatchSize, other: Any) -> Any:
        return self._combine(function, self, other)

    def backward(self: BatchSize, other: Any) -> Any:
        return self._combine(function, other, self)

    setattr(BatchSize, f"__{name}__", forward)
    if reflected:
        setattr(BatchSize, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    _install(_name, getattr(operator, _name))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _install(_name, getattr(operator, _name), reflected=False)


class ShapeInt(int):
    """A size that is the same for every batch. Comparing it fixes an assumption about the input, which is noted."""

    owner: Any

    @staticmethod
    def make(value: int, owner: Any) -> ShapeInt:
        made = ShapeInt(value)
        made.owner = owner
        return made

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__index__(self),)


def _observe(name: str) -> None:
    compare = getattr(int, name)

    def method(self: ShapeInt, other: Any) -> Any:
        result = compare(self, other)
        if result is not NotImplemented:
            self.owner.shape_tested(result)
        return result

    setattr(ShapeInt, name, method)


for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
    _observe(_name)
