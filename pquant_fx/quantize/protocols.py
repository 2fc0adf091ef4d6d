"""What calibration asks of a quantizer, by what its format comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from pquant_fx.quantize.observers import Observer

__all__ = ["Observable", "Restorable", "StartsFromValue"]


@runtime_checkable
class Observable(Protocol):
    """A quantizer whose format comes from the values that it is shown."""

    def new_observer(self) -> Observer:
        """An observer of this quantizer's method and group shape that has seen nothing."""
        ...

    def observe(self, observer: Observer | None) -> None:
        """Show all values to `observer` and pass them on unchanged (once learning: quantized); None: no longer."""
        ...

    def settle(self, observer: Observer) -> None:
        """Take the format from what `observer` saw; once learning, only what the optimizer does not train."""
        ...


@runtime_checkable
class StartsFromValue(Protocol):
    """A quantizer of a parameter whose first format comes from the parameter's value."""

    def start(self, value: Tensor) -> None:
        """Take the format from `value`; nothing once learning."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """A module whose format can be brought back."""

    def snapshot(self) -> Callable[[], None]:
        """Remember the format now; the returned function brings it back."""
        ...
