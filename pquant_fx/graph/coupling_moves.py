"""How data movements couple channels: offsets of a concatenation, blocks of a flattened image, what is cut off or added.

A rule takes (coupled axes, node, units of the result followed by those of each argument). `fewer_taken`, `smaller_pads` and
`new_shape` give the arguments of an operator some channels of which have gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from pquant_fx.graph.coupled_axes import Axes, CoupledAxes
from pquant_fx.graph.coupling_rules import Kept

__all__ = [
    "concatenation",
    "fewer_taken",
    "new_shape",
    "padding",
    "permutation",
    "reshaping",
    "selection",
    "smaller_pads",
]


def concatenation(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, parts = axes[0], node.args[0]
    assert result is not None
    assert isinstance(parts, tuple | list)
    along = int(node.args[1]) - 1 - len(result)  # type: ignore[arg-type]
    start = 0
    for part in parts:
        units = coupled.axes(part) if isinstance(part, Node) else None
        assert units is not None
        for axis in range(-len(result), 0):
            piece = result[axis][start : start + len(units[along])] if axis == along else result[axis]
            coupled.same(piece, units[axis], node)
        start += len(units[along])


def permutation(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    result, x, *_ = axes
    order: Any = node.args[1]
    assert x is not None
    for units, source in zip(result or (), order[1:]):
        coupled.same(units, x[source - 1], node)


def selection(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    """Consecutive indices; a stride over an axis holds it."""
    result, x, *_ = axes
    assert x is not None
    for units, source, taken in zip(result or (), x, _slices(node, [len(a) for a in x])):
        if taken.step == 1:
            coupled.same(units, source[taken.start : taken.start + len(units)], node)


def _slices(node: Node, sizes: Sequence[int]) -> list[range]:
    """The indices that are taken of each axis of a sample."""
    given: Any = node.args[1]
    index = [*given[1:], *(slice(None) for _ in range(len(sizes) + 1 - len(given)))]
    return [range(size)[part] for part, size in zip(index, sizes)]


def fewer_taken(node: Node, kept: Kept) -> tuple[Any, ...]:
    x, result = kept(node.all_input_nodes[0]), kept(node)
    index: Any = node.args[1]
    made = [index[0]]
    for part, taken, before, after in zip(index[1:], _slices(node, [len(a) for a in x]), x, result):
        start = int(before[: taken.start].sum())
        made.append(part if before.all() else slice(start, start + int(after.sum()), 1))
    return (node.args[0], tuple(made))


def padding(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    """What is added has no counterpart: it goes with what it is coupled with behind."""
    result, x, *_ = axes
    for axis, (units, source) in enumerate(zip(result or (), x or ())):
        front, back = _pads(node, axis, len(x or ()))
        inside = units[max(front, 0) : len(units) - max(back, 0)]
        coupled.same(inside, source[max(-front, 0) : len(source) - max(-back, 0)], node)


def _pads(node: Node, axis: int, rank: int) -> tuple[int, int]:
    """What is added before and behind that axis of a sample."""
    pads: Any = node.args[1]
    at = 2 * (rank - 1 - axis)
    return (int(pads[at]), int(pads[at + 1])) if at < len(pads) else (0, 0)


def smaller_pads(node: Node, kept: Kept) -> tuple[Any, ...]:
    x, result = kept(node.all_input_nodes[0]), kept(node)
    given: Any = node.args[1]
    pads = list(given)
    for axis, (before, after) in enumerate(zip(x, result)):
        front, back = _pads(node, axis, len(x))
        at = 2 * (len(x) - 1 - axis)
        if at < len(pads):
            added = int(after[:front].sum()) if front > 0 else -int(before[:-front].sum())
            behind = int(after[len(after) - back :].sum()) if back > 0 else -int(before[len(before) + back :].sum())
            pads[at : at + 2] = added, behind
    return (node.args[0], type(given)(pads), *node.args[2:])


def new_shape(node: Node, kept: Kept) -> tuple[Any, ...]:
    shape: Any = node.args[1]
    return (node.args[0], (shape[0], *(int(axis.sum()) for axis in kept(node))))


def reshaping(coupled: CoupledAxes, node: Node, axes: Sequence[Axes | None]) -> None:
    """Runs of axes with the same number of elements before and behind; of several axes that become one, one may shrink.

    (C, H, W) -> (C H W): channel c is the block of features c H W ... (c + 1) H W - 1. The first axis that nothing holds shrinks.
    """
    result, x, *_ = axes
    for before, behind in _runs(x or (), result or ()):
        if len(before) == len(behind) == 1:
            coupled.same(before[0], behind[0], node)
        elif len(before) == 1 or len(behind) == 1:
            many, flat = (behind, before[0]) if len(before) == 1 else (before, behind[0])
            free = next((n for n, units in enumerate(many) if coupled.is_free(units)), None)
            if free is not None:
                blocks = np.moveaxis(flat.reshape([len(units) for units in many]), free, 0).reshape(len(many[free]), -1)
                coupled.together(blocks, node)
                coupled.same(many[free], blocks[:, 0], node)


def _runs(before: Axes, behind: Axes) -> list[tuple[Axes, Axes]]:
    """The shortest runs of axes that hold the same elements; axes of size 1 do not matter."""
    left, right = ([units for units in axes if len(units) != 1] for axes in (before, behind))
    found: list[tuple[Axes, Axes]] = []
    while left and right:
        a, b = [left.pop(0)], [right.pop(0)]
        while (sizes := [int(np.prod([len(u) for u in side])) for side in (a, b)])[0] != sizes[1]:
            side, rest = (a, left) if sizes[0] < sizes[1] else (b, right)
            side.append(rest.pop(0))
        found.append((tuple(a), tuple(b)))
    return found
