"""What removing dead channels did, layer by layer, and which dead units had to stay: `FrozenModel.removed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import GraphModule

__all__ = ["HeldUnits", "RemovedChannels", "SmallerLayer", "record", "removed_channels"]

_KEY = "pquant_fx.removed"


@dataclass(frozen=True)
class SmallerLayer:
    """A layer that lost channels. layer: module path (with call site where it is not the first), or the node's name.

    outputs, inputs: how many channels there were; removed_outputs, removed_inputs: which of them are gone.
    """

    layer: str
    outputs: int
    removed_outputs: tuple[int, ...]
    inputs: int
    removed_inputs: tuple[int, ...]

    def before(self, earlier: SmallerLayer) -> SmallerLayer:
        """Both removals as one, in the numbers that channels had before `earlier`."""
        outputs = (*earlier.removed_outputs, *_numbers(earlier.outputs, earlier.removed_outputs, self.removed_outputs))
        inputs = (*earlier.removed_inputs, *_numbers(earlier.inputs, earlier.removed_inputs, self.removed_inputs))
        return SmallerLayer(self.layer, earlier.outputs, tuple(sorted(outputs)), earlier.inputs, tuple(sorted(inputs)))


@dataclass(frozen=True)
class HeldUnits:
    """Outputs of `layer` that are constant and stay all the same, in the numbers that they had before anything was removed.

    chain: from the layer through what is coupled to what holds them; why: what that does.
    """

    layer: str
    units: tuple[int, ...]
    chain: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        units = ", ".join(map(str, self.units[:8])) + (f" and {len(self.units) - 8} more" if len(self.units) > 8 else "")
        return f"{self.layer} [{units}]: {' -> '.join(self.chain)} {self.why}"


@dataclass(frozen=True)
class RemovedChannels:
    """Layers that got smaller, in the order of the graph, and dead units that stayed."""

    layers: tuple[SmallerLayer, ...] = ()
    held: tuple[HeldUnits, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.layers)

    def __str__(self) -> str:
        if not self.layers and not self.held:
            return "no dead channels"
        width = max((len(row.layer) for row in self.layers), default=0)
        lines = [f"{'removed':{width}}  outputs      inputs"] if self.layers else ["no channels removed"]
        lines += [
            f"{row.layer:{width}}  {_change(row.outputs, row.removed_outputs):11}  {_change(row.inputs, row.removed_inputs)}".rstrip()
            for row in self.layers
        ]
        if self.held:
            lines += ["dead, but held", *map(str, self.held)]
        return "\n".join(lines)


def record(gm: GraphModule, layers: Sequence[SmallerLayer], held: Sequence[HeldUnits]) -> None:
    """Keep with the graph what a removal did; after an earlier one, as part of one removal. One that did nothing adds nothing."""
    known = removed_channels(gm)
    if known.layers and not layers:
        return
    earlier = {row.layer: row for row in known.layers}
    still = [_renumbered(units, earlier.get(units.layer)) for units in held]
    for row in layers:
        earlier[row.layer] = row.before(earlier[row.layer]) if row.layer in earlier else row
    gm.meta[_KEY] = RemovedChannels(tuple(earlier.values()), tuple(still))


def removed_channels(gm: GraphModule) -> RemovedChannels:
    """What was removed from the graph so far."""
    found: RemovedChannels = gm.meta.get(_KEY, RemovedChannels())
    return found


def _renumbered(held: HeldUnits, earlier: SmallerLayer | None) -> HeldUnits:
    if earlier is None:
        return held
    return replace(held, units=_numbers(earlier.outputs, earlier.removed_outputs, held.units))


def _numbers(size: int, gone: tuple[int, ...], indices: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of channels, given by index, before those in `gone` went."""
    stayed = sorted(set(range(size)) - set(gone))
    return tuple(stayed[index] for index in indices)


def _change(size: int, gone: tuple[int, ...]) -> str:
    return f"{size} -> {size - len(gone)}" if gone else str(size)
