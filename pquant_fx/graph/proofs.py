"""What interval arithmetic proves about a frozen network for every input that it can see: facts, not observations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch.fx import GraphModule

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.format_text import format_text
from pquant_fx.graph.info import info

__all__ = ["AccumulatorProof", "Proofs", "QuantizerProof", "proofs_of"]


@dataclass(frozen=True)
class QuantizerProof:
    """A data quantizer: whether a code can ever wrap or saturate, and whether a bit is ever dropped. module, line: the user's."""

    node: str
    module: str
    line: str | None
    format: str
    rounding: str
    overflow: str
    never_overflows: bool
    never_rounds: bool


@dataclass(frozen=True)
class AccumulatorProof:
    """A sum: the codes at lsb 2^-f that its result and every partial sum in any order stay within, and the bits, sign included,
    that hold them: an accumulator of so many bits never overflows.
    """

    node: str
    module: str
    line: str | None
    f: int
    lowest: int
    highest: int
    bits: int


@dataclass(frozen=True)
class Proofs:
    """One entry a data quantizer and a sum, in order of the graph; `print` it."""

    quantizers: tuple[QuantizerProof, ...]
    accumulators: tuple[AccumulatorProof, ...]

    @property
    def never_wraps(self) -> bool:
        """Whether no quantizer that wraps can overflow."""
        return all(q.never_overflows for q in self.quantizers if q.overflow.startswith("WRAP"))

    @property
    def never_saturates(self) -> bool:
        """Whether no quantizer that saturates can overflow."""
        return all(q.never_overflows for q in self.quantizers if not q.overflow.startswith("WRAP"))

    @property
    def accumulator_bits(self) -> int:
        """Bits of the widest sum, sign included."""
        return max((a.bits for a in self.accumulators), default=0)

    def data(self) -> dict[str, Any]:
        """The proofs as plain data, for JSON."""
        summary = {"never_wraps": self.never_wraps, "never_saturates": self.never_saturates, "accumulator_bits": self.accumulator_bits}
        return {**summary, "quantizers": [asdict(q) for q in self.quantizers], "accumulators": [asdict(a) for a in self.accumulators]}

    def __str__(self) -> str:
        lines = [f"{'quantizer':32s} {'format':16s} {'modes':18s} proven for every input"]
        for q in self.quantizers:
            found = [what for what, holds in (("never overflows", q.never_overflows), ("never rounds", q.never_rounds)) if holds]
            modes = f"{q.rounding}, {q.overflow}"
            lines.append(f"{q.node:32s} {q.format:16s} {modes:18s} {', '.join(found) or '-'}")
        lines.append(f"{'sum':32s} {'bits':>4s}  every partial sum lies within")
        for a in self.accumulators:
            lines.append(f"{a.node:32s} {a.bits:4d}  [{a.lowest}, {a.highest}] x 2^{-a.f}")
        return "\n".join(lines)


def proofs_of(gm: GraphModule, formats: FormatMap) -> Proofs:
    """What the analysis `formats` of the frozen graph `gm` proves."""
    quantizers, accumulators = [], []
    for node in gm.graph.nodes:
        record, module = info(node), module_of(gm, node)
        fact, sums = formats.facts.get(node), formats.accumulators.get(node)
        where = (node.name, record.label, record.line)
        if fact is not None and isinstance(module, Quantizer):
            modes = (format_text(*module.kif()), module.rounding, module.overflow)
            quantizers.append(QuantizerProof(*where, *modes, fact.never_overflows, fact.never_rounds))
        if sums is not None and sums.low.size:
            low, high = int(sums.low.min()), int(sums.high.max())
            accumulators.append(AccumulatorProof(*where, sums.f, low, high, sums.span + (low < 0)))
    return Proofs(tuple(quantizers), tuple(accumulators))
