"""What the rules may ask about the values of one graph; answers are those of a surrogate or of an exact count."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import Node

from pquant_fx.estimate.bits import Bits, Format, Shape

__all__ = ["Reader"]


class Reader(ABC):
    """Answers of one sample: data has a batch axis of 1. A `value` is a node or a Python number.

    Tensors have the rank of the value and size 1 along axes that share their numbers. Raises Uncountable where a value has
    no format.
    """

    @abstractmethod
    def shape(self, value: Any) -> Shape:
        """The value's shape."""

    @abstractmethod
    def bits(self, value: Any) -> Bits:
        """The bits that the value has where an operator takes it."""

    @abstractmethod
    def format(self, value: Any) -> Format:
        """The format that the value has there."""

    @abstractmethod
    def once(self, node: Node, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that depends on the structure of the graph only, made once for each node."""

    @abstractmethod
    def is_constant(self, value: Any) -> bool:
        """Whether the value is a number or a parameter of the circuit."""

    @abstractmethod
    def power(self, node: Node) -> Tensor:
        """The exponent of a learned power of two."""

    @abstractmethod
    def quantizer_behind(self, node: Node) -> Node | None:
        """The quantizer that takes the result of `node`, if there is one."""

    def total(self, value: Any) -> Tensor:
        """Magnitude and counted sign of each element."""
        return self.bits(value).total
