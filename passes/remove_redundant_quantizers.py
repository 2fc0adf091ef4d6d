"""remove_redundant_quantizers: a quantizer that provably does nothing goes.

    F.max_pool2d(Quantizer<8,3>(x)) -> Quantizer<10,4>   ->   F.max_pool2d(Quantizer<8,3>(x))
    Quantizer<12,4,TRN> -> Quantizer<8,3,TRN>            ->   Quantizer<8,3,TRN>

The first case needs a proof that every value the input can hold is on the quantizer's grid and inside its range. The
second is the only pair that always equals its last member: truncation composes (floor(floor(x)) on a coarser grid is
floor(x)), nearest rounding does not. The first quantizer of an input, those of parameters and those that declare the type
of an output stay. While training goes on, only formats that nothing can change count, and no weight does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from pquant_fx.graph.analysis import FormatMap, analyse
from pquant_fx.graph.dialect import Quantizer, is_parameter_value, module_of
from pquant_fx.graph.interval_quantizer import formats_of
from pquant_fx.graph.rewriter import Rewriter, is_own_constant
from pquant_fx.quantize.quantizers import FixedQuantizer

__all__ = ["RemoveRedundantQuantizers", "remove_redundant_quantizers"]


@dataclass(frozen=True)
class RemoveRedundantQuantizers:
    """Remove data quantizers that are identities, and the first of two truncating ones in a row."""

    name: ClassVar[str] = "remove_redundant_quantizers"
    exact: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        nodes = [n for n in gm.graph.nodes if isinstance(module_of(gm, n), Quantizer) and not is_parameter_value(n)]
        if not any(_is_static(n, rw) for n in nodes):
            return False
        frozen = _settled(nodes, rw, whole=True)
        formats = analyse(gm, declared=not frozen)
        candidates = [n for n in nodes if _is_static(n, rw) and _may_go(n)]
        identities = {n: None for n in candidates if _is_identity(n, rw, formats, frozen)}  # in order, and quick to look up
        for node in identities:
            rw.remove(node)
        # identities first: they change no value, while a merge takes the ground from under the proofs behind it
        for node in candidates:
            if node not in identities and _is_absorbed(node, rw, formats):
                rw.remove(node)
        return rw.changed


remove_redundant_quantizers = RemoveRedundantQuantizers()


def _may_go(node: Node) -> bool:
    """Not the first quantizer of an input, nor one that declares an output's type."""
    source = node.args[0]
    assert isinstance(source, Node)
    return source.op != "placeholder" and not any(user.op == "output" for user in node.users)


def _is_identity(node: Node, rw: Rewriter, formats: FormatMap, frozen: bool) -> bool:
    facts = formats.facts.get(node)
    return facts is not None and facts.is_identity and (frozen or _settled(node.all_input_nodes, rw, whole=False))


def _is_absorbed(node: Node, rw: Rewriter, formats: FormatMap) -> bool:
    users = list(node.users)
    return len(users) == 1 and _is_static(users[0], rw) and _absorbs(users[0], node, rw, formats)


def _is_static(node: Node, rw: Rewriter) -> bool:
    """Whether the node's format is given for good: calibration and training leave a plain FixedQuantizer alone."""
    module = rw.module(node, FixedQuantizer)
    return type(module) is FixedQuantizer and module.calibrated


def _settled(nodes: Iterable[Node], rw: Rewriter, whole: bool) -> bool:
    """Whether nothing that the `nodes` are computed from, themselves included, can change: static quantizers and baked constants only.

    whole: back to the inputs; otherwise back to the nearest quantizers.
    """
    stack, seen = list(nodes), set[Node]()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr" and not is_own_constant(current):
            return False
        if current.op == "call_module":
            if not _is_static(current, rw):
                return False
            if not whole and not is_parameter_value(current):
                continue
        stack.extend(current.all_input_nodes)
    return True


def _absorbs(last: Node, first: Node, rw: Rewriter, formats: FormatMap) -> bool:
    """Whether last(first(x)) = last(x) for every x: the same truncation and saturation, on a coarser grid, in a smaller range."""
    a, b = rw.module(first, FixedQuantizer), rw.module(last, FixedQuantizer)
    known = formats.intervals.get(first)
    if a is None or b is None or known is None:
        return False
    truncates = a.rounding in ("TRN", "TRN_ZERO") and a.overflow in ("SAT", "SAT_SYM")
    if not truncates or (a.rounding, a.overflow) != (b.rounding, b.overflow):
        return False
    inner, outer = formats_of(b, known.shape, data=True), formats_of(a, known.shape, data=True)
    if bool((inner.empty | outer.empty).any()):
        return False
    return bool((inner.f <= outer.f).all() and (inner.i <= outer.i).all() and (inner.k <= outer.k).all())
