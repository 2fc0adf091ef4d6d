"""The bits that training sees: relu(i + f) of every quantizer, differentiable where a quantizer learns, without synchronisation.

What nobody learns (static formats, biases on the grid of an accumulator, weights of fixed width) and sums that no quantizer
rounds are measured by `refresh`, not in each step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.errors import CalibrationError
from pquant_fx.estimate.bits import Bits, Format, Shape, Sign, Uncountable, aligned, constant_format, counts_sign
from pquant_fx.estimate.walk import Walk
from pquant_fx.graph.constants import constant_values
from pquant_fx.graph.dialect import Mask, Quantizer, attribute_at

__all__ = ["Surrogate"]


Kept = Callable[[], Tensor | None]


class _Quantized(NamedTuple):
    """A quantizer and what is counted of it. kept: which weights a mask behind it keeps today; rank: of the value."""

    node: Node
    quantizer: Quantizer
    signed: bool
    kept: Kept | None
    rank: int

    def bits(self, magnitude: Tensor, sign: Tensor | None) -> Bits:
        if magnitude.dim() != self.rank or magnitude.dtype != torch.float32:
            magnitude = aligned(magnitude.float(), self.rank)
            sign = None if sign is None else aligned(sign.float(), self.rank)
        kept = _kept(self.kept)
        return Bits(magnitude, sign) if kept is None else Bits(magnitude * kept, None if sign is None else sign * kept)


def _learns(quantizer: Quantizer) -> bool:
    return bool(quantizer.bit_parameters) or next(quantizer.parameters(), None) is not None


def _kept(ask: Kept | None) -> Tensor | None:
    kept = None if ask is None else ask()
    return kept if kept is None else kept.float()


class Surrogate(Walk):
    """Bits as they are learned, in float32. live: whether anything was read that can change before the next `refresh`."""

    def __init__(self, gm: GraphModule, sign: Sign) -> None:
        super().__init__(gm, sign, torch.float32)
        self.live = False
        self._values: dict[Node, Tensor] = {}
        self._learned: dict[Node, _Quantized] = {}

    def refresh(self) -> None:
        """Measure again what nobody learns."""
        self.device = next((t.device for t in (*self.gm.parameters(), *self.gm.buffers())), self.device)
        self._values = {n: v for n, v in constant_values(self.gm).items() if isinstance(v, Tensor)}
        self._learned.clear()
        self.live = False
        self.forget(structure=True)

    def begin(self) -> None:
        """Start another count: read all learned bits, those of a kind at once."""
        self.forget()
        for quantizers, values in self.keep("kinds", self._kinds):
            found = type(quantizers[0]).bits_of(quantizers, [alike[0].signed for alike in values])
            for alike, (magnitude, sign) in zip(values, found):
                for quantized in alike:
                    self._bits[quantized.node] = quantized.bits(magnitude, sign)

    def _kinds(self) -> list[tuple[list[Quantizer], list[list[_Quantized]]]]:
        """Learned quantizers with the values that they round, by who computes their bits."""
        kinds: dict[Any, dict[Quantizer, list[_Quantized]]] = {}
        for quantized in self._learned.values():
            members = kinds.setdefault(type(quantized.quantizer).bits_of.__func__, {})  # type: ignore[attr-defined]
            members.setdefault(quantized.quantizer, []).append(quantized)
        return [(list(members), list(members.values())) for members in kinds.values()]

    # ---- quantizers
    def _read(self, node: Node, quantizer: Quantizer, signed: bool, value: Tensor | None = None, kept: Kept | None = None) -> Bits:
        """What the quantizer at `node` counts; value: the parameter that it rounds, kept: what a mask leaves of it."""
        quantized = _Quantized(node, quantizer, signed, kept, len(self.shape(node)))
        if not _learns(quantizer):
            found = self.keep(("bits", node), lambda: self._measured(quantized, value))
            self.live = self.live or kept is not None
            return quantized.bits(*found)
        self.live = True
        self._learned[node] = quantized
        return quantized.bits(*type(quantizer).bits_of([quantizer], [signed])[0])

    def _measured(self, quantized: _Quantized, value: Tensor | None) -> tuple[Tensor, Tensor | None]:
        node, quantizer = quantized.node, quantized.quantizer
        sign = self._asked(node, quantizer.sign_bits, value) if quantized.signed else None
        return self._asked(node, quantizer.magnitude_bits, value), sign

    def _format_of(self, node: Node, quantizer: Quantizer, value: Tensor | None = None) -> Format:
        def made() -> Format:
            rank = len(self.shape(node))
            return Format(*(aligned(t.to(self.dtype), rank) for t in self._asked(node, quantizer.kif, value)))

        if not _learns(quantizer):
            known: Format = self.keep(("format", node), made)
            return known
        self.live = True
        return made()

    def _asked(self, node: Node, ask: Callable[[Tensor | None], Any], value: Tensor | None) -> Any:
        try:
            return ask(value)
        except CalibrationError:  # it lets its value pass
            raise Uncountable(node, f"the format of '{node.name}' was never set", "calibrate the model, or set a format") from None

    def quantized_bits(self, node: Node, quantizer: Quantizer) -> Bits:
        return self._read(node, quantizer, counts_sign(self.sign, quantizer, data=True))

    def quantized_format(self, node: Node, quantizer: Quantizer) -> Format:
        return Format.of(*self._format_of(node, quantizer))

    # ---- parameters
    def parameter_shape(self, node: Node) -> Shape:
        if node not in self._values:
            raise Uncountable(node, f"'{node.name}' is not computed in evaluation")
        return tuple(self._values[node].shape)

    def parameter_bits(self, node: Node) -> Bits:
        quantizer = self.modules.get(node)
        if not isinstance(quantizer, Quantizer):
            magnitude, exact = self._constant(node)
            return Bits(magnitude, exact.k if self.sign == "always" else None)
        return self._read(node, quantizer, counts_sign(self.sign, quantizer), self._rounded_by(node), self._kept_behind(node))

    def parameter_format(self, node: Node) -> Format:
        quantizer = self.modules.get(node)
        if not isinstance(quantizer, Quantizer):
            return self._constant(node)[1]
        kept = _kept(self._kept_behind(node))
        self.live = self.live or kept is not None
        return Format.of(*self._format_of(node, quantizer, self._rounded_by(node)), kept)

    def _rounded_by(self, node: Node) -> Tensor:
        source = node.args[0]
        assert isinstance(source, Node)
        return self._values[source]

    def _constant(self, node: Node) -> tuple[Tensor, Format]:
        """A constant without a quantizer: its own digits. Trained numbers without a format have no count."""

        def made() -> tuple[Tensor, Format]:
            if self._is_trained(node):
                raise Uncountable(node, f"'{node.name}' is a parameter that no quantizer rounds", "let its layer be quantized")
            bits, exact = constant_format(self._values[node].detach().cpu().double().numpy())
            return bits.to(self.device, self.dtype), Format(*(t.to(self.device, self.dtype) for t in exact))

        known: tuple[Tensor, Format] = self.keep(("constant", node), made)
        return known

    def _is_trained(self, node: Node) -> bool:
        if node.op == "get_attr":
            return isinstance(attribute_at(self.gm, str(node.target)), nn.Parameter)
        return any(self._is_trained(used) for used in node.all_input_nodes)

    def _kept_behind(self, node: Node) -> Kept | None:
        """What the mask of a weight keeps; scales between it and the quantizer keep zeros."""
        source: Any = node.args[0]
        while isinstance(source, Node):
            module = self.modules.get(source)
            if isinstance(module, Mask):
                return partial(self._kept_by, module, str(source.all_input_nodes[0].target))
            if source.target is not operator.mul and not isinstance(module, Quantizer):
                return None
            source = source.args[0]
        return None

    def _kept_by(self, mask: Mask, weight: str) -> Tensor | None:
        return mask.keep(attribute_at(self.gm, weight))

    # ---- sums
    def computed_bits(self, node: Node) -> Bits:
        return Bits(self.bits(node.args[0]).magnitude) if node.target is F.relu else self.format(node).bits

    def computed_format(self, node: Node) -> Format:
        """Exact growth, measured: an adder is so small beside a multiplier that its gradient is not worth the time of each step."""
        rule, live = self.rules[node], self.live
        if rule is None or rule.grow is None:
            raise Uncountable(node, f"the result of '{node.name}' is on no grid")
        grow = rule.grow
        with torch.no_grad():
            found: Format = self.keep(("grown", node), lambda: grow(self, node, *node.args))
        self.live = live
        return found
