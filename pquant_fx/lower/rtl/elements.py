"""Arrays of alkaid's variables and of constants, element by element, and what alkaid can hold of the latter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pquant_fx.graph import interval_arrays as arrays
from pquant_fx.graph.interval_codes import dyadic
from pquant_fx.graph.intervals import Inexact
from pquant_fx.lower.rtl.adapter import Symbols, constant

__all__ = ["WEIGHT_BITS", "Operand", "each", "is_symbolic", "padded", "plain", "require_bits", "variables_of", "zeros_filled"]

Operand: TypeAlias = Symbols | NDArray[np.float64] | float
WEIGHT_BITS, CONSTANT_BITS = 24, 31
"""What alkaid holds exactly: float32 weights, 32-bit constants."""


def is_symbolic(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == object


def each(function: Callable[..., Any], *values: Any) -> Symbols:
    """`function` of the elements, broadcast."""
    given = np.broadcast_arrays(*(v if isinstance(v, np.ndarray) else np.asarray(v, dtype=object) for v in values))
    made = np.empty(given[0].shape, dtype=object)
    for at in np.ndindex(made.shape):
        made[at] = function(*(v[at] for v in given))
    return made


def plain(x: Operand) -> Any:
    """Constants as Python floats, which alkaid's variables take; exact in 31 bits each."""
    if is_symbolic(x):
        return x
    values = np.asarray(x, dtype=np.float64)
    if values.size and max(dyadic(v)[2] for v in np.unique(values)) > CONSTANT_BITS:
        raise Inexact("PQ303", f"alkaid holds constants of {CONSTANT_BITS} bits, one here has more", "give it fewer fraction bits")
    return values.astype(object)


def variables_of(x: Operand) -> Symbols:
    return x if is_symbolic(x) else each(constant, np.asarray(x, dtype=np.float64))  # type: ignore[return-value]


def require_bits(bits: int, *values: Any) -> None:
    """Raises Inexact (PQ303) when constants are wider than alkaid's float32 weights."""
    for value in values:
        if not is_symbolic(value) and (found := dyadic(value)[2]) > bits:
            what = f"the constants of one matrix span {found} bits, alkaid holds {bits}"
            raise Inexact("PQ303", what, "give its elements formats that lie closer together, or fewer bits")


def zeros_filled(x: Symbols) -> Symbols:
    """numpy fills with the number 0: let it be a variable."""
    return each(lambda v: constant(float(v)) if isinstance(v, int | float | np.number) else v, x)


def padded(x: Symbols, pads: Sequence[int], mode: str = "constant", value: float | None = 0) -> Symbols:
    return zeros_filled(arrays.pad(x, pads, float(value or 0))) if any(pads) else x
