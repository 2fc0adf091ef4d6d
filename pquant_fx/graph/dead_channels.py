"""Which channels of a finished network compute nothing that reaches an output, proven from its intervals and its constants.

A class of coupled units may go when every sum it contributes to loses nothing by it: the products are zero for every input
(a channel that is always zero, or weights that are), or the channel is one constant and the sum has a bias to take it. Then
nobody reads it: outputs keep every bit. What goes makes more go (weights of outputs that are gone need not be zero), until
nothing changes. The last index of an axis stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.coupled_axes import Contraction, CoupledAxes, Hold
from pquant_fx.graph.interval_codes import Ints

__all__ = ["DeadChannels", "constant_along", "dead_channels"]

Bools = NDArray[np.bool_]
FOLDED_BITS = 48
"""Sums wider than this take no constant of a removed channel: a stored bias has 53 bits at most."""
_VARIES = "reads it where it has met live values"
_CONSTANT = "reads it as a constant that no bias can take"


@dataclass(frozen=True, eq=False)
class DeadChannels:
    """dead: of every unit, whether it goes; label: its class; folded: sums, and which of their indices go as a constant that
    the bias takes; holds: what keeps the others, in words.
    """

    dead: Bools
    label: Ints
    folded: tuple[tuple[Contraction, Bools], ...]
    holds: tuple[Hold, ...]


@dataclass(frozen=True, eq=False)
class _Sum:
    """A contraction, and of each of its indices whether x can be other than zero, whether it is no constant, whether the bias takes it."""

    contraction: Contraction
    live: Bools
    varies: Bools
    folds: Bools

    def reads(self, formats: FormatMap, dead: Bools) -> Bools:
        """Whether any product of each index can be other than zero, in the outputs that stay."""
        if self.contraction.w is None:
            return self.live
        node, axis = self.contraction.w
        return self.live & _nonzero_along(formats, node, axis, len(self.live), self.contraction.rows, dead)


def dead_channels(coupled: CoupledAxes) -> DeadChannels:
    """All units that can be proven dead one class after the other; the same for the same graph and constants."""
    label, formats = coupled.classes(), coupled.formats
    sums = [_sum(contraction, formats) for contraction in coupled.contractions]
    last: list[Hold] = []

    def grown(holds: list[Hold]) -> tuple[Bools, list[Hold], list[int]]:
        dead, reading = _grown(coupled.count, formats, label, sums, [*coupled.holds, *holds])
        return dead, reading, sorted(int(units[0]) for units in coupled.all_axes() if dead[units].all())

    while (found := grown(last))[2]:
        first = found[2][0]
        last.append(Hold(np.array([first]), coupled.owner_of(first), "would have no channel left"))
    for hold in list(last):  # what was held later may make an earlier one needless
        fewer = [other for other in last if other is not hold]
        if not (without := grown(fewer))[2]:
            last, found = fewer, without
    dead, reading, _ = found
    holds = [*coupled.holds, *last]
    folded = [(s.contraction, s.reads(formats, dead) & dead[s.contraction.units]) for s in sums]
    return DeadChannels(dead, label, tuple((c, taken) for c, taken in folded if taken.any()), (*holds, *reading))


def _grown(count: int, formats: FormatMap, label: Ints, sums: list[_Sum], holds: list[Hold]) -> tuple[Bools, list[Hold]]:
    """The dead units under these holds, and the sums that read the others."""
    held = np.zeros(count, dtype=bool)
    for hold in holds:
        held[label[hold.units]] = True
    dead = np.zeros(count, dtype=bool)
    while True:
        used, reading = held.copy(), []
        for s in sums:
            reads = s.reads(formats, dead)
            for which, why in ((s.varies, _VARIES), (~s.varies & ~s.folds, _CONSTANT)):
                units = s.contraction.units[reads & which]
                used[label[units]] = True
                reading += [Hold(units, s.contraction.node, why)] if len(units) else []
        if (~used[label] == dead).all():
            return dead, reading
        dead = ~used[label]


def _sum(contraction: Contraction, formats: FormatMap) -> _Sum:
    (node, axis), size = contraction.x, len(contraction.units)
    sums = formats.accumulators.get(contraction.node)
    folds = contraction.folds and sums is not None and sums.bits <= FOLDED_BITS
    constant = constant_along(formats, node, axis, size)
    return _Sum(contraction, _nonzero_along(formats, node, axis, size), ~constant, constant & folds)


def constant_along(formats: FormatMap, node: Node, axis: int, size: int) -> Bools:
    """Whether each index of that axis is one number, the same for every input and position."""
    value = formats.intervals.get(node)
    if value is None:
        return np.zeros(size, dtype=bool)
    low, high = (np.moveaxis(c, axis, 0).reshape(size, -1) for c in (value.low, value.high))
    return np.asarray((low == high).all(1) & (low == low[:, :1]).all(1))


def _nonzero_along(
    formats: FormatMap, node: Node, axis: int, size: int, rows: tuple[int, Ints] | None = None, dead: Bools | None = None
) -> Bools:
    """Whether the value can be other than zero anywhere at each index of that axis, in the rows that are not dead."""
    value = formats.intervals.get(node)
    if value is None:
        return np.ones(size, dtype=bool)
    nonzero = (value.low != 0) | (value.high != 0)
    if rows is not None and dead is not None:
        nonzero = np.compress(~dead[rows[1]], nonzero, axis=rows[0])
    return np.asarray(nonzero.any(axis=tuple(a for a in range(nonzero.ndim) if a != axis)))
