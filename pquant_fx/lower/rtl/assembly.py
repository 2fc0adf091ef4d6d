"""Verilog of a design of layers: a directory of modules and a top level that instantiates and times them.

Each module is a pipeline of its own. A layer starts when the last of its inputs is ready; values that are ready earlier wait in
shift registers.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pquant_fx.lower.rtl.adapter import pipeline_model
from pquant_fx.lower.rtl.layers import Layers, Source

__all__ = ["Timing", "write_layers"]

_TABLE = re.compile(r"module (table_\w+)\(.*?endmodule", re.DOTALL)


@dataclass(frozen=True)
class Timing:
    """cycles: from the design's inputs to its outputs; ready: of each layer; stages: names of each module's stages and the bits that
    they register; waiting: bits of shift registers.
    """

    cycles: int
    ready: tuple[int, ...]
    stages: tuple[tuple[tuple[str, int], ...], ...]
    waiting: int


def write_layers(design: Layers, folder: Path, top: str, *, latency_cutoff: float, clock_period: float, part: str) -> Timing:
    """Write the sources below `folder`/src. latency_cutoff: ns a stage; <= 0: no registers."""
    (folder / "src" / "static").mkdir(parents=True, exist_ok=True)
    tables: dict[str, str] = {}
    lengths, stages = [], []
    for n, module in enumerate(design.modules):
        with tempfile.TemporaryDirectory(prefix="pquant_fx_") as name:
            made = Path(name)
            model = pipeline_model(
                module.program, made, f"layer{n}", latency_cutoff=latency_cutoff, clock_period=clock_period, part=part
            )  # fmt: skip
            model.write()
            for source in sorted((made / "src").glob("*.v")):
                if not source.stem.endswith(("_wrapper", "_tables")):
                    own = source.stem if source.stem.startswith("layer") else f"layer{n}_{source.stem}"
                    (folder / "src" / f"{own}.v").write_text(re.sub(r"\blogic(\d+)\b", rf"layer{n}_logic\1", source.read_text()))
                elif source.stem.endswith("_tables"):
                    tables |= {match[1]: match[0] for match in _TABLE.finditer(source.read_text())}
            for source in (made / "src" / "static").glob("*.v"):
                shutil.copy(source, folder / "src" / "static")
        registered = [int(s.width) for s in model.fsm.signals.values() if s.reg]
        names = [f"layer{n}_{name}" for name in model.fsm.logic]
        lengths.append(len(registered))
        stages.append(tuple(zip(names, registered or [0] * len(names), strict=True)))
    if tables:
        (folder / "src" / "tables.v").write_text("`timescale 1 ns / 1 ps\n\n" + "\n\n".join(tables[n] for n in sorted(tables)) + "\n")
    timing = _timed(design, lengths, tuple(stages))
    text, waiting = _Top(design, timing).text(top)
    (folder / "src" / f"{top}.v").write_text(text)
    return Timing(timing.cycles, timing.ready, timing.stages, waiting)


def _timed(design: Layers, lengths: Sequence[int], stages: tuple[tuple[tuple[str, int], ...], ...]) -> Timing:
    ready: list[int] = []
    for layer in design.layers:
        start = max((ready[s[0]] for one in layer.instances for s in one.inputs if s is not None and s[0] >= 0), default=0)
        ready.append(start + max((lengths[one.module] for one in layer.instances), default=0))
    return Timing(max(ready[n] for n in design.returned), tuple(ready), stages, 0)


class _Top:
    def __init__(self, design: Layers, timing: Timing) -> None:
        self.design, self.timing = design, timing
        self.kif = {-1: design.input_kif, **{n: layer.kif for n, layer in enumerate(design.layers)}}
        self.low = {n: np.concatenate([[0], np.cumsum(kif.sum(axis=0))]) for n, kif in self.kif.items()}
        self.delays: dict[int, int] = {}
        self.body: list[str] = []

    def text(self, top: str) -> tuple[str, int]:
        design, cycles = self.design, self.timing.cycles
        for n in range(len(design.layers)):
            self._layer(n)
        outputs = [f"{self._at(n, cycles)}[{self._width(n) - 1}:0]" for n in design.returned if self._width(n)]
        ports = [*(["input clk"] if cycles else []), f"input [{self._width(-1) - 1}:0] model_inp"]
        width = sum(self._width(n) for n in design.returned)
        head = f"`timescale 1 ns / 1 ps\n\nmodule {top} (\n    " + ",\n    ".join([*ports, f"output [{width - 1}:0] model_out"]) + "\n);\n"
        waits, bits = self._shift_registers()
        last = f"assign model_out = {{{', '.join(reversed(outputs))}}};"
        lines = [*self._wires(), *waits, *self.body, last]
        return head + "".join(f"    {line}\n" for line in lines) + "endmodule\n", bits

    # ---- parts
    def _wires(self) -> list[str]:
        return [f"wire [{self._width(n) - 1}:0] value{n};" for n in range(len(self.design.layers)) if self._width(n)]

    def _width(self, n: int) -> int:
        return int(self.low[n][-1])

    def _name(self, n: int) -> str:
        return "model_inp" if n < 0 else f"value{n}"

    def _at(self, n: int, cycle: int) -> str:
        """The layer's value in that cycle, through as many registers as it has to wait."""
        wait = cycle - (0 if n < 0 else self.timing.ready[n])
        self.delays[n] = max(self.delays.get(n, 0), wait)
        return self._name(n) if wait == 0 else f"{self._name(n)}_after{wait}"

    def _shift_registers(self) -> tuple[list[str], int]:
        lines, bits = [], 0
        for n, wait in sorted(self.delays.items()):
            for step in range(1, wait + 1):
                before = self._name(n) if step == 1 else f"{self._name(n)}_after{step - 1}"
                lines.append(f"reg [{self._width(n) - 1}:0] {self._name(n)}_after{step};")
                lines.append(f"always @(posedge clk) {self._name(n)}_after{step} <= {before};")
                bits += self._width(n)
        return lines, bits

    def _layer(self, n: int) -> None:
        layer, modules = self.design.layers[n], self.design.modules
        for element, number in layer.constants.items():
            k, i, f = layer.kif[:, element].tolist()
            if k + i + f > 0:
                code = round(number * 2.0**f) & ((1 << (k + i + f)) - 1)
                self.body.append(f"assign value{n}[{self._slice(n, element)}] = {k + i + f}'d{code};")
        for m, one in enumerate(layer.instances):
            module = modules[one.module]
            length = sum(1 for _, bits in self.timing.stages[one.module] if bits)
            start = self.timing.ready[n] - length
            given = [self._input(source, kif, start) for source, kif in zip(one.inputs, module.input_kif.T.tolist(), strict=True)]
            made = f"made{n}_{m}"
            width = int(module.output_kif.sum())
            clock = ".clk(clk), " if length else ""
            inputs = ", ".join(reversed([text for text in given if text]))
            self.body.append(f"wire [{width - 1}:0] {made};")
            self.body.append(f"layer{one.module} part{n}_{m} ({clock}.model_inp({{{inputs}}}), .model_out({made}));")
            low = 0
            for element, kif in zip(one.outputs, module.output_kif.T.tolist(), strict=True):
                wanted = layer.kif[:, element].tolist()
                if sum(wanted) > 0:
                    self.body.append(f"assign value{n}[{self._slice(n, element)}] = {_converted(made, low, kif, wanted)};")
                low += sum(kif)

    def _input(self, source: Source, kif: Sequence[int], start: int) -> str:
        if sum(kif) <= 0:
            return ""
        if source is None:
            return f"{sum(kif)}'d0"
        signal = self._at(source[0], start)
        return _converted(signal, int(self.low[source[0]][source[1]]), self.kif[source[0]][:, source[1]].tolist(), kif)

    def _slice(self, n: int, element: int) -> str:
        return f"{int(self.low[n][element + 1]) - 1}:{int(self.low[n][element])}"


def _converted(signal: str, low: int, have: Sequence[int], want: Sequence[int]) -> str:
    """The bits of a value of format `have`, from bit `low` of a signal on, in the format `want`: wires only."""
    (k, i, f), (wk, wi, wf) = have, want
    width, total = k + i + f, wk + wi + wf
    right = wf - f
    parts: list[str] = []  # highest first
    if width <= 0:
        return f"{total}'d0"
    first = max(-right, 0)
    last = min(width, total - right)  # one past the highest bit that is kept
    above = total - max(right, 0) - max(last - first, 0)
    sign = f"{signal}[{low + width - 1}]" if k else "1'b0"
    if above > 0:
        parts.append(f"{{{above}{{{sign}}}}}")
    if last > first:
        parts.append(f"{signal}[{low + last - 1}:{low + first}]")
    if right > 0:
        parts.append(f"{{{min(right, total)}{{1'b0}}}}")
    return parts[0] if len(parts) == 1 else f"{{{', '.join(parts)}}}"
