"""bake_weights: training ends, constants begin.

    get_attr conv.weight -> * scale -> Mask -> DynamicQuantizer -> F.conv2d
        ->   get_attr pq.conv.weight.value -> FixedQuantizer -> F.conv2d          the value lies on the grid already
    CalibratedQuantizer(x)    ->   FixedQuantizer(x)                              static formats
    x * 2^round(m)            ->   x * 0.5                                        the learned power of two as a number
    Dropout(x)                ->   x

Every parameter value is computed once, in evaluation: masks, BatchNorm's arithmetic and running statistics vanish into it.
The quantizer stays on its constant, because it names the format; where every element had a width of its own, that becomes the
fewest bits which hold its value (a pruned weight has none). Results in eval keep every bit; results in train change
by design (no dropout, no batch statistics), which is why the pass does not call itself exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.graph.constants import computes, constant_values, live_nodes, readers
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, module_of
from pquant_fx.graph.info import info, place, set_info
from pquant_fx.graph.intervals import CONSTANT_BITS, Inexact, constant
from pquant_fx.graph.power_of_two import PowerOfTwo
from pquant_fx.graph.rewriter import OWN, Rewriter, is_own_constant
from pquant_fx.quantize.minimal import with_minimal_formats
from pquant_fx.quantize.quantizers import FixedQuantizer

__all__ = ["bake_weights"]


def bake_weights(gm: GraphModule) -> bool:
    """Replace parameter values by constants and every quantizer by its static equivalent. A second run changes nothing.

    Raises LoweringError with all findings: PQ305 for NaN in a parameter, PQ202 for an unquantized parameter that is no
    dyadic number of at most 24 bits, PQ307 for a quantizer without a format.
    """
    values = {node: v for node, v in constant_values(gm).items() if isinstance(v, Tensor)}
    rw = Rewriter(gm)
    live = live_nodes(gm)
    problems = [p for node in gm.graph.nodes if node in live and (p := _problem(node, rw, values, live)) is not None]
    if problems:
        raise LoweringError(problems)
    for node in list(gm.graph.nodes):
        quantizer = module_of(gm, node)
        if isinstance(quantizer, Quantizer) and node in values:
            _bake_quantizer(node, quantizer, rw, values)
        elif isinstance(quantizer, Quantizer):
            _freeze_quantizer(node, quantizer, rw)
        elif isinstance(quantizer, PowerOfTwo):
            _bake_factor(node, quantizer.number(), rw)
        elif node in values and _feeds_data(gm, node, values, live):
            _bake_value(node, rw, values[node])
        elif isinstance(quantizer, IDENTITIES):
            rw.remove(node)
    rw.sweep()
    return rw.changed


def _feeds_data(gm: GraphModule, node: Node, values: dict[Node, Tensor], live: set[Node]) -> bool:
    return any(user not in values for user in readers(gm, node, live))


def _problem(node: Node, rw: Rewriter, values: dict[Node, Tensor], live: set[Node]) -> Problem | None:
    """Why `node` can not become a constant or a static quantizer."""
    found = module_of(rw.gm, node)
    quantizer = found if isinstance(found, Quantizer) else None
    if quantizer is not None and not quantizer.calibrated:
        what = f"the quantizer '{node.target}' has no format yet"
        return Problem("PQ307", what, "call `model.calibrate(batches)` with real data, or set a format", place(node))
    if node not in values or not (quantizer is not None or any(u not in values and computes(rw.gm, u) for u in readers(rw.gm, node, live))):
        return None
    try:
        constant(values[node].cpu().double().numpy(), *(() if quantizer is not None else (CONSTANT_BITS,)))
    except Inexact as error:
        return Problem(error.code, f"'{node.name}': {error.what}", error.remedy, place(node))
    return None


def _bake_quantizer(node: Node, quantizer: Quantizer, rw: Rewriter, values: dict[Node, Tensor]) -> None:
    """The quantized value as a constant under a static quantizer of its own."""
    source = node.args[0]
    assert isinstance(source, Node)
    path = str(node.target)
    if type(quantizer) is FixedQuantizer and is_own_constant(source) and torch.equal(values[source], values[node]):
        return
    try:
        made = with_minimal_formats(_static(quantizer, values[source]), values[node])
    except ConfigError as error:
        raise LoweringError([Problem(p.code, f"'{path}': {p.what}", p.remedy, place(node)) for p in error.problems]) from error
    alone = sum(1 for n in rw.graph.nodes if n.op == "call_module" and n.target == path) == 1
    label = path.removeprefix(f"{OWN}.").removesuffix("_quantizer")
    with rw.before(node):
        baked = rw.constant(label, values[node].clone())
        record = replace(info(node), shape=tuple(values[node].shape))
        set_info(baked, record)
        set_info(node, record)
        if alone:
            rw.exchange(path, made)
            rw.set_args(node, baked)
            return
        new = rw.call_module(rw.own(f"{label}_quantizer", made), baked)
    rw.replace(node, new)


def _freeze_quantizer(node: Node, quantizer: Quantizer, rw: Rewriter) -> None:
    """The same format, which nothing will change any more."""
    if type(quantizer) is not FixedQuantizer:
        rw.exchange(str(node.target), _static(quantizer, None))


def _bake_factor(node: Node, number: float, rw: Rewriter) -> None:
    """A learned power of two as a number, which every engine reads as a shift; a factor of 1 goes."""
    for user in list(node.users):
        if number == 1:
            rw.remove(user)
        else:
            rw.set_args(user, *(number if a is node else a for a in user.args))


def _bake_value(node: Node, rw: Rewriter, value: Tensor) -> None:
    """A constant that data meets without a quantizer."""
    if is_own_constant(node):
        return
    label = str(node.target) if node.op == "get_attr" else node.name
    with rw.before(node):
        baked = rw.constant(label.removeprefix(f"{OWN}."), value.clone())
    rw.replace(node, baked)


def _static(quantizer: Quantizer, value: Tensor | None) -> FixedQuantizer:
    """The quantizer's own frozen form; one made of its formats for quantizers of other packages, which need not have any."""
    frozen: Any = getattr(quantizer, "frozen", None)
    if callable(frozen):
        made = frozen(value)
        assert isinstance(made, FixedQuantizer)
        return made
    return FixedQuantizer(*quantizer.kif(value), quantizer.rounding, quantizer.overflow).frozen()
