"""What single consumers ask of the values they take (`input_format`, `input_bits`).

    v = relu(u); fc1(v); fc2(v), where fc2 asks for 6 bits   ->   fc1(Quantizer8(v)); fc2(Quantizer6(v))

A consumer's request wins over the format of the layer that makes the value. One consumer: its request defines the value's
quantizer. Several: those that ask for the same share one quantizer on the unquantized value, so that nothing is rounded
twice; the others keep the value's own. Grid operators in between are repeated for the request: moving values is free. An input
of the network arrives in one format, so unless all its consumers ask for the same they take casts of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from pquant_fx.config import Config, LayerSettings
from pquant_fx.formats import FixedFormat
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import data_operands, is_data_quantizer, is_whole, origin_of, quantized_source
from pquant_fx.passes.settings import input_settings, own_path, settings_of

__all__ = ["insert_requested"]

MakeQuantizer = Callable[[Node, LayerSettings], Quantizer]


@dataclass(frozen=True)
class Request:
    """A format, or a width whose format is found as that of the value's own quantizer would be; modes of the consumer."""

    format: FixedFormat | None
    bits: int
    rounding: str
    overflow: str

    @classmethod
    def of(cls, settings: LayerSettings) -> Request | None:
        """What a consumer with these settings asks for, None when it takes values as they come."""
        bits = settings.input_format.width if settings.input_format is not None else settings.input_bits
        if bits is None or not (settings.quantize and settings.quantize_input):
            return None
        return cls(settings.input_format, bits, settings.data_rounding, settings.data_overflow)

    def applied(self, settings: LayerSettings) -> LayerSettings:
        changes: dict[str, Any] = {"data_rounding": self.rounding, "data_overflow": self.overflow}
        return replace(settings, data_format=self.format, data_bits=self.bits, **changes)

    def contradicts(self, settings: LayerSettings) -> bool:
        """Whether the place that makes the value would have given it another format."""
        if self.format is not None and settings.data_format is not None:
            return self.format != settings.data_format
        return self.bits != settings.data_bits

    def __str__(self) -> str:
        return str(self.format) if self.format is not None else f"{self.bits} bits"


def insert_requested(rw: Rewriter, config: Config, make: MakeQuantizer) -> set[Node]:
    """Give every consumer that asks for it its quantizer, and note (PQ606) what this overruled.

    Returns the quantizers on inputs of the network that are casts: the input's own quantizer belongs before them.
    """
    return _Requests(rw, config, make).run()


class _Requests:
    def __init__(self, rw: Rewriter, config: Config, make: MakeQuantizer) -> None:
        self.rw, self.config, self.make = rw, config, make
        self.asked = {n: request for n in rw.graph.nodes if (request := self._request(n)) is not None}
        self.made: dict[tuple[Node, Request], Node] = {}
        self.copies: list[tuple[Node, Node]] = []
        self.casts: set[Node] = set()

    def run(self) -> set[Node]:
        agreed = {n: self._takers(n) for n in self.rw.graph.nodes if n.op == "placeholder"}
        self.alone = {n for n, takers in agreed.items() if len(takers) == 1 and not input_settings(self.config, n).data_format}
        for consumer, request in self.asked.items():
            for operand in data_operands(consumer):
                if not quantized_source(operand):
                    self.rw.redirect(consumer, operand, self._quantized(operand, request, consumer))
        for original, copy in reversed(self.copies):
            self.rw.erase_if_dead(original)
            if not original.users:
                self.rw.rename(copy, original.name)
        return self.casts

    def _request(self, node: Node) -> Request | None:
        op = op_of(node)
        if op is None or op.kind in ("grid", "embedding") or is_parameter_value(node) or origin_of(node) is not node:
            return None
        return Request.of(settings_of(self.config, self.rw.gm, node))

    def _takers(self, node: Node) -> set[Request | None]:
        """What those ask for who take the value as it is or moved; None: somebody takes it as it comes."""
        found: set[Request | None] = set()
        stack, seen = list(node.users), set[Node]()
        while stack:
            user = stack.pop()
            if user in seen:
                continue
            seen.add(user)
            if is_whole(user):
                stack.extend(user.users)
            else:
                found.add(self.asked.get(user))
        return found

    def _quantized(self, node: Node, request: Request, consumer: Node) -> Node:
        """The value of `node` as requested: the same node for everybody who asks for the same."""
        key = (node, request)
        if key not in self.made:
            if is_data_quantizer(node) or is_parameter_value(node):
                self.made[key] = node
            elif is_whole(node):
                self.made[key] = self._moved(node, request, consumer)
            else:
                self.made[key] = self._quantizer(node, request, consumer)
        return self.made[key]

    def _moved(self, node: Node, request: Request, consumer: Node) -> Node:
        sources = {a: self._quantized(a, request, consumer) for a in data_operands(node)}
        if all(a is b for a, b in sources.items()):
            return node
        with self.rw.after(node):
            copy = self.rw.call(node.target, *map_arg(node.args, lambda a: sources.get(a, a)))  # type: ignore[arg-type]
        self.rw.inherit(copy, node)
        self.copies.append((node, copy))
        return copy

    def _quantizer(self, node: Node, request: Request, consumer: Node) -> Node:
        is_input = node.op == "placeholder"
        settings = input_settings(self.config, node) if is_input else settings_of(self.config, self.rw.gm, node)
        if request.contradicts(settings):
            own = settings.data_format or f"{settings.data_bits} bits"
            what = f"'{consumer.name}' asks for {request} of '{node.name}', whose own setting is {own}: the consumer's request wins"
            place = info(consumer).path or consumer.name
            self.rw.note("PQ606", what, f"give both the same format, or take the input setting of '{place}' away", consumer)
        with self.rw.after(node):
            path = self.rw.own(f"{own_path(consumer)}.input_quantizer", self.make(node, request.applied(settings)))
            made = self.rw.call_module(path, node)
        self.rw.inherit(made, node)
        if is_input and node not in self.alone:
            self.casts.add(made)
        return made
