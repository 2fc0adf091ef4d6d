"""Input ports: the fixed-point type that an input arrives in, and the host's conversion to it.

A port that one quantizer reads has that quantizer's format. Others carry as many bits as keep every reader exact:
truncation needs f, rounding half up one bit more, and all other modes two more of which the last is sticky (set when
anything below it is not zero), so that ties and signs of the original number survive (Boldo & Melquiond 2008, round to odd).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pquant_fx.errors import LoweringError, Place, Problem
from pquant_fx.formats import FixedFormat
from pquant_fx.lower.fixed_point_numpy import overflow_codes, quantize_array
from pquant_fx.lower.hls4ml.net import Array, Concat, Conv, Copy, Dense, Input, Net, Op, Pool, Quantize, Relu, Upsample, View, refusal, uses
from pquant_fx.lower.hls4ml.ranges import Range

__all__ = ["Port", "port_of", "quantizer_port", "unread_inputs"]


@dataclass(frozen=True)
class Port:
    """`rounding` is a mode of ours, or ODD: towards -infinity with a sticky last bit. `overflow`: SAT, WRAP, ..."""

    format: FixedFormat
    rounding: str
    overflow: str

    def arrive(self, x: Array, name: str) -> Array:
        """`x` as the port carries it, float64. Raises LoweringError (PQ305) on NaN."""
        if np.isnan(x).any():
            raise LoweringError(Problem("PQ305", f"the values of input '{name}' hold NaN", "clean the data"))
        k, i, f = self.format.k, self.format.i, self.format.f
        limit = 2.0 ** (i + 2)
        x = np.clip(x, -limit, limit) if self.overflow in ("SAT", "SAT_SYM") else x
        if not np.isfinite(x).all():
            raise LoweringError(Problem("PQ305", f"the values of input '{name}' hold infinity, which only SAT defines", "clean the data"))
        if self.rounding != "ODD":
            return quantize_array(x, k, i, f, self.rounding, self.overflow)
        scaled = np.ldexp(x, f)
        codes = np.floor(scaled)
        codes += (codes != scaled) & (np.mod(codes, 2) == 0)
        return np.asarray(np.ldexp(overflow_codes(codes, np.asarray(k), np.asarray(i + f), self.overflow), -f))

    def range(self, shape: tuple[int, ...]) -> Range:
        low, high = self.format.code_range
        return Range(self.format.f, np.full(shape, float(low)), np.full(shape, float(high)))


def port_of(net: Net, source: Input) -> Port:
    """The port that serves all quantizers behind `source`.

    Raises LoweringError: PQ202 when the input reaches arithmetic without a quantizer, PQ207 when its readers' modes exclude each other.
    """
    readers, monotone = _readers(net, source)
    live = [(q, ~np.broadcast_to(q.zero_width, q.shape)) for q in readers]
    if not any(mask.any() for _, mask in live):
        return Port(FixedFormat(0, 1, 0), "TRN", "SAT")
    k = max(int(q.k[mask].max(initial=0)) for q, mask in live)
    i = max(int((q.i[mask] + (q.overflow in ("SAT_ZERO", "WRAP_SM"))).max()) for q, mask in live if mask.any())
    modes = {q.rounding for q in readers}
    spare = {frozenset({"TRN"}): 0, frozenset({"RND"}): 1, frozenset({"TRN", "RND"}): 1}.get(frozenset(modes), 2)
    f = max(int(q.f[mask].max()) + spare for q, mask in live if mask.any())
    return Port(FixedFormat(k, i, f), "ODD" if spare == 2 else "TRN", _overflow(source, readers, modes, monotone))


def _overflow(source: Input, readers: list[Quantize], modes: set[str], monotone: bool) -> str:
    overflows = {q.overflow for q in readers}
    names = ", ".join(q.name for q in readers)
    if overflows <= {"SAT", "SAT_SYM", "SAT_ZERO"}:
        return "SAT"
    if overflows <= {"WRAP", "WRAP_SM"} and modes <= {"TRN", "RND", "RND_CONV", "RND_MIN_INF"} and not monotone:
        return "WRAP"
    what = f"no port type serves the modes {sorted(modes)}, {sorted(overflows)} of {names}"
    raise refusal("PQ207", what, "quantize the input with SAT, or with WRAP and TRN, RND or RND_CONV", source.name)


def _readers(net: Net, source: Input) -> tuple[list[Quantize], bool]:
    """(quantizers that the raw input reaches, whether on the way something compares values)."""
    raw = {source.output}
    readers: list[Quantize] = []
    monotone = False
    for op in net:
        if not raw.intersection(op.inputs):
            continue
        if isinstance(op, Quantize):
            readers.append(op)
        elif _passes(op):
            raw.add(op.output)
            monotone |= isinstance(op, Relu | Pool)
        else:
            raise refusal("PQ202", f"input '{source.name}' arrives here without a quantizer", "quantize every input of the model", op.name)
    if any(tensor in raw for _, tensor in net.outputs):
        raise refusal("PQ202", f"input '{source.name}' is an output without a quantizer", "quantize it", source.name)
    return readers, monotone


def _passes(op: Op) -> bool:
    """Operations that commute with a conversion which keeps order and zero."""
    copies = isinstance(op, Conv | Dense) and op.copies
    return copies or isinstance(op, View | Concat | Copy | Upsample | Relu) or (isinstance(op, Pool) and op.mode == "Max")


def quantizer_port(op: Quantize) -> Port:
    """The port of an input that only this quantizer (one format for all elements) reads."""
    return Port(op.format, op.rounding, op.overflow)


def unread_inputs(net: Net) -> list[Problem]:
    """PQ202 for every input that nothing reads: as a stream it would fill up and stop the circuit, which C simulation hides."""
    reads = uses(net)
    what, remedy = "nothing reads this input: its stream would fill up and stop the circuit", "leave it out, or use io_type='io_parallel'"
    return [Problem("PQ202", what, remedy, Place(node=op.name)) for op in net if isinstance(op, Input) and not reads[op.output]]
