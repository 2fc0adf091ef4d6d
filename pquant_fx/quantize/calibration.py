"""Calibration: the formats of data from observed values, then those of the biases from the formats around them.

The graph runs in eval mode with quantized weights and unquantized data. Network inputs and all observed values are
checked for NaN and infinity with a single synchronisation at the end. Either every format is set or none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from pquant_fx.errors import CalibrationError, Problem
from pquant_fx.graph.constants import evaluating
from pquant_fx.graph.dialect import Quantizer, attribute_at, module_of
from pquant_fx.graph.info import place
from pquant_fx.quantize.lsb import bias_fractions
from pquant_fx.quantize.observers import Observer
from pquant_fx.quantize.quantizers import AccumulatorQuantizer, CalibratedQuantizer
from pquant_fx.quantize.static import FixedQuantizer, FormatBuffers

__all__ = ["calibrate"]

Observed = dict[Node, Observer]


def calibrate(gm: GraphModule, batches: Iterable[Any]) -> int:
    """Observe every CalibratedQuantizer over `batches` and set its format; then each AccumulatorQuantizer's f (f_w + f_x).

    batches: tuples with one tensor an input of the graph (a lone tensor stands for a tuple of one). Returns how many were
    seen. Quantizers with a given format stay active. Raises CalibrationError: PQ305 for NaN or infinity in a parameter, an
    input or an observed value (naming node, module and line), PQ410 when there is no batch with a sample in it. Formats
    are then as before; modes and gradients never change.
    """
    _refuse_bad_parameters(gm)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(gm))
        observed = stack.enter_context(_observers(gm))
        values = stack.enter_context(_followed_values(gm))
        seen = _run(gm, batches, observed)
    _refuse_bad_values(gm, observed)
    _set_formats(gm, observed, values)
    return seen


def _set_formats(gm: GraphModule, observed: Observed, values: Mapping[str, Tensor]) -> None:
    restore = [m.snapshot() for m in gm.modules() if isinstance(m, FormatBuffers)]
    try:
        with torch.no_grad():
            for node, observer in observed.items():
                module = module_of(gm, node)
                if isinstance(module, CalibratedQuantizer) and observer.seen:
                    module.set_format(*module.format_for(observer))
            for path, f in bias_fractions(gm, values).items():
                quantizer = gm.get_submodule(path)
                assert isinstance(quantizer, AccumulatorQuantizer)
                quantizer.set_fraction(f)
    except BaseException:
        for undo in restore:
            undo()
        raise


def _run(gm: GraphModule, batches: Iterable[Any], observed: Observed) -> int:
    """Run the graph on every batch that holds a sample; inputs are observed too."""
    inputs = [n for n in gm.graph.nodes if n.op == "placeholder"]
    seen = 0
    for batch in batches:
        given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if any(isinstance(x, Tensor) and x.numel() == 0 for x in given):
            continue
        for node, x in zip(inputs, given):
            if isinstance(x, Tensor) and x.is_floating_point():
                observed.setdefault(node, Observer()).update(x)
        gm(*given)
        seen += 1
    if seen == 0:
        raise CalibrationError(Problem("PQ410", "calibration got no data", "give at least one batch with at least one sample"))
    return seen


@contextmanager
def _observers(gm: GraphModule) -> Iterator[Observed]:
    """An observer in every calibrated quantizer of the graph, and biases unrounded."""
    observed: Observed = {}
    calibrated: dict[CalibratedQuantizer, Observer] = {}
    biases = [m for m in gm.modules() if isinstance(m, AccumulatorQuantizer)]
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, CalibratedQuantizer):
            observed[node] = calibrated.setdefault(module, module.new_observer())
    try:
        for bias in biases:
            bias.bypass(True)
        for module, observer in calibrated.items():
            module.observe(observer)
        yield observed
    finally:
        for bias in biases:
            bias.bypass(False)
        for module in calibrated:
            module.observe(None)


@contextmanager
def _followed_values(gm: GraphModule) -> Iterator[dict[str, Tensor]]:
    """By module path, the last value that each quantizer without a stored format was given."""
    values: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, module in gm.named_modules():
            if isinstance(module, Quantizer) and not isinstance(module, FixedQuantizer):
                handle = module.register_forward_pre_hook(_keeper(values, path))
                stack.callback(handle.remove)
        yield values


def _keeper(values: dict[str, Tensor], path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        values[path] = args[0].detach()

    return keep


def _refuse_bad_parameters(gm: GraphModule) -> None:
    found: dict[str, tuple[Node, Tensor]] = {}
    for node in gm.graph.nodes:
        path = str(node.target)
        if node.op == "get_attr" and path not in found:
            value = attribute_at(gm, path)
            if isinstance(value, Tensor) and value.is_floating_point():
                found[path] = (node, value.detach().isfinite().all())
    _refuse(list(found.values()), "parameter '{}' holds NaN or infinity", "load an undamaged checkpoint before calibrating")


def _refuse_bad_values(gm: GraphModule, observed: Observed) -> None:
    order = {node: at for at, node in enumerate(gm.graph.nodes)}
    flags: list[tuple[Node, Tensor]] = []
    for node in sorted(observed, key=order.__getitem__):
        if observed[node].seen:
            low, high = observed[node].extremes
            flags.append((node, (low.isfinite() & high.isfinite()).all()))
    inputs = [flag for flag in flags if flag[0].op == "placeholder"]
    _refuse(inputs, "calibration data for input '{}' holds NaN or infinity", "remove such samples, or fill the missing values")
    inner = [flag for flag in flags if flag[0].op != "placeholder"]
    what = "the value that '{}' quantizes became NaN or infinite on the calibration data"
    _refuse(inner, what, "look at the operations before it: a division by zero, a logarithm, a diverged parameter", first=True)


def _refuse(flags: list[tuple[Node, Tensor]], what: str, remedy: str, first: bool = False) -> None:
    """Raise CalibrationError (PQ305) for the nodes whose flag is False; only for the first where later ones follow from it."""
    if not flags:
        return
    fine = torch.stack([flag for _, flag in flags]).tolist()
    bad = [node for (node, _), ok in zip(flags, fine) if not ok]
    if bad:
        named = bad[:1] if first else bad
        raise CalibrationError([Problem("PQ305", what.format(n.target), remedy, place(n)) for n in named])
