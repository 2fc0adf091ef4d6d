"""Dead channels in words: which layers got smaller, and through which chain of operators a dead unit is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from torch.fx import Node

from pquant_fx.graph.coupled_axes import CoupledAxes, Hold
from pquant_fx.graph.dead_channels import DeadChannels, constant_along
from pquant_fx.graph.dialect import op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.interval_codes import Ints
from pquant_fx.graph.removed_channels import HeldUnits, SmallerLayer

__all__ = ["held_units", "smaller_layers"]

Neighbours = dict[int, list[tuple[int, Node]]]


def smaller_layers(coupled: CoupledAxes, found: DeadChannels) -> list[SmallerLayer]:
    """Layers that lose outputs or inputs, in the order of the graph."""
    rows = []
    for node, outputs, inputs in _layers(coupled):
        gone = [tuple(np.flatnonzero(found.dead[units]).tolist()) for units in (outputs, inputs)]
        if any(gone):
            rows.append(SmallerLayer(_name(node), len(outputs), gone[0], len(inputs), gone[1]))
    return rows


def held_units(coupled: CoupledAxes, found: DeadChannels) -> list[HeldUnits]:
    """Outputs of layers that are one constant for every input and do not go, with what they share a chain and a reason."""
    grouped: dict[tuple[str, tuple[str, ...], str], list[int]] = {}
    blocking: dict[int, list[tuple[int, Hold]]] = {}
    for hold in found.holds:
        for unit in hold.units:
            blocking.setdefault(int(found.label[unit]), []).append((int(unit), hold))
    neighbours = _neighbours(coupled, found.label)
    for node, outputs, _ in _layers(coupled):
        axes = coupled.axes(node) or ()
        axis = next(n for n, units in enumerate(axes) if units is outputs)
        still = constant_along(coupled.formats, node, axis, len(outputs)) & ~found.dead[outputs]
        for index in np.flatnonzero(still):
            unit = int(outputs[index])
            label = int(found.label[unit])
            chain, hold = _chain(unit, node, neighbours(label), blocking[label])
            grouped.setdefault((_name(node), chain, hold.why), []).append(int(index))
    return [HeldUnits(layer, tuple(units), chain, why) for (layer, chain, why), units in grouped.items()]


def _layers(coupled: CoupledAxes) -> Iterator[tuple[Node, Ints, Ints]]:
    """Nodes that multiply data by constants, with the units of their outputs and inputs."""
    for node in coupled.gm.graph.nodes:
        op, constants = op_of(node), coupled.formats.constants
        if op is None or node in constants or not (op.kind == "weighted" or op.name == "matmul"):
            continue
        left, right = node.args[:2]
        result, x = coupled.axes(node), coupled.axes(right if left in constants else left)
        if (right not in constants and left not in constants) or not result or not x:
            continue
        axis = 0 if op.name.startswith("conv") else -2 if left in constants else -1
        yield node, result[axis], x[axis]


def _neighbours(coupled: CoupledAxes, label: Ints) -> Callable[[int], Neighbours]:
    """The members of a class with what they are coupled with directly, and the node that does it."""
    a, b, nodes = coupled.edges()
    order = np.argsort(label[a], kind="stable")
    keys = label[a][order]

    def of(wanted: int) -> Neighbours:
        found: Neighbours = {}
        for n in order[np.searchsorted(keys, wanted) : np.searchsorted(keys, wanted, "right")]:
            found.setdefault(int(a[n]), []).append((int(b[n]), nodes[n]))
            found.setdefault(int(b[n]), []).append((int(a[n]), nodes[n]))
        return found

    return of


def _chain(start: int, layer: Node, neighbours: Neighbours, blocking: list[tuple[int, Hold]]) -> tuple[tuple[str, ...], Hold]:
    """The shortest way from a unit of `layer` over coupled units to one that is held."""
    held: dict[int, Hold] = {}
    for unit, hold in blocking:
        held.setdefault(unit, hold)
    before: dict[int, tuple[int, Node]] = {}
    queue, seen = deque([start]), {start}
    while queue[0] not in held:
        current = queue.popleft()
        for unit, node in neighbours.get(current, ()):
            if unit not in seen:
                seen.add(unit)
                before[unit] = (current, node)
                queue.append(unit)
    at = queue[0]
    hold = held[at]
    names = [_name(hold.node)]
    while at != start:
        at, node = before[at]
        names.append(_name(node))
    names.append(_name(layer))
    return tuple(name for n, name in enumerate(reversed(names)) if n == 0 or name != names[len(names) - n]), hold


def _name(node: Node) -> str:
    if node.op == "get_attr":
        return str(node.target).removeprefix("pq.").removesuffix(".value")
    op = op_of(node)
    return info(node).label or node.name if op is not None and op.kind == "weighted" else node.name
