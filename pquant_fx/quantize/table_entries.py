"""What the table of an activation holds: results rounded for the quantizers that read them.

Quantizers that agree in one format are applied. Where they differ (several readers, or a format for each element) the entries
keep all that any of them can tell apart: two fraction bits more than the finest, the last of which is set where something was
cut off. Every rounding mode then decides as on the number itself (round to odd, Boldo & Melquiond 2008).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pquant_fx.formats import FixedFormat, evaluation_mode
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.interval_codes import Formats, quantize_real
from pquant_fx.graph.intervals import Inexact
from pquant_fx.quantize.static import FixedQuantizer

__all__ = ["table_entries"]

Reals = NDArray[np.float64]


def table_entries(results: Reals, quantizers: Sequence[Quantizer]) -> tuple[Reals, FixedQuantizer]:
    """(entries, their format) such that q(entry) = q(result) for each of the quantizers, whose formats are static.

    results: real numbers, infinite ones where every quantizer saturates. Raises Inexact (PQ305) for NaN and other infinities,
    ConfigError (PQ306) when the entries need more than 53 bits.
    """
    if np.isnan(results).any():
        raise Inexact("PQ305", "it is no number at some code of its input", "keep such values from it, for example by F.relu")
    formats = [_formats(q) for q in quantizers]
    if all(q.overflow.startswith("SAT") for q in quantizers):
        beyond = 2.0 ** (1 + max(int(f.i.max()) for f in formats))  # all numbers that far out are the same
        results = np.clip(results, -beyond, beyond)
    elif not np.isfinite(results).all():
        raise Inexact("PQ305", "it is infinite at some code of its input", "let its result saturate (data_overflow: SAT)")
    kinds = {(int(f.k.flat[0]), int(f.i.flat[0]), int(f.f.flat[0]), q.overflow, q.rounding) for f, q in zip(formats, quantizers)}
    if len(kinds) > 1 or any(np.ptp(part) for f in formats for part in (f.k, f.i, f.f)):
        return _between(results, formats)
    only, modes = Formats(*(part.reshape(-1)[0] for part in (formats[0].k, formats[0].i, formats[0].f))), quantizers[0]
    codes = quantize_real(results, only, modes.rounding, modes.overflow)
    made = FixedQuantizer(float(only.k), float(only.i), float(only.f), evaluation_mode(modes.rounding), modes.overflow)
    return np.ldexp(codes.astype(np.float64), -int(only.f)), made


def _formats(quantizer: Quantizer) -> Formats:
    parts = [np.rint(t.detach().cpu().double().numpy()).astype(np.int64) for t in quantizer.kif()]
    return Formats(*np.broadcast_arrays(*parts))


def _between(results: Reals, formats: Sequence[Formats]) -> tuple[Reals, FixedQuantizer]:
    """Round to odd, two bits below the finest lsb."""
    f = max((int(part.f[~part.empty].max()) for part in formats if not part.empty.all()), default=0) + 2
    scaled = np.ldexp(results, f)
    codes = np.floor(scaled)
    codes += (codes != scaled) & (np.mod(codes, 2) == 0)
    held = FixedFormat.for_codes(int(codes.min()), int(codes.max()), f)
    return np.ldexp(codes, -f), FixedQuantizer(float(held.k), float(held.i), float(held.f), "TRN", "SAT")
