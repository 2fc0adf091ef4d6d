"""From quantizers and constants through the graph: the bits of any value, found when asked and remembered for one count."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.estimate.bits import NOTHING, Bits, Format, Shape, Sign, Uncountable, aligned, constant_format, counts_sign
from pquant_fx.estimate.moves import MERGES, Move
from pquant_fx.estimate.reader import Reader
from pquant_fx.estimate.rules import Rule, rule_of
from pquant_fx.graph.analysis import sample_shape
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, is_parameter_value, module_of
from pquant_fx.graph.tables import lookup
from pquant_fx.graph.values import is_data_quantizer, is_whole

__all__ = ["Walk"]


class Walk(Reader):
    """Moves bits through the graph; what quantizers, parameters and sums have is the subclass's business.

    sign: who counts a sign bit. dtype: of all numbers.
    """

    def __init__(self, gm: GraphModule, sign: Sign, dtype: torch.dtype) -> None:
        self.gm, self.sign, self.dtype = gm, sign, dtype
        self.device = torch.device("cpu")
        self.modules: dict[Node, nn.Module | None] = {n: module_of(gm, n) for n in gm.graph.nodes if n.op == "call_module"}
        self.rules: dict[Node, Rule | None] = {n: rule_of(n) for n in gm.graph.nodes}
        self._bits: dict[Any, Bits] = {}
        self._formats: dict[Any, Format] = {}
        self._kept: dict[Any, Any] = {}
        self._parameters = {n for n in gm.graph.nodes if is_parameter_value(n)}

    # ---- what a kind of count knows by itself
    @abstractmethod
    def parameter_shape(self, node: Node) -> Shape:
        """The shape of a parameter value."""

    @abstractmethod
    def parameter_bits(self, node: Node) -> Bits: ...

    @abstractmethod
    def parameter_format(self, node: Node) -> Format: ...

    @abstractmethod
    def quantized_bits(self, node: Node, quantizer: Quantizer) -> Bits: ...

    @abstractmethod
    def quantized_format(self, node: Node, quantizer: Quantizer) -> Format: ...

    @abstractmethod
    def computed_bits(self, node: Node) -> Bits:
        """The bits of what an operator computes."""

    @abstractmethod
    def computed_format(self, node: Node) -> Format: ...

    # ---- what rules ask
    def shape(self, value: Any) -> Shape:
        known: Shape | None = self._kept.get(("shape", value))
        if known is None:
            known = self._kept["shape", value] = self._find_shape(value)
        return known

    def _find_shape(self, value: Any) -> Shape:
        if not isinstance(value, Node):
            return ()
        if value in self._parameters:
            return self.parameter_shape(value)
        sample = sample_shape(value)
        if sample is None:
            raise Uncountable(value, f"the shape of '{value.name}' is not known", "run `propagate_shapes` after the pass that made it")
        return (1, *sample)

    def bits(self, value: Any) -> Bits:
        known = self._bits.get(value)
        if known is None:
            known = self._bits[value] = self._find_bits(self.source(value))
        return known

    def format(self, value: Any) -> Format:
        known = self._formats.get(value)
        if known is None:
            known = self._formats[value] = self._find_format(self.source(value))
        return known

    def once(self, node: Node, make: Callable[[], Tensor]) -> Tensor:
        return self.keep(node, lambda: make().to(self.device, self.dtype))

    def is_constant(self, value: Any) -> bool:
        return not isinstance(value, Node) or value in self._parameters

    def power(self, node: Node) -> Tensor:
        return torch.log2(self.modules[node]())  # type: ignore[misc]

    def quantizer_behind(self, node: Node) -> Node | None:
        """The first one, with nothing but moves in between."""
        for user in node.users:
            if is_data_quantizer(user):
                return user
            if isinstance(self.modules.get(user), IDENTITIES) or is_whole(user):
                return self.quantizer_behind(user)
        return None

    # ---- the walk
    def source(self, value: Any) -> Any:
        """The value that `value` hands on unchanged in evaluation, or `value` itself."""
        while isinstance(value, Node) and isinstance(self.modules.get(value), IDENTITIES):
            value = value.args[0]
        return value

    def forget(self, structure: bool = False) -> None:
        """Start another count; structure: on another device."""
        self._bits.clear()
        self._formats.clear()
        if structure:
            self._kept.clear()

    def _find_bits(self, node: Any) -> Bits:
        if not isinstance(node, Node):
            magnitude, exact = self._number(node)
            return Bits(magnitude, exact.k if self.sign == "always" else None)
        if node in self._parameters:
            return self.parameter_bits(node)
        module = self.modules.get(node)
        if isinstance(module, Quantizer):
            return self.quantized_bits(node, module)
        move = self._move(node)
        if node.target is lookup:
            return self._of_table(node)[0]
        if move is None:
            return self.computed_bits(node)
        operands = [self.bits(value) for value in _operands(node)]
        filler = self._filler(node)
        signs = [torch.zeros_like(b.magnitude) if b.sign is None else b.sign for b in operands]
        sign = None if all(b.sign is None for b in operands) else self._moved(node, move, signs, filler[1])
        merges = MERGES.get(node.target)
        if merges is not None and merges(operands[0].magnitude, node.args):
            return Bits(self.format(node).bits.magnitude, sign)  # the union of formats, not the larger number of bits
        return Bits(self._moved(node, move, [b.magnitude for b in operands], filler[0]), sign)

    def _find_format(self, node: Any) -> Format:
        if not isinstance(node, Node):
            return self._number(node)[1]
        if node in self._parameters:
            return self.parameter_format(node)
        module = self.modules.get(node)
        if isinstance(module, Quantizer):
            return self.quantized_format(node, module)
        move = self._move(node)
        if node.target is lookup:
            return self._of_table(node)[1]
        if move is None:
            return self.computed_format(node)
        parts = zip(*(self.format(value) for value in _operands(node)))
        return Format(*(self._moved(node, move, t, filler) for t, filler in zip(parts, self._filler(node)[1:])))

    def _of_table(self, node: Node) -> tuple[Bits, Format]:
        """What the entries of a table were rounded to: the format that the quantizer behind it declared before it was frozen."""
        quantizer, rank = self.modules.get(node.args[1]), len(self.shape(node))  # type: ignore[arg-type]
        if not isinstance(quantizer, Quantizer):
            raise Uncountable(node, f"the entries of '{node.name}' have no quantizer")
        made = Format.of(*(aligned(t.to(self.device, self.dtype), rank) for t in quantizer.kif()))
        bits = made.bits
        return (bits if counts_sign(self.sign, quantizer, data=True) else Bits(bits.magnitude)), made

    def _move(self, node: Node) -> Move | None:
        rule = self.rules[node]
        if rule is None:
            raise Uncountable(node, f"'{node.name}' has no bits: a real number, or an opaque operator")
        return rule.move

    def _moved(self, node: Node, move: Move, tensors: Sequence[Tensor], filler: float) -> Tensor:
        return move(tensors, [self.shape(value) for value in _operands(node)], node.args, filler)

    def _filler(self, node: Node) -> tuple[float, float, float, float]:
        """Bits, k, i and f of the constant that the operator fills in."""
        value: Any = node.args[3] if node.target is F.pad and len(node.args) > 3 else None
        if not value:
            return 0.0, 0.0, NOTHING, NOTHING
        bits, exact = constant_format(value)
        return float(bits), float(exact.k), float(exact.i), float(exact.f)

    def _number(self, value: Any) -> tuple[Tensor, Format]:
        def made() -> tuple[Tensor, Format]:
            bits, exact = constant_format(value)
            return bits.to(self.device, self.dtype), Format(*(t.to(self.device, self.dtype) for t in exact))

        return self.keep(("number", value), made)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, until the structure is forgotten."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
        return found


def _operands(node: Node) -> Sequence[Any]:
    given: Any = node.args[0]
    return given if isinstance(given, tuple | list) else (given,)
