"""What a quantizer does to an interval, and what that proves about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pquant_fx.formats import OverflowMode, RoundingMode
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.interval_codes import ALL_ZERO, MAX_BITS, Formats, Ints, bit_length, quantize_codes
from pquant_fx.graph.intervals import Inexact, Interval

__all__ = ["QuantizerFacts", "formats_of", "full_range", "quantize_interval"]


@dataclass(frozen=True)
class QuantizerFacts:
    """What is proven about a quantizer for every input the circuit can see.

    never_overflows: no code saturates or wraps, so all overflow modes are the same; never_rounds: no bit is dropped.
    """

    never_overflows: bool
    never_rounds: bool

    @property
    def is_identity(self) -> bool:
        return self.never_overflows and self.never_rounds


def formats_of(quantizer: Quantizer, shape: tuple[int, ...], *, data: bool, value: Tensor | None = None) -> Formats:
    """The formats of every element of a value of that shape (data: of one sample, without batch axis).

    value: the parameter being quantized. Raises Inexact (PQ306) when the formats do not fit the value.
    """
    arrays = []
    for t in quantizer.kif(value):
        a = np.rint(t.detach().cpu().double().numpy()).astype(np.int64)
        if data and a.ndim == len(shape) + 1:
            if a.shape[0] != 1:
                raise Inexact("PQ306", f"the format has shape {a.shape}: it differs between samples", "give formats a batch axis of 1")
            a = a[0]
        try:
            arrays.append(np.broadcast_to(a, shape))
        except ValueError:
            what = f"a format of shape {a.shape} does not fit a value of shape {shape}"
            raise Inexact("PQ306", what, "give k, i and f shapes that broadcast to the value") from None
    formats = Formats(*arrays)
    if quantizer.overflow == "WRAP_SM" and bool(((formats.k == 0) & (formats.i + formats.f > 0)).any()):
        raise Inexact("PQ306", "WRAP_SM needs a signed format", "use WRAP or SAT for unsigned values")
    if formats.bits > MAX_BITS - 2:
        raise Inexact("PQ303", f"a format of {formats.bits} bits is wider than our integers", f"use at most {MAX_BITS - 2} bits")
    return formats


def full_range(formats: Formats, overflow: OverflowMode) -> Interval:
    """Everything that the formats can hold."""
    low, high = formats.span(overflow)
    return _spread(low, high, formats, np.zeros(low.shape, dtype=np.int64))


def quantize_interval(x: Interval, formats: Formats, rounding: RoundingMode, overflow: OverflowMode) -> tuple[Interval, QuantizerFacts]:
    """The interval after the quantizer, exact for the saturating modes, and the proven facts.

    Every rounding mode is monotone, so the bounds are rounded; where a wrapping mode can overflow, the whole range comes out.
    """
    low, high = formats.span(overflow)
    drop = x.f - formats.f
    wide = Formats(np.ones_like(formats.k), np.maximum(x.span - drop + 2, 1) - formats.f, formats.f)
    narrow = np.minimum(wide.i, MAX_BITS - 3 - formats.f)
    rounded = Formats(wide.k, narrow, formats.f)  # saturates only far outside any legal format
    least = quantize_codes(x.low, x.f, rounded, rounding, "SAT")
    most = quantize_codes(x.high, x.f, rounded, rounding, "SAT")
    inside = (least >= low) & (most <= high)
    if overflow in ("SAT", "SAT_SYM"):
        out = np.clip(least, low, high), np.clip(most, low, high)
    elif overflow == "SAT_ZERO":
        cut = np.maximum(least, low), np.minimum(most, high)
        some = cut[0] <= cut[1]
        out = (
            np.where(inside, least, np.where(some, np.minimum(cut[0], 0), 0)),
            np.where(inside, most, np.where(some, np.maximum(cut[1], 0), 0)),
        )
    else:
        out = np.where(inside, least, low), np.where(inside, most, high)
    kept = np.where(inside, np.clip(x.zeros - drop, 0, ALL_ZERO), 0)
    exact = (drop <= x.zeros) | (x.zeros == ALL_ZERO)
    facts = QuantizerFacts(bool(inside.all()), bool(exact.all()))
    return _spread(out[0], out[1], formats, kept), facts


def _spread(low: Ints, high: Ints, formats: Formats, zeros: Ints) -> Interval:
    """Codes at each element's own f, brought to the common grid."""
    shift = formats.spread()
    used = np.maximum(bit_length(low), bit_length(high))
    bits = int(np.where(used > 0, used + shift, 0).max(initial=0))
    if bits > MAX_BITS:
        what = f"the formats of its elements span {bits} bits on one grid, more than {MAX_BITS}"
        raise Inexact("PQ303", what, "give its elements formats that lie closer together, or fewer bits")
    shift = np.minimum(shift, MAX_BITS)
    return Interval(formats.lsb, low << shift, high << shift, np.minimum(zeros + shift, ALL_ZERO))
