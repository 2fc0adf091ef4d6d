"""Calibration: first formats from values, and the ranges of data that training tracks.

Parameters come first. Then the graph runs in eval mode with quantized weights and unquantized data, which observers look
at; then the biases take the grid around them. Network inputs and all observed values are checked for NaN and infinity with
a single synchronisation at the end. Either every format is set or none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pquant_fx.errors import CalibrationError, Problem
from pquant_fx.graph.constants import constant_values, evaluating
from pquant_fx.graph.dialect import Quantizer, module_of
from pquant_fx.graph.values import static_range
from pquant_fx.quantize.calibration_checks import refuse_bad_parameters, refuse_bad_values, refuse_misplaced
from pquant_fx.quantize.hgq_kinds import HGQData
from pquant_fx.quantize.learned import LearnedQuantizer
from pquant_fx.quantize.lsb import bias_fractions
from pquant_fx.quantize.observers import Observer, across_ranks, over_ranks
from pquant_fx.quantize.protocols import Observable, Restorable, StartsFromValue
from pquant_fx.quantize.quantizers import AccumulatorQuantizer

__all__ = ["Observable", "StartsFromValue", "calibrate", "trace_ranges"]


def calibrate(gm: GraphModule, batches: Iterable[Any]) -> int:
    """Set every format that rests on values: of parameters (`StartsFromValue`) from them, of data (`Observable`) over
    `batches`, of biases (AccumulatorQuantizer) from those around them, f_w + f_x; last, `trace_ranges`.

    batches: tuples with one tensor an input of the graph (a lone tensor stands for a tuple of one). Returns how many were
    seen. Quantizers with a given format stay active, learned ones keep theirs once training has begun. A value that its
    operator bounds (ReLU6, hard tanh, a bounded table) gets the format of that range, whatever the data fill of it. Under
    torch.distributed every rank has to call this: formats cover what all of them have seen.

    Raises CalibrationError: PQ305 for NaN or infinity in a parameter, an input or an observed value (naming node, module
    and line), PQ410 when there is no batch with a sample in it, PQ412 for a quantizer of parameters on data. Formats are
    then as before; modes and gradients never change.
    """
    refuse_bad_parameters(gm)
    refuse_misplaced(gm)
    batches = batches if isinstance(batches, list) else list(batches)
    with _restored_on_error(gm):
        _start_parameters(gm)
        look = _Look(gm, lambda module: not (isinstance(module, LearnedQuantizer) and module.is_learning), bypass=True)
        seen = look.over(batches)
        with torch.no_grad():
            look.settle(static=True)
            for path, f in bias_fractions(gm, _parameter_values(gm)).items():
                quantizer = gm.get_submodule(path)
                assert isinstance(quantizer, AccumulatorQuantizer)
                quantizer.set_fraction(f)
        if any(map(_is_tracking, gm.modules())):
            trace_ranges(gm, batches)
    return seen


def trace_ranges(gm: GraphModule, batches: Iterable[Any]) -> int:
    """Trace i and k of every learned WRAP quantizer over `batches`, with the fractions that were learned; returns how many were seen.

    The quantized network runs, rounding without wrapping; everything else stays as it is. To be done before freezing: without
    it WRAP designs overflow on values that the last training batches did not hold (HGQ, Sun et al. 2024). Raises as `calibrate`.
    """
    with _restored_on_error(gm):
        look = _Look(gm, _is_tracking, bypass=False)
        seen = look.over(batches)
        with torch.no_grad():
            look.settle(static=False)
    return seen


def _is_tracking(module: nn.Module) -> bool:
    """Whether training tracks the range of what the module quantizes, and has begun to."""
    return isinstance(module, HGQData) and module.tracked and module.is_learning


@dataclass
class _Look:
    """One run of the graph over batches, with an observer in every Observable that `wanted` names, and on the inputs.

    bypass: biases are not rounded meanwhile.
    """

    gm: GraphModule
    wanted: Callable[[nn.Module], bool]
    bypass: bool
    observed: dict[Node, Observer] = field(default_factory=dict)

    def over(self, batches: Iterable[Any]) -> int:
        """Run, then learn what other ranks saw. Raises CalibrationError (PQ305, PQ410)."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(self.gm))
            stack.enter_context(self._observers())
            seen = _run(self.gm, batches, self.observed)
        device = next((t.device for t in (*self.gm.parameters(), *self.gm.buffers())), torch.device("cpu"))
        everywhere = seen
        if across_ranks():
            everywhere = int(over_ranks(torch.tensor(seen, device=device)))
            for observer in dict.fromkeys(self.observed.values()):
                observer.synchronise(device)
        if everywhere == 0:
            raise CalibrationError(Problem("PQ410", "calibration got no data", "give at least one batch with at least one sample"))
        refuse_bad_values(self.gm, self.observed)
        return seen

    def settle(self, static: bool) -> None:
        """Let every observed quantizer take its format; static: from the range of the operators before it, where they have one."""
        by_module: dict[Observable, list[Node]] = {}
        for node in self.observed:
            module = module_of(self.gm, node)
            if isinstance(module, Observable):
                by_module.setdefault(module, []).append(node)
        for quantizer, nodes in by_module.items():
            observer = self.observed[nodes[0]]
            if observer.seen:
                quantizer.settle((_static(nodes, observer) if static else None) or observer)

    @contextmanager
    def _observers(self) -> Iterator[None]:
        observers: dict[Observable, Observer] = {}
        biases = [m for m in self.gm.modules() if isinstance(m, AccumulatorQuantizer)] if self.bypass else []
        for node in self.gm.graph.nodes:
            module = module_of(self.gm, node)
            if node.op == "placeholder":
                self.observed[node] = Observer()
            elif module is not None and isinstance(module, Observable) and self.wanted(module):
                if module not in observers:
                    observers[module] = module.new_observer()
                self.observed[node] = observers[module]
        try:
            for bias in biases:
                bias.bypass(True)
            for quantizer, observer in observers.items():
                quantizer.observe(observer)
            yield
        finally:
            for bias in biases:
                bias.bypass(False)
            for quantizer in observers:
                quantizer.observe(None)


def _static(nodes: list[Node], observer: Observer) -> Observer | None:
    """An observer that has seen the whole range which the operators before these quantizers can fill; None: it is not bounded."""
    sources = [n.args[0] for n in nodes]
    ranges = [static_range(s) if isinstance(s, Node) else None for s in sources]
    known = [r for r in ranges if r is not None]
    if len(known) < len(ranges):
        return None
    made = Observer(observer.shape)
    low, _ = observer.extremes
    for bound in (min(r[0] for r in known), max(r[1] for r in known)):
        made.update(torch.full_like(low, bound))
    return made


def _start_parameters(gm: GraphModule) -> None:
    """Let the quantizers of parameters take their first formats from what reaches them in evaluation."""
    starting = {path: m for path, m in gm.named_modules() if isinstance(m, StartsFromValue)}
    values = _parameter_values(gm) if starting else {}
    for path, module in starting.items():
        if path in values:
            module.start(values[path])


def _parameter_values(gm: GraphModule) -> dict[str, Tensor]:
    """By module path, the value that reaches each quantizer of a parameter in evaluation."""
    known = constant_values(gm)
    quantizers = [n for n in known if isinstance(module_of(gm, n), Quantizer)]
    return {str(n.target): known[n.args[0]] for n in quantizers}  # type: ignore[index]


@contextmanager
def _restored_on_error(gm: GraphModule) -> Iterator[None]:
    restore = [m.snapshot() for m in gm.modules() if isinstance(m, Restorable)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for undo in restore:
                undo()
        raise


def _run(gm: GraphModule, batches: Iterable[Any], observed: Mapping[Node, Observer]) -> int:
    """Run the graph on every batch that holds a sample; inputs are observed too."""
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    seen = 0
    for batch in batches:
        given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if any(isinstance(x, Tensor) and x.numel() == 0 for x in given):
            continue
        for node, x in zip(inputs, given):
            if isinstance(x, Tensor) and x.is_floating_point():
                observed[node].update(x)
        gm(*given)
        seen += 1
    return seen
