"""The bits of a finished network: enclosed bits of constant codes, stored width of data, exact intervals of sums.

A compiled graph is counted as it is in evaluation and as it will be frozen: a quantizer that provably changes nothing is
looked through, because freezing removes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.estimate.bits import Bits, Format, Shape, Sign, Uncountable, aligned, constant_format, counts_sign
from pquant_fx.estimate.walk import Walk
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, op_of
from pquant_fx.graph.interval_quantizer import formats_of
from pquant_fx.graph.tables import lookup
from pquant_fx.graph.values import data_operands

__all__ = ["Exact"]


class Exact(Walk):
    """Bits as hardware has them, in float64, which holds every count exactly. formats: what `analyse(gm)` found."""

    def __init__(self, gm: GraphModule, formats: FormatMap, sign: Sign) -> None:
        super().__init__(gm, sign, torch.float64)
        self._map = formats

    def parameter_shape(self, node: Node) -> Shape:
        if node not in self._map.constants:
            raise Uncountable(node, f"'{node.name}' is not computed in evaluation")
        return tuple(self._map.constants[node].shape)

    # ---- parameters
    def parameter_bits(self, node: Node) -> Bits:
        """Enclosed bits of each code: a constant multiplier costs what lies between its first and its last bit."""
        magnitude, exact = self._constant(node)
        quantizer = self.modules.get(node)
        if not isinstance(quantizer, Quantizer):
            return Bits(magnitude, exact.k if self.sign == "always" else None)
        if not counts_sign(self.sign, quantizer):
            return Bits(magnitude)
        source: Any = node.args[0]
        k = quantizer.kif(self._map.constants[source])[0].to("cpu", self.dtype)
        return Bits(magnitude, aligned(k, magnitude.dim()) * (magnitude > 0))

    def parameter_format(self, node: Node) -> Format:
        return self._constant(node)[1]

    def _constant(self, node: Node) -> tuple[Tensor, Format]:
        if self._map.intervals.get(node) is None:
            raise Uncountable(node, self._map.reasons.get(node, f"'{node.name}' has no exact value"))
        return constant_format(self._map.constants[node].detach().cpu().double().numpy())

    # ---- data
    def quantized_bits(self, node: Node, quantizer: Quantizer) -> Bits:
        if self._is_removed(node):
            return self.bits(node.args[0])
        k, i, f = self.quantized_format(node, quantizer)
        magnitude = (i + f).clamp(min=0)
        if not counts_sign(self.sign, quantizer, data=True):
            return Bits(magnitude)
        return Bits(magnitude, k * (magnitude >= (1 if quantizer.overflow == "SAT_SYM" else 0)))

    def quantized_format(self, node: Node, quantizer: Quantizer) -> Format:
        if self._is_removed(node):
            return self.format(node.args[0])
        if self._map.intervals.get(node) is None:
            raise Uncountable(node, self._map.reasons.get(node, "the format was never set"))
        found = formats_of(quantizer, self.shape(node)[1:], data=True).compact()
        return Format.of(*(torch.from_numpy(np.expand_dims(a, 0).astype(np.float64)) for a in (found.k, found.i, found.f)))

    def computed_bits(self, node: Node) -> Bits:
        if node.target is F.relu and self._is_declared(node.args[0]):
            return Bits(self.bits(node.args[0]).magnitude)
        return self.computed_format(node).bits

    def computed_format(self, node: Node) -> Format:
        """The smallest format of each element, from the exact interval; of a declared format without its sign behind a ReLU."""
        if node.target is F.relu and self._is_declared(node.args[0]):
            x = self.format(node.args[0])
            return Format(torch.zeros_like(x.k), x.i, x.f)
        found = self._map.intervals.get(node)
        if found is None:
            raise Uncountable(node, self._map.reasons.get(node, f"'{node.name}' is on no grid"))
        return Format.of(*(torch.from_numpy(np.expand_dims(a, 0).astype(np.float64)) for a in found.formats()))

    def _is_removed(self, node: Node) -> bool:
        """Whether freezing removes the quantizer: it changes nothing, and declares no output's type."""
        facts = self._map.facts.get(node)
        return facts is not None and facts.is_identity and not self._is_returned(node)

    def _is_returned(self, node: Node) -> bool:
        return any(user.op == "output" or (self.source(user) is not user and self._is_returned(user)) for user in node.users)

    def _is_declared(self, value: Any) -> bool:
        """Whether quantizers declare the format of the value, with nothing but moves and ReLUs since."""
        node = self.source(value)
        if not isinstance(node, Node) or is_parameter_value(node):
            return False
        if isinstance(self.modules.get(node), Quantizer):
            return not self._is_removed(node) or self._is_declared(node.args[0])
        if node.target is lookup:
            return True
        op = op_of(node)
        moves = op is not None and (op.kind == "grid" or node.target is F.relu)
        return moves and all(self._is_declared(operand) for operand in data_operands(node))
