"""remove_dead_channels: what is zero for every input leaves the graph, and everything that is coupled to it.

    y = F.conv2d(x, W (16, 8, 3, 3), b) -> q -> F.relu -> F.conv2d(y, V (32, 16, 3, 3))      rows 3 and 7 of W and b are zero
    ->   W (14, 8, 3, 3), b (14), formats of q for 14 channels, V (32, 14, 3, 3)

Also units that nobody reads, and units that are one constant c for every input where their readers' biases can take V c (not
through padded borders, which do not see it). Channels are followed through joins, concatenations, slices, pads, depthwise
and grouped layers and blocks of flattened features (see `graph.coupling`); a channel of a residual stream goes when all branches
agree. Inputs and outputs of the network keep their shapes. Every value that stays keeps every bit, so results do; a sum that
is returned without a quantizer may have a coarser lsb once the weights that needed the finest one are gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.coupled_axes import Axes, Contraction, CoupledAxes
from pquant_fx.graph.coupling import couple, coupling_of
from pquant_fx.graph.coupling_rules import group_count
from pquant_fx.graph.dead_channels import DeadChannels, dead_channels
from pquant_fx.graph.dead_reasons import held_units, smaller_layers
from pquant_fx.graph.dialect import Quantizer, attribute_at, module_of
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.intervals import Interval, align, constant
from pquant_fx.graph.removed_channels import record
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.settings import own_path
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, FixedQuantizer

__all__ = ["RemoveDeadChannels", "remove_dead_channels"]

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class RemoveDeadChannels:
    """Remove dead channels from a graph of constants and static quantizers; what was removed is in `removed_channels(gm)`.

    A graph that is not frozen, or that has no exact meaning, stays as it is.
    """

    name: ClassVar[str] = "remove_dead_channels"
    exact: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("bake_weights",)

    def __call__(self, gm: GraphModule) -> bool:
        quantizers = [m for n in gm.graph.nodes if isinstance(m := module_of(gm, n), Quantizer)]
        if any(type(q) is not FixedQuantizer or not q.calibrated for q in quantizers):
            return False
        rw = Rewriter(gm)
        while _remove(rw):
            pass
        return rw.changed


remove_dead_channels = RemoveDeadChannels()


def _remove(rw: Rewriter) -> bool:
    """Remove what is dead; returns whether more may be now, because a layer of groups has become one of a single group."""
    formats = analyse(rw.gm)
    if formats.problems or formats.raw:
        return False
    coupled = couple(rw.gm, formats)
    found = dead_channels(coupled)
    record(rw.gm, smaller_layers(coupled, found), held_units(coupled, found))
    grouped = [n for n in rw.graph.nodes if group_count(n) > 1]
    if found.dead.any():
        _Removal(rw, coupled, found).run()
    return any(group_count(n) == 1 for n in grouped)


@dataclass(frozen=True, eq=False)
class _Removal:
    rw: Rewriter
    coupled: CoupledAxes
    found: DeadChannels

    def run(self) -> None:
        biases = {contraction.node: self._bias(contraction, taken) for contraction, taken in self.found.folded}
        nodes = list(self.rw.graph.nodes)
        for node in {str(n.target): n for n in nodes if n.op in ("get_attr", "call_module")}.values():
            quantizer = self.rw.module(node, FixedQuantizer)
            if quantizer is not None:
                self._quantizer(node, quantizer)
            elif node.op == "get_attr":
                self._constant(node)
        for node in nodes:
            self._arguments(node)
            self._shape(node)
        for node, bias in biases.items():
            self._fold(node, bias)
        self.rw.sweep()

    def _kept(self, node: Node) -> tuple[Bools, ...]:
        return self._of(self.coupled.axes(node) or ())

    def _of(self, axes: Axes) -> tuple[Bools, ...]:
        return tuple(~self.found.dead[units] for units in axes)

    # ---- constants and formats
    def _constant(self, node: Node) -> None:
        kept = self._kept(node)
        if _whole(kept):
            return
        holder = nn.Module()
        holder.register_buffer("value", _taken(attribute_at(self.rw.gm, str(node.target)), kept))
        self.rw.exchange(str(node.target).removesuffix(".value"), holder)

    def _quantizer(self, node: Node, quantizer: FixedQuantizer) -> None:
        kept = self._of(self.coupled.format_axes(node, quantizer))
        if _whole(kept):
            return
        k, i, f = (_taken(part, kept) for part in quantizer.kif())
        made = FixedQuantizer(k, i, f, quantizer.rounding, quantizer.overflow, saturates=quantizer.saturates)
        self.rw.exchange(str(node.target), made.eval())

    # ---- operators
    def _arguments(self, node: Node) -> None:
        row = coupling_of(node)
        values = [node, *node.all_input_nodes]
        if row is None or row.resized is None or node in self.coupled.formats.constants or all(_whole(self._kept(n)) for n in values):
            return
        arguments = row.resized(node, self._kept)
        if arguments != node.args:
            self.rw.set_args(node, *arguments)

    def _shape(self, node: Node) -> None:
        """What people and later passes read as the node's shape."""
        shape, kept = info(node).shape, self._kept(node)
        if shape is None or _whole(kept):
            return
        sizes = [int(axis.sum()) for axis in kept]
        set_info(node, info(node).with_shape((*shape[: len(shape) - len(sizes)], *sizes)))

    # ---- constants that move on
    def _bias(self, contraction: Contraction, taken: Bools) -> Interval:
        """The bias of all outputs and, of the given indices of x, weight times constant, which is the same at every position."""
        formats = self.coupled.formats
        assert contraction.w is not None
        (x_node, axis), w_node = contraction.x, contraction.w[0]
        x, w = formats[x_node], formats[w_node]
        codes = np.moveaxis(x.low, axis, 0).reshape(x.shape[axis], -1)[:, 0]
        weights = w.low.reshape(w.shape[0], w.shape[1], -1).sum(axis=2)
        added = (weights[:, taken] * codes[taken]).sum(axis=1)
        moved = Interval(w.f + x.f, added, added)
        bias = contraction.node.args[2]
        if not isinstance(bias, Node):
            return moved
        moved, given = align(moved, formats[bias])
        return Interval(moved.f, moved.low + given.low, moved.low + given.low)

    def _fold(self, node: Node, bias: Interval) -> None:
        kept = self._kept(node)[-1 if node.target is F.linear else 0]
        real = np.ldexp(bias.low[kept].astype(np.float64), -bias.f)
        exact = bool((real.astype(np.float32) == real).all())
        device = self.coupled.formats.constants[node.args[1]].device  # type: ignore[index]
        value = torch.from_numpy(real).to(device, torch.float32 if exact else torch.float64)
        quantizer = AccumulatorQuantizer(float(constant(real).f), calibrated=True).frozen(value)
        with self.rw.before(node):
            held = self.rw.constant(f"{own_path(node)}.bias", value)
            made = self.rw.call_module(self.rw.own(f"{own_path(node)}.bias_quantizer", quantizer), held)
        for new in (held, made):
            set_info(new, info(node).with_shape(tuple(value.shape)))
        self.rw.set_args(node, *node.args[:2], made, *node.args[3:])


def _whole(kept: tuple[Bools, ...]) -> bool:
    return all(axis.all() for axis in kept)


def _taken(value: Tensor, kept: tuple[Bools, ...]) -> Tensor:
    """What stays of a tensor along each axis; axes of size 1 that stand for all indices stay."""
    for axis, which in enumerate(kept):
        if not which.all():
            value = value.index_select(axis, torch.from_numpy(np.flatnonzero(which)).to(value.device))
    return value.detach().clone()
