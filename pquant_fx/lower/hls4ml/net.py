"""The importer's own view of a QONNX file: one operation per arithmetic step, constants in float64, shapes without batch.

Shapes and arrays are in the file's layout, (C, H, W), (C, L) or (F,). Nothing here knows hls4ml.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pquant_fx.errors import LoweringError, Place, Problem
from pquant_fx.formats import FixedFormat
from pquant_fx.lower.fixed_point_numpy import holds_only_zero

__all__ = [
    "Affine",
    "Array",
    "Concat",
    "Conv",
    "Copy",
    "Dense",
    "Embed",
    "Input",
    "Ints",
    "Lookup",
    "MatMul",
    "Merge",
    "Net",
    "Op",
    "Pool",
    "Quantize",
    "Relu",
    "Select",
    "Shape",
    "Truncate",
    "Upsample",
    "View",
    "refusal",
    "uses",
]

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """name: of the ONNX node (the module path); inputs: tensors that carry data; shape: of the output."""

    name: str
    inputs: tuple[str, ...]
    output: str
    shape: Shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Input(Op):
    """A graph input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantize(Op):
    """q(x; k, i, f, rounding, overflow) with k, i, f broadcast to the sample's shape."""

    k: Ints
    i: Ints
    f: Ints
    rounding: str
    overflow: str

    @property
    def scalar(self) -> bool:
        """One format for every element."""
        return all(bool((t == t.flat[0]).all()) for t in (self.k, self.i, self.f))

    @property
    def format(self) -> FixedFormat:
        """The format of the first element, which is that of all when `scalar`."""
        return FixedFormat(int(self.k.flat[0]), int(self.i.flat[0]), int(self.f.flat[0]))

    @property
    def zero_width(self) -> npt.NDArray[np.bool_]:
        """Where nothing but 0 can come out."""
        k, i, f = (t.astype(np.float64) for t in (self.k, self.i, self.f))
        return holds_only_zero(k, i, f, self.overflow)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Op):
    """x @ weight + bias over the last axis; weight (in, out), bias (out,). copies: as in Conv."""

    weight: Array
    bias: Array
    copies: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Op):
    """weight (O, C, *kernel), groups and dilations already expanded; pads: all begins, then all ends.

    copies: the weights only copy values (a slice, a pad), so that the input's grid passes through.
    """

    weight: Array
    bias: Array
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    copies: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Op):
    """x * scale + bias, constants that broadcast to the sample's shape."""

    scale: Array
    bias: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Relu(Op):
    """max(x, 0)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truncate(Op):
    """The whole part of x."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup(Op):
    """entries[n], n the whole part of x * scale + offset."""

    entries: Array
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Merge(Op):
    """Two values of the same shape, element by element."""

    operation: Literal["add", "subtract", "multiply", "maximum", "minimum"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Op):
    """Values side by side along `axis` (batch not counted)."""

    axis: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Op):
    """Window maximum or mean; padding counts as zeros in the mean and as nothing in the maximum."""

    mode: Literal["Max", "Average"]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class View(Op):
    """A new order: output element n is input element index[n], both counted in C order."""

    index: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Select(Op):
    """Slices and zero pads: row r of an axis is the input's row maps[axis][r], or zeros where that is -1."""

    maps: tuple[Ints, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Copy(Op):
    """Places that values are copied to: output element n is the input's element index[n], or zero where that is -1."""

    index: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Upsample(Op):
    """Each element repeated along the spatial axes, `factors` times."""

    factors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embed(Op):
    """table[n], n the whole part of x; table (rows, D), the output has an axis of D behind those of x."""

    table: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class MatMul(Op):
    """a @ b of two values, matrices (M, K) and (K, N) or as many of them in both."""


@dataclass(frozen=True, eq=False)
class Net:
    """Operations in an order in which they can run; outputs: (name, tensor); pinned: what nodes in error would have read."""

    ops: tuple[Op, ...]
    outputs: tuple[tuple[str, str], ...]
    pinned: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def with_ops(self, ops: Sequence[Op]) -> Net:
        """The same net with other operations, those that nobody reads left out."""
        wanted = {*(tensor for _, tensor in self.outputs), *self.pinned}
        kept: list[Op] = []
        for op in reversed(ops):
            if op.output in wanted or isinstance(op, Input):
                kept.append(op)
                wanted.update(op.inputs)
        return replace(self, ops=tuple(reversed(kept)))


def uses(net: Net) -> dict[str, int]:
    """How often each tensor is read, being a graph output included."""
    count = {op.output: 0 for op in net}
    for tensor in [*(t for op in net for t in op.inputs), *(t for _, t in net.outputs), *net.pinned]:
        count[tensor] = count.get(tensor, 0) + 1
    return count


def refusal(code: str, what: str, remedy: str, name: str) -> LoweringError:
    """The error that a single node gives rise to; `name` is the ONNX node's name."""
    return LoweringError(Problem(code, what, remedy, Place(node=name)))
