"""Which indices of which axes stand or fall together when a network gets smaller: channels as equivalence classes.

Every index of every axis of every value (data without its batch axis, constants, formats of quantizers) is a *unit*, an
integer. Operators couple units (row 3 of a weight, output channel 3, its bias, channel 3 of what is added to it, ...); a class
of coupled units leaves the graph as a whole or stays as a whole. Two things keep it: an operator that works along one of its
axes (`hold`), and a sum of products to which it contributes (`Contraction`). The dependency graph of structured pruning
(Fang et al. 2023, "DepGraph"), on single units instead of layers, so that offsets and blocks need no special case.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.fx import GraphModule, Node

from pquant_fx.graph.analysis import FormatMap, sample_shape
from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.interval_codes import Ints

__all__ = ["Axes", "Contraction", "CoupledAxes", "Hold", "Place"]

Axes = tuple[Ints, ...]
"""The units of a value, an array an axis."""
Place = tuple[Node, int]
"""An axis of a value, as its interval counts axes."""


@dataclass(frozen=True, eq=False)
class Contraction:
    """`node` sums products over `units`: an index may go where all its products are zero, or the same constant for every sum.

    x, w: the two factors and the axis of the units in each (w None: the values themselves are summed); rows: the axis of w that
    counts outputs, and their units: outputs that go as well need not be looked at; folds: whether a constant may move to the bias.
    """

    node: Node
    units: Ints
    x: Place
    w: Place | None = None
    rows: tuple[int, Ints] | None = None
    folds: bool = False


@dataclass(frozen=True, eq=False)
class Hold:
    """Units that stay, because of what `node` does along their axis."""

    units: Ints
    node: Node
    why: str


class CoupledAxes:
    """The units of a graph and what couples them; `coupling.couple` fills it.

    formats: what `analyse` found; it gives the shapes.
    """

    def __init__(self, gm: GraphModule, formats: FormatMap) -> None:
        self.gm, self.formats = gm, formats
        self.holds: list[Hold] = []
        self.contractions: list[Contraction] = []
        self._edges: list[tuple[Ints, Ints, Node]] = []
        self._starts: list[int] = []
        self._owners: list[Node] = []
        self._count = 0
        self._axes: dict[Node | str, Axes | None] = {}
        self._handled: set[int] = set()

    # ---- units
    @property
    def count(self) -> int:
        return self._count

    def axes(self, node: Node) -> Axes | None:
        """The units of the value of `node`: one array an axis of a sample (of the whole for a constant). None: of unknown shape.

        Every node that reads the same parameter has the same units.
        """
        key: Node | str = str(node.target) if node.op == "get_attr" else node
        if key not in self._axes:
            shape = self._shape(node)
            self._axes[key] = None if shape is None else self._units(node, shape)
        return self._axes[key]

    def format_axes(self, node: Node, quantizer: Quantizer) -> Axes:
        """The units of the formats of the quantizer that `node` calls: one array an axis of k, i, f. Its other callers have the same."""
        path = str(node.target)
        if path not in self._axes:
            self._axes[path] = self._units(node, np.broadcast_shapes(*(tuple(t.shape) for t in quantizer.kif())))
        found = self._axes[path]
        assert found is not None
        return found

    def all_axes(self) -> list[Ints]:
        """The units of every axis there is, in the order in which they were met."""
        return [units for axes in self._axes.values() for units in axes or () if len(units)]

    def owner_of(self, unit: int) -> Node:
        """A node whose value or format has that unit."""
        return self._owners[self._axis_of(unit)]

    def _shape(self, node: Node) -> tuple[int, ...] | None:
        interval = self.formats.intervals.get(node)
        if interval is not None:
            return interval.shape
        if node in self.formats.constants:
            return tuple(self.formats.constants[node].shape)
        return sample_shape(node)

    def _units(self, owner: Node, shape: Sequence[int]) -> Axes:
        made = []
        for size in shape:
            self._starts.append(self._count)
            self._owners.append(owner)
            made.append(np.arange(self._count, self._count + size))
            self._count += size
        return tuple(made)

    # ---- what operators say
    def same(self, a: Ints, b: Ints, node: Node) -> None:
        """Index n of `a` goes when index n of `b` goes, because of `node`; both axes are then spoken for."""
        if len(a) != len(b):
            raise ValueError(f"{len(a)} units can not be coupled with {len(b)} at '{node.name}'")
        self.spoken_for(a, b)
        if len(a):
            self._edges.append((a, b, node))

    def together(self, blocks: Ints, node: Node) -> None:
        """The units of each row of `blocks` go together."""
        self.same(blocks[:, 1:].reshape(-1), np.repeat(blocks[:, 0], blocks.shape[1] - 1), node)
        self.spoken_for(blocks[:, 0])

    def contract(self, contraction: Contraction) -> None:
        """An index of the axis may go where it contributes nothing."""
        self.spoken_for(contraction.units)
        self.contractions.append(contraction)

    def hold(self, units: Ints, node: Node, why: str) -> None:
        """These units stay."""
        self.spoken_for(units)
        self.holds.append(Hold(units, node, why))

    def spoken_for(self, *axes: Ints) -> None:
        """An operator knows about these axes, so they need not be held for its sake."""
        self._handled.update(self._axis_of(int(units[0])) for units in axes if len(units))

    def finish(self, node: Node, values: Sequence[Node]) -> None:
        """Hold every axis of `values` (operands and result of `node`) that its rule did not speak about."""
        known = {value: axes for value in values if (axes := self.axes(value)) is not None}
        complete = len(known) == len(set(values))
        for axes in known.values():
            for units in axes:
                if len(units) > 1 and not (complete and self._axis_of(int(units[0])) in self._handled):
                    self.hold(units, node, "works along that axis")
        self._handled.clear()

    def _axis_of(self, unit: int) -> int:
        return bisect_right(self._starts, unit) - 1

    # ---- what follows
    def classes(self) -> Ints:
        """The class of every unit, named by its smallest member."""
        label = np.arange(self._count)
        a, b, _ = self.edges()
        while True:
            low = np.minimum(label[a], label[b])
            if (label[a] == label[b]).all():
                return label
            np.minimum.at(label, label[a], low)
            np.minimum.at(label, label[b], low)
            while (label != label[label]).any():
                label = label[label]

    def is_free(self, units: Ints) -> bool:
        """Whether, as far as is known yet, any of these units may go."""
        label = self.classes()
        held = np.zeros(self._count, dtype=bool)
        for hold in self.holds:
            held[label[hold.units]] = True
        return not bool(held[label[units]].all())

    def edges(self) -> tuple[Ints, Ints, list[Node]]:
        """Pairs of units that are coupled directly, and the node that does it."""
        nothing = np.zeros(0, dtype=np.int64)
        first, second = (np.concatenate([nothing, *(edge[side] for edge in self._edges)]) for side in (0, 1))
        return first, second, [node for a, _, node in self._edges for _ in range(len(a))]

    def quantizer(self, node: Node) -> Quantizer | None:
        """The quantizer that `node` calls, if it calls one."""
        module = module_of(self.gm, node)
        return module if isinstance(module, Quantizer) else None
