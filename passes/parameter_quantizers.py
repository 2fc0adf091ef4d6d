"""Quantizers of what the circuit holds: weights, biases, and the constants of products and sums.

A parameter read at several sites has one quantizer in each of its roles. A parameter that the user quantizes is left alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.config import Config, LayerSettings
from pquant_fx.graph.dialect import Mask, Op, Quantizer, is_parameter_value
from pquant_fx.graph.info import info
from pquant_fx.graph.rewriter import OWN, Rewriter, is_own_constant
from pquant_fx.graph.values import is_power_of_two
from pquant_fx.passes.quantizer_choice import bias_quantizer, weight_quantizer
from pquant_fx.passes.settings import own_path

__all__ = ["ParameterQuantizers"]


class ParameterQuantizers:
    """Inserts them, one operator at a time; knows which parameters have one already."""

    def __init__(self, rw: Rewriter, config: Config) -> None:
        self.rw = rw
        self.config = config
        self.done: dict[tuple[str, str], Node] = {}

    def layer(self, node: Node, op: Op, settings: LayerSettings) -> None:
        """Weight and bias of a layer."""
        weight, bias = node.args[1], node.args[2]
        if isinstance(weight, Node) and is_parameter_value(weight):
            self._quantize(node, 1, "weight", weight_quantizer(settings, self.config, info(weight).shape, op.channels))
        if isinstance(bias, Node):
            self._quantize(node, 2, "bias", bias_quantizer(settings, self.config, info(bias).shape))

    def rows(self, node: Node, op: Op, settings: LayerSettings) -> None:
        """The table of an embedding."""
        if isinstance(node.args[1], Node):
            self._quantize(node, 1, "weight", weight_quantizer(settings, self.config, info(node.args[1]).shape, op.channels))

    def factors(self, node: Node, settings: LayerSettings) -> None:
        """The constant factor of a product: a parameter such as a folded scale, or a number that was lifted.

        A number keeps its leading bits whatever format the weights have or learn: it was written down, not trained. The slopes of
        a PReLU share one format: small ones in finer formats would only widen the sums that they multiply.
        """
        for at, operand in _constant_operands(node):
            if is_own_constant(operand) and _selects(self.rw.attribute(operand)):
                continue
            own = replace(settings, weight_format=None, weight_quantizer="dynamic") if is_own_constant(operand) else settings
            axis = None if node.target is F.prelu else _only_axis(operand)
            self._quantize(node, at, "weight", weight_quantizer(own, self.config, info(operand).shape, axis))

    def addends(self, node: Node, settings: LayerSettings) -> None:
        """The constant term of a sum: rounded to the lsb of what it is added to."""
        for at, operand in _constant_operands(node):
            own = replace(settings, weight_quantizer="dynamic") if is_own_constant(operand) else settings
            self._quantize(node, at, "bias", bias_quantizer(own, self.config, info(operand).shape))

    def _quantize(self, node: Node, at: int, role: str, quantizer: Quantizer) -> None:
        """Quantize argument `at`; a parameter that has a quantizer in this role already takes that one."""
        source = node.args[at]
        assert isinstance(source, Node)
        if self.rw.module(source, Quantizer) is not None:
            return
        read = source.args[0] if self.rw.module(source, Mask) is not None else source  # a parameter has one mask, and one quantizer
        assert isinstance(read, Node)
        label = str(read.target).removeprefix(f"{OWN}.").removesuffix(".value") if read.op == "get_attr" else f"{own_path(node)}.{role}"
        key = (label, role)
        if read.op == "get_attr" and key in self.done:
            made = self.done[key]
        else:
            with self.rw.before(node):
                made = self.rw.call_module(self.rw.own(f"{label}_quantizer", quantizer), source)
            self.done[key] = made
        args = list(node.args)
        args[at] = made
        self.rw.set_args(node, *args, **node.kwargs)


def _constant_operands(node: Node) -> list[tuple[int, Node]]:
    """The operands of an arithmetic operator that are constants of the circuit and have to be rounded, with their positions."""
    found = [(at, a) for at, a in enumerate(node.args[:2]) if isinstance(a, Node) and is_parameter_value(a)]
    return [(at, a) for at, a in found if not is_power_of_two(a)]


def _selects(value: Tensor) -> bool:
    """Whether a constant holds nothing but 0 and 1: a choice, not a number."""
    return bool(((value == 0) | (value == 1)).all())


def _only_axis(node: Node) -> int | None:
    """The axis along which a constant holds more than one value, so that each gets a format; None where there are several."""
    axes = [a for a, size in enumerate(info(node).shape or ()) if size > 1]
    return axes[0] if len(axes) == 1 else None
