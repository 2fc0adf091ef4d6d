"""insert_quantizers: every value that hardware computes with gets a fixed-point format.

    x                          ->  Quantizer(x)                                       network inputs
    F.conv2d(v, W, b)          ->  F.conv2d(Quantizer(v), Quantizer(W), Quantizer(b))  v only where it has no format yet
    F.relu(s)                  ->  Quantizer(F.relu(s))                                results of activations

Quantizers belong to *values*, not to edges: a forked value is quantized once and all its users take the same one. What only
moves values (max pooling, reshape, concat, slices, padding) keeps their format. Sums keep their exact type until something
multiplies them, so a residual add needs no adapter: power-of-two grids align by a shift. A parameter read at several sites
has one quantizer. A bias is rounded to the lsb of the accumulator and never saturates.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from pquant_fx.config import Config, LayerSettings
from pquant_fx.formats import FixedFormat
from pquant_fx.graph.dialect import Mask, Op, Quantizer, is_parameter_value, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.rewriter import OWN, Rewriter, is_own_constant
from pquant_fx.graph.values import data_operands, is_data_quantizer, non_negative, output_of, quantized_source
from pquant_fx.passes.settings import own_path, settings_of
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer, DynamicQuantizer, FixedQuantizer

__all__ = ["InsertQuantizers"]

_MULTIPLIES = ("matmul", "mul", "div")
_TABLES = ("table",)
_ADDS = ("add", "sub", "maximum", "minimum")


@dataclass(frozen=True)
class InsertQuantizers:
    """Insert quantizers with the formats, widths and modes that the configuration gives to each layer and interface."""

    config: Config
    name: ClassVar[str] = "insert_quantizers"
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        work = _Insertion(gm, self.config)
        for node in [n for n in gm.graph.nodes if n.op == "placeholder"]:
            work.input(node)
        work.outputs()
        for node in list(gm.graph.nodes):
            op = op_of(node)
            if op is not None and not is_parameter_value(node):
                work.operator(node, op)
        return work.rw.changed


class _Insertion:
    """One run of the pass: the rewriter, the configuration, the parameters that have a quantizer already, and known signs."""

    def __init__(self, gm: GraphModule, config: Config) -> None:
        self.rw = Rewriter(gm)
        self.config = config
        self.done: dict[tuple[str, str], Node] = {}
        self.signs: dict[Node, bool] = {}

    def input(self, node: Node) -> None:
        settings = self.config.settings_for(str(node.target), "input", "placeholder")
        if settings.quantize and node.users and _is_float(node):
            self.value(node, self.data_quantizer(node, settings))

    def operator(self, node: Node, op: Op) -> None:
        settings = settings_of(self.config, self.rw.gm, node)
        if not settings.quantize:
            return
        if op.kind == "weighted":
            self.data(node.args[0])
            self.weight(node, settings)
            self.bias(node, settings)
        elif op.name in _MULTIPLIES:
            for operand in data_operands(node):
                self.data(operand)
            self.constants(node, settings)
        elif op.name in _ADDS:
            self.addends(node, settings)
        elif op.kind in _TABLES:
            self.data(node.args[0])
        if op.kind == "activation" or op.kind in _TABLES:
            self.data(node)

    def outputs(self) -> None:
        """The declared formats of outputs, by name or position; other outputs stay exact."""
        output = output_of(self.rw.gm)
        for name, node in output_names(self.rw.gm):
            if name in self.config.outputs and self.config.outputs[name].format is not None:
                settings = self.config.settings_for(name, "output", "output")
                with self.rw.after(node):
                    path = self.rw.own(f"{own_path(node)}.output_quantizer", self.data_quantizer(node, settings))
                    made = self.rw.call_module(path, node)
                self.rw.redirect(output, node, made)

    # ---- data
    def data(self, node: Any) -> None:
        """Quantize a value where it has no format of its own yet; what only moves values passes the request on to them."""
        if not isinstance(node, Node) or quantized_source(node) or is_parameter_value(node):
            return
        if node.users and all(is_data_quantizer(user) for user in node.users):
            return  # an output with a declared format: one rounding, not two
        op = op_of(node)
        if op is not None and op.kind == "grid" and not _is_part(node):
            for operand in data_operands(node):
                self.data(operand)
            return
        settings = settings_of(self.config, self.rw.gm, node)
        if settings.quantize:
            self.value(node, self.data_quantizer(node, settings))

    def value(self, node: Node, quantizer: Quantizer) -> None:
        """Let every user of `node` take the quantized value instead."""
        users = list(node.users)
        with self.rw.after(node):
            made = self.rw.call_module(self.rw.own(f"{own_path(node)}.quantizer", quantizer), node)
        self.rw.inherit(made, node)
        for user in users:
            self.rw.redirect(user, node, made)

    def data_quantizer(self, node: Node, settings: LayerSettings) -> Quantizer:
        return data_quantizer(settings, self.config, unsigned=non_negative(node, self.signs))

    # ---- parameters
    def weight(self, node: Node, settings: LayerSettings) -> None:
        weight = node.args[1]
        if isinstance(weight, Node) and is_parameter_value(weight):
            self.parameter(node, 1, "weight", weight_quantizer(settings, axis=0))

    def bias(self, node: Node, settings: LayerSettings) -> None:
        if isinstance(node.args[2], Node):
            self.parameter(node, 2, "bias", bias_quantizer(settings))

    def constants(self, node: Node, settings: LayerSettings) -> None:
        """The constant factor of a product: a parameter such as a folded scale, or a number that was lifted.

        A number keeps its leading bits whatever format the weights have: it was written down, not trained into that format.
        """
        for at, operand in _constant_operands(node):
            own = replace(settings, weight_format=None) if is_own_constant(operand) else settings
            self.parameter(node, at, "weight", weight_quantizer(own, _only_axis(operand)))

    def addends(self, node: Node, settings: LayerSettings) -> None:
        """The constant term of a sum: rounded to the lsb of what it is added to."""
        for at, _ in _constant_operands(node):
            self.parameter(node, at, "bias", bias_quantizer(settings))

    def parameter(self, node: Node, at: int, role: str, quantizer: Quantizer) -> None:
        """Quantize argument `at`; a parameter that has a quantizer in this role already takes that one."""
        source = node.args[at]
        assert isinstance(source, Node)
        if self.rw.module(source, Quantizer) is not None:
            return
        read = source.args[0] if self.rw.module(source, Mask) is not None else source  # a parameter has one mask, and one quantizer
        assert isinstance(read, Node)
        label = str(read.target).removeprefix(f"{OWN}.").removesuffix(".value") if read.op == "get_attr" else f"{own_path(node)}.{role}"
        key = (label, role)
        if source.op != "call_function" and key in self.done:
            made = self.done[key]
        else:
            with self.rw.before(node):
                made = self.rw.call_module(self.rw.own(f"{label}_quantizer", quantizer), source)
            self.done[key] = made
        args = list(node.args)
        args[at] = made
        self.rw.set_args(node, *args, **node.kwargs)


def data_quantizer(settings: LayerSettings, config: Config, *, unsigned: bool) -> Quantizer:
    """The quantizer of a data value: a given format, or a width whose format calibration finds.

    unsigned: the value can not be negative, so that the format needs no sign bit.
    """
    modes = (settings.data_rounding, settings.data_overflow)
    if settings.data_format is not None:
        return FixedQuantizer(*_kif(settings.data_format), *modes)
    return CalibratedQuantizer(
        settings.data_bits,
        non_negative=unsigned,
        rounding=modes[0],
        overflow=modes[1],
        method=config.calibration.method,
        percentile=config.calibration.percentile,
        safety_bits=config.calibration.safety(settings.data_overflow),
    )


def weight_quantizer(settings: LayerSettings, axis: int | None) -> Quantizer:
    """The quantizer of a weight: a given format, or a width whose format follows the weights' range."""
    modes = (settings.weight_rounding, settings.weight_overflow)
    if settings.weight_format is not None:
        return FixedQuantizer(*_kif(settings.weight_format), *modes)
    return DynamicQuantizer(settings.weight_bits, axis if settings.granularity == "per_channel" else None, *modes)


def bias_quantizer(settings: LayerSettings) -> Quantizer:
    """The quantizer of a bias: a given format, or the grid of the accumulator."""
    if settings.bias_format is not None:
        return FixedQuantizer(*_kif(settings.bias_format), settings.weight_rounding, settings.weight_overflow)
    return AccumulatorQuantizer(rounding=settings.weight_rounding)


def _kif(fmt: FixedFormat) -> tuple[int, int, int]:
    return fmt.k, fmt.i, fmt.f


def output_names(gm: GraphModule) -> list[tuple[str, Node]]:
    """What an output answers to: its index, and its key where `forward` returns a dict or a named tuple."""
    returned = output_of(gm).args[0]
    named = getattr(returned, "_asdict", dict)() or (returned if isinstance(returned, dict) else {})
    values = list(named.values()) or (list(returned) if isinstance(returned, tuple | list) else [returned])
    found = [(str(n), v) for n, v in enumerate(values)] + [(str(k), v) for k, v in named.items()]
    return [(name, v) for name, v in found if isinstance(v, Node)]


def _is_part(node: Node) -> bool:
    """Whether the value is one of several that an opaque call returned."""
    return node.target is operator.getitem and not isinstance(node.args[1], tuple)


def _constant_operands(node: Node) -> list[tuple[int, Node]]:
    """The operands of an arithmetic operator that are constants of the circuit, with their positions."""
    return [(at, a) for at, a in enumerate(node.args[:2]) if isinstance(a, Node) and is_parameter_value(a)]


def _only_axis(node: Node) -> int | None:
    """The axis along which a constant holds more than one value, so that each gets a format; None where there are several."""
    axes = [a for a, size in enumerate(info(node).shape or ()) if size > 1]
    return axes[0] if len(axes) == 1 else None


def _is_float(node: Node) -> bool:
    dtype = info(node).dtype
    return dtype is None or getattr(torch, dtype).is_floating_point
