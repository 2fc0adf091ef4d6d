"""A function whose constants depend on the mode: dropout rates, whether statistics of the batch are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

__all__ = ["ByMode", "Slot"]


class ByMode(nn.Module):
    """Calls `function` with the constants of training or of evaluation, whichever mode the module is in.

    The values (nodes) are the module's arguments, in the order in which they stand in the call; parameters stay the user's.
    """

    def __init__(self, function: Callable[..., Any], names: tuple[str, ...], training: Sequence[Any], evaluation: Sequence[Any]) -> None:
        super().__init__()
        self.function = function
        self.names = names  # keyword of each argument, "" for a positional one
        self.calls = (tuple(evaluation), tuple(training))

    def forward(self, *values: Any) -> Any:
        left = list(values)
        filled = [left.pop(0) if a is Slot else a for a in self.calls[int(self.training)]]
        args = [a for name, a in zip(self.names, filled) if not name]
        kwargs = {name: a for name, a in zip(self.names, filled) if name}
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class Slot:
    """Marks where a value goes in the arguments of a `ByMode`."""
