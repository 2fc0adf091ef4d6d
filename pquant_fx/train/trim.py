"""The last few bits: moves all learned bit-widths by one small amount, so that the exact count lands in a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pquant_fx.quantize import HGQQuantizer
from pquant_fx.quantize.hgq_kinds import HGQWeight

__all__ = ["shift_into"]

_TRIES = 20  # of halving the interval: less than a millionth of a bit


def shift_into(quantizers: Sequence[HGQQuantizer], count: Callable[[], float], low: float, high: float, most: float) -> bool:
    """Move the bit-widths so that low <= count() <= high, by at most `most` bits; True when it is so afterwards.

    A bit-width is a real number that is rounded. At the balance of the training a bit is worth its price everywhere, so the ones
    nearest to being rounded the other way are worth least; one shift for all of them, found by halving, changes these and
    no others. Weights alone move where they learn, because one of their bits costs little. Where the band lies between two
    steps, the largest count under it is taken; where it is out of reach, everything stays as it was.
    """
    bits = _bits([q for q in quantizers if isinstance(q, HGQWeight)]) or _bits(quantizers)
    kept = [b.detach().clone() for b in bits]

    def counted(shift: float) -> float:
        with torch.no_grad():
            for b, before in zip(bits, kept):
                b.copy_(before + shift)
            for quantizer in quantizers:
                quantizer.clamp_()
        return count()

    found = count()
    if low <= found <= high:
        return True
    best, most_counted = (0.0, found) if found <= high else (None, 0.0)
    few, many = (0.0, most) if found < low else (-most, 0.0)  # shifts that give few and many EBOPs
    reachable = counted(many) >= low if found < low else counted(few) <= high
    for _ in range(_TRIES if reachable else 0):
        middle = (few + many) / 2
        found = counted(middle)
        if low <= found <= high:
            return True
        if most_counted <= found <= high:
            best, most_counted = middle, found
        few, many = (middle, many) if found < low else (few, middle)
    return counted(best or 0.0) <= high


def _bits(quantizers: Sequence[HGQQuantizer]) -> list[Tensor]:
    """The parameters with which bit-widths move while ranges stay: b beside i, or f beside i."""
    return [q.b if q.by_width else q.f for q in quantizers]
