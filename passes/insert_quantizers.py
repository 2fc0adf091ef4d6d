"""insert_quantizers: every value that hardware computes with gets a fixed-point format.

    x                          ->  Quantizer(x)                                       network inputs
    F.conv2d(v, W, b)          ->  F.conv2d(Quantizer(v), Quantizer(W), Quantizer(b))  v only where it has no format yet
    F.relu(s)                  ->  Quantizer(F.relu(s))                                results of activations and tables

Quantizers belong to *values*, not to edges: a forked value is quantized once and all its users take the same one. What only
moves values (max pooling, reshape, concat, slices, padding) keeps their format. Sums keep their exact type until something
multiplies them, so a residual add needs no adapter: power-of-two grids align by a shift. What single consumers ask for is in
`requests`, weights and biases are in `parameter_quantizers`. Quantizers that the user placed stay, and their values get no other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from pquant_fx.config import Config, LayerSettings
from pquant_fx.graph.dialect import Op, Quantizer, is_parameter_value, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.operand_marks import format_group, takes_exact, takes_quantized
from pquant_fx.graph.placed import is_placed
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import (
    data_operands,
    is_data_quantizer,
    is_whole,
    non_negative,
    origin_of,
    output_of,
    quantized_source,
    result_of,
)
from pquant_fx.passes.parameter_quantizers import ParameterQuantizers
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.passes.quantizer_choice import data_quantizer
from pquant_fx.passes.requests import insert_requested
from pquant_fx.passes.settings import input_settings, own_path, settings_of
from pquant_fx.quantize.quantizers import IndexQuantizer

__all__ = ["InsertQuantizers"]

_MULTIPLIES = ("matmul", "mul", "div")
_ADDS = ("add", "sub", "maximum", "minimum")


@dataclass(frozen=True)
class InsertQuantizers:
    """Insert quantizers with the kinds, formats, widths and modes that the configuration gives to each layer and interface.

    Notes (PQ606) say where a consumer's request overruled the format of the layer that makes the value.
    """

    config: Config
    name: ClassVar[str] = "insert_quantizers"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        propagate_shapes(gm)  # of what passes made: formats have the shapes of their values
        work = _Insertion(gm, self.config)
        work.run()
        return work.rw.changed


class _Insertion:
    """One run of the pass: the rewriter, the configuration, and known signs."""

    def __init__(self, gm: GraphModule, config: Config) -> None:
        self.rw = Rewriter(gm)
        self.config = config
        self.signs: dict[Node, bool] = {}
        self.shared: dict[str, str] = {}
        self.parameters = ParameterQuantizers(self.rw, config)

    def run(self) -> None:
        graph = self.rw.graph
        inputs = [n for n in graph.nodes if n.op == "placeholder"]
        casts = insert_requested(self.rw, self.config, self.quantizer)
        for node in [n for n in graph.nodes if (op := op_of(n)) is not None and op.kind == "embedding"]:
            self.index(node)
        for node in inputs:
            self.input(node, casts)
        self.outputs()
        for node in list(graph.nodes):
            op = op_of(node)
            if op is not None and not is_parameter_value(node) and origin_of(node) is node:
                self.operator(node, op)

    def input(self, node: Node, casts: set[Node]) -> None:
        """An input has one format, of which consumers that want another take a cast."""
        settings = input_settings(self.config, node)
        if settings.quantize and settings.quantize_input and node.users and _is_float(node):
            self.value(node, settings, casts)

    def index(self, node: Node) -> None:
        """The numbers of an embedding's rows have a format by themselves: whole, and as many bits as there are rows."""
        x, table, *_ = node.args
        rows = (info(table).shape if isinstance(table, Node) else None) or (1,)
        if isinstance(x, Node) and not is_parameter_value(x) and settings_of(self.config, self.rw.gm, node).quantize:
            with self.rw.before(node):
                made = self.rw.call_module(self.rw.own(f"{own_path(node)}.input_quantizer", IndexQuantizer(rows[0])), x)
            self.rw.inherit(made, x)
            self.rw.redirect(node, x, made)

    def operator(self, node: Node, op: Op) -> None:
        settings = settings_of(self.config, self.rw.gm, node)
        if not settings.quantize:
            return
        multiplies = (op.kind in ("weighted", "table") or op.name in _MULTIPLIES) and not takes_exact(node)
        if settings.quantize_input and (multiplies or takes_quantized(node)):
            for operand in data_operands(node):
                self.data(operand)
        if op.kind == "weighted":
            self.parameters.layer(node, op, settings)
        elif op.kind == "embedding":
            self.parameters.rows(node, op, settings)
        elif op.name in (*_MULTIPLIES, "prelu"):
            self.parameters.factors(node, settings)
        elif op.name in _ADDS:
            self.parameters.addends(node, settings)
        results = op.kind in ("activation", "table") or format_group(node) is not None
        if results or (settings.quantize_output and op.kind != "grid"):
            self.data(result_of(node))

    def outputs(self) -> None:
        """The declared formats of outputs, by name or position; other outputs stay exact."""
        output = output_of(self.rw.gm)
        for name, node in output_names(self.rw.gm):
            if name in self.config.outputs and self.config.outputs[name].format is not None:
                settings = self.config.settings_for(name, "output", "output")
                with self.rw.after(node):
                    path = self.rw.own(f"{own_path(node)}.output_quantizer", self.quantizer(node, settings))
                    made = self.rw.call_module(path, node)
                self.rw.redirect(output, node, made)

    def data(self, node: Any) -> None:
        """Quantize a value where it has no format of its own yet; what only moves values passes the request on to them."""
        if not isinstance(node, Node) or is_parameter_value(node) or quantized_source(node) or _keeps_placed_grid(node):
            return
        if is_whole(node):
            for operand in data_operands(node):
                self.data(operand)
            return
        settings = settings_of(self.config, self.rw.gm, node)
        if settings.quantize:
            self.value(node, settings)

    def value(self, node: Node, settings: LayerSettings, casts: Collection[Node] = ()) -> None:
        """Let the users of `node` take the quantized value instead; those that quantize it themselves keep doing so: one rounding."""
        users = [u for u in node.users if not is_data_quantizer(u) or u in casts]
        if not users:
            return
        with self.rw.after(node):
            made = self.rw.call_module(self.path(node, settings), node)
        self.rw.inherit(made, node)
        for user in users:
            self.rw.redirect(user, node, made)

    def path(self, node: Node, settings: LayerSettings) -> str:
        """Where the quantizer of a value lives: its own, or that of its format group."""
        group = format_group(node)
        if group is None or group not in self.shared:
            made = self.rw.own(f"{own_path(node)}.quantizer", self.quantizer(node, settings))
            if group is None:
                return made
            self.shared[group] = made
        return self.shared[group]

    def quantizer(self, node: Node, settings: LayerSettings) -> Quantizer:
        return data_quantizer(settings, self.config, node, unsigned=non_negative(node, self.signs))


def _keeps_placed_grid(node: Node) -> bool:
    """Whether the value is what a quantizer of the user gave, moved or clipped at zero: on its grid, whatever that is."""
    if is_placed(node):
        return True
    op, operands = op_of(node), data_operands(node)
    return op is not None and (is_whole(node) or op.name == "relu") and bool(operands) and all(map(_keeps_placed_grid, operands))


def output_names(gm: GraphModule) -> list[tuple[str, Node]]:
    """What an output answers to: its index, and its key where `forward` returns a dict or a named tuple."""
    returned = output_of(gm).args[0]
    named = getattr(returned, "_asdict", dict)() or (returned if isinstance(returned, dict) else {})
    values = list(named.values()) or (list(returned) if isinstance(returned, tuple | list) else [returned])
    found = [(str(n), v) for n, v in enumerate(values)] + [(str(k), v) for k, v in named.items()]
    return [(name, v) for name, v in found if isinstance(v, Node)]


def _is_float(node: Node) -> bool:
    dtype = info(node).dtype
    return dtype is None or getattr(torch, dtype).is_floating_point
