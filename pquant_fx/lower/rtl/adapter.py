"""The one door to alkaid (Sun et al. 2024, "da4ml: Distributed Arithmetic for Real-time Neural Networks on FPGAs").

alkaid turns products with constants into graphs of shifts and adders and writes them as RTL. Its symbolic variables stand
for real numbers with a smallest and a largest value and a step; arrays of them are numpy arrays of objects.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pquant_fx.errors import ExtraMissingError, Problem

__all__ = [
    "Solver",
    "Symbols",
    "alkaid_version",
    "constant",
    "field",
    "interpret",
    "leaves",
    "logic",
    "pipeline_model",
    "require_alkaid",
    "rtl_model",
    "table",
    "total",
    "variables",
]

Symbols: TypeAlias = NDArray[Any]
"""Arrays of alkaid's variables, of dtype object."""

PACKAGE = "alkaid>=0.8.2,<0.9"
_SUPPORTED = (0, 8)
_HARDWARE = (1, 1, -1)
"""Bits of an adder and of a carry step that alkaid's models count as one unit, and no latency limit."""


def require_alkaid() -> None:
    """Raises ExtraMissingError (PQ503) when alkaid is not installed, or is a version that was not tried."""
    try:
        import_module("alkaid")
    except ImportError as error:
        what = f"RTL needs the package alkaid, which is not installed or does not load ({error})"
        raise ExtraMissingError(Problem("PQ503", what, "pip install 'pquant_fx[rtl]'")) from error
    version = alkaid_version()
    if tuple(int(n) for n in version.split(".")[:2]) != _SUPPORTED:
        raise ExtraMissingError(Problem("PQ503", f"alkaid {version} was not tried with this version", f"pip install '{PACKAGE}'"))


def alkaid_version() -> str:
    """The installed version; "none" without one."""
    try:
        return metadata.version("alkaid")
    except metadata.PackageNotFoundError:
        return "none"


def variables(k: NDArray[np.int64], i: NDArray[np.int64], f: NDArray[np.int64]) -> Symbols:
    """New inputs of those formats, all of one shape; 0 where a format has no bits.

    They may hold every code of their format: alkaid widens narrower bounds while it optimizes, and bits that it has already
    taken for others are then wrong.
    """
    from alkaid.trace import FVariable, HWConfig

    made = np.empty(k.shape, dtype=object)
    for at in np.ndindex(k.shape):
        n = int(k[at]), int(i[at]), int(f[at])
        empty = n[1] + n[2] < 0 or sum(n) <= 0
        made[at] = constant(0.0) if empty else FVariable.from_kif(*n, hwconf=HWConfig(*_HARDWARE))
    return made


def constant(value: float) -> Any:
    """A variable that is always `value`."""
    from alkaid.trace import FVariable, HWConfig

    return FVariable.from_const(float(value), HWConfig(*_HARDWARE))


def field(x: Any, k: int, i: int, f: int) -> Any:
    """The bits of x from 2^-f up to 2^(i-1), and as a sign the one above them when k is 1: x modulo 2^(k+i), floored to 2^-f.

    Taken from the bits that x is stored in, before a factor that goes with it: alkaid 0.8.2 takes a single bit of a scaled
    value for its sign bit when the two happen to have the same weight.
    """
    if x.low == x.high:
        period, offset = 2.0 ** (i + k), k * 2.0**i
        return constant((x.low // 2.0**-f * 2.0**-f + offset) % period - offset)
    power = int(math.log2(abs(x._factor)))
    stored = x * 2.0**-power
    return stored.quantize(k, i - power, f + power, "WRAP", "TRN") * 2.0**power


def table(x: Any, entries: NDArray[np.float64], f: int, low: int) -> Any:
    """entries[x 2^f - low]. Codes outside the table can not come: alkaid's bounds are at times wider than x, never narrower."""
    if x.low == x.high:
        return constant(float(entries[round(x.low * 2.0**f) - low]))
    codes = np.arange(round((x.high - x.low) / x.step) + 1) * x.step + x.low
    return x.lookup(entries[np.clip(np.rint(codes * 2.0**f).astype(np.int64) - low, 0, len(entries) - 1)])


def total(terms: Sequence[Any]) -> Any:
    """The sum of variables as a balanced tree: the two that are ready first are added first."""
    waiting = list(terms)
    while len(waiting) > 1:
        waiting.sort(key=lambda v: v.latency)
        waiting = [waiting[0] + waiting[1], *waiting[2:]] if len(waiting) < 4 else [*_pairs(waiting)]
    return waiting[0]


def _pairs(waiting: list[Any]) -> Iterator[Any]:
    for n in range(0, len(waiting) - 1, 2):
        yield waiting[n] + waiting[n + 1]
    if len(waiting) % 2:
        yield waiting[-1]


class Solver:
    """Products of constant matrices with vectors, each kind solved once: positions of a convolution share their adder graph.

    filler: what stands for padding of a convolution beside a given variable; by default the constant 0.
    """

    def __init__(self, filler: Callable[[Any], Any] | None = None) -> None:
        self._solved: dict[Any, Any] = {}
        self.filler = filler

    def __call__(self, x: Symbols, w: NDArray[np.float64]) -> Symbols:
        """x (rows, K), w (K, O) of at most 24-bit codes -> (rows, O)."""
        made = np.empty((x.shape[0], w.shape[1]), dtype=object)
        for n, row in enumerate(x):
            made[n] = self._row(row, w)
        return made

    def _row(self, row: Symbols, w: NDArray[np.float64]) -> Symbols:
        varying = np.array([v.low != v.high for v in row], dtype=bool) & (w != 0).any(axis=1)
        fixed = np.array([v.low if v.low == v.high else 0.0 for v in row], dtype=np.float64) @ w
        made = np.empty(w.shape[1], dtype=object)
        made[:] = [constant(value) for value in fixed]
        columns = (w[varying] != 0).any(axis=0)
        if columns.any():
            made[columns] += self._product(row[varying], np.ascontiguousarray(w[varying][:, columns]))
        return made

    def _product(self, row: Symbols, w: NDArray[np.float64]) -> Symbols:
        from alkaid.cmvm import cmvm_solve

        intervals = [tuple(v.qint) for v in row]
        latencies = [float(v.latency) for v in row]
        start = min(latencies)
        key = (w.tobytes(), w.shape, tuple(intervals), tuple(at - start for at in latencies))
        if key not in self._solved:
            self._solved[key] = cmvm_solve(w.astype(np.float32), qintervals=intervals, latencies=latencies)
        first, second = self._solved[key]
        made: Symbols = second(first(row, quantize=False), quantize=False)
        return made


def logic(inputs: Sequence[Any], outputs: Sequence[Any], optimize: bool = True) -> Any:
    """The combinational program from the inputs to the outputs; every input keeps its place, used or not."""
    from alkaid.trace.tracer import trace

    with _deep():
        return trace(list(inputs), list(outputs), optimize=optimize, keep_dead_inputs=True)


def leaves(outputs: Sequence[Any]) -> list[Any]:
    """The inputs that the outputs depend on, in the order in which a walk from the outputs meets them: the same for equal circuits."""
    seen: set[Any] = set()
    met, stack = [], list(reversed(outputs))
    while stack:
        v = stack.pop()
        if v.id in seen:
            continue
        seen.add(v.id)
        if v.opr == "new":
            met.append(v * (1.0 / v._factor))
        stack += reversed(v._from)
    return met


def interpret(program: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the program computes of real inputs (samples, inputs), by alkaid's interpreter: (samples, outputs)."""
    made: NDArray[np.float64] = program.predict(np.ascontiguousarray(x, dtype=np.float64), n_threads=1)
    return made


def pipeline_model(program: Any, folder: Path, name: str, *, latency_cutoff: float, part: str, clock_period: float) -> Any:
    """Like `rtl_model`, for a part of a larger design: registers behind every stage, none in front."""
    from alkaid.codegen.rtl import RTLModel
    from alkaid.trace import to_pipeline

    with _deep(), contextlib.redirect_stdout(io.StringIO()):
        if latency_cutoff > 0:
            fsm = to_pipeline(program, latency_cutoff=latency_cutoff, verbose=False, reg_inp=False)
        else:
            fsm = to_pipeline(program, n_stages=1, verbose=False, reg_inp=False, reg_out=False)
        return RTLModel(fsm, folder, name, "verilog", print_latency=False, part_name=part, clock_period=clock_period, ternary_fuse=False)


def rtl_model(
    program: Any, folder: Path, name: str, *, flavor: str, latency_cutoff: float, clock_period: float, part: str, ternary_adders: bool
) -> Any:
    """The program cut into pipeline stages: alkaid's RTLModel, of which `write` puts the files below `folder`.

    latency_cutoff: ns a stage; <= 0: no registers at all.
    """
    from alkaid.codegen.rtl import RTLModel

    with _deep(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RTLModel(
            program, folder, name, flavor, latency_cutoff=latency_cutoff, print_latency=False, part_name=part,
            clock_period=clock_period, ternary_fuse=ternary_adders,
        )  # fmt: skip


@contextlib.contextmanager
def _deep() -> Iterator[None]:
    """alkaid walks its graphs by recursion, one level an operation."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 100_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
