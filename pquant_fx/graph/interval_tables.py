"""Intervals around tables: exact bounds of what a lookup can give, from its entries, and what an input may be."""

from __future__ import annotations

import numpy as np

from pquant_fx.graph.interval_codes import Ints
from pquant_fx.graph.interval_weighted import Result
from pquant_fx.graph.intervals import Inexact, Interval
from pquant_fx.graph.tables import MAX_ENTRIES

__all__ = ["lookup_rule", "require_table"]


def require_table(x: Interval) -> None:
    """Raise Inexact (PQ303) when a table over every code of x's format would be too large."""
    width = x.format().width
    if 1 << width > MAX_ENTRIES:
        largest = MAX_ENTRIES.bit_length() - 1
        what = f"the formats of its input together have {width} bits: a table of 2^{width} entries"
        remedy = f"give its input at most {largest} bits (data_bits), or one format for all elements (data_granularity: per_tensor)"
        raise Inexact("PQ303", what, remedy)


def lookup_rule(x: Interval, entries: Interval, f: int, low: int) -> Result:
    """lookup(x, entries, f, low): per element the extremes of the entries that it can meet. Raises Inexact (PQ202) beyond them."""
    shift = f - x.f
    first, last = (c << shift if shift >= 0 else c >> -shift for c in (x.low, x.high))
    first, last = first - low, last - low
    if not entries.is_constant or first.min(initial=0) < 0 or last.max(initial=0) >= entries.low.size:
        raise Inexact("PQ202", "its input can leave the table", "put the quantizer back that the table was made for")
    least, most = _smallest(entries.low, first, last), -_smallest(-entries.high, first, last)
    return Interval(entries.f, least, most, _smallest(entries.zeros, first, last)), None


def _smallest(values: Ints, first: Ints, last: Ints) -> Ints:
    """min(values[first .. last]) of every pair: two overlapping runs of 2^n values cover any range."""
    found = values[first]
    size, runs = 1, values
    while 2 * size <= len(values):
        runs = np.minimum(runs[:-size], runs[size:])
        size *= 2
        fits = last - first + 1 >= size
        found = np.where(fits, np.minimum(runs[np.where(fits, first, 0)], runs[np.where(fits, last - size + 1, 0)]), found)
    return found
