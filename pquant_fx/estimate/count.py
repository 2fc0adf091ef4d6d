"""From a graph to its EBOPs: which operators are counted, and what part of a streamed layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.fx import GraphModule, Node

from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.estimate.bits import Sign, Uncountable, check_sign
from pquant_fx.estimate.costs import Cost
from pquant_fx.estimate.ebops import Ebops, EbopsRow
from pquant_fx.estimate.exact import Exact
from pquant_fx.estimate.reader import Reader
from pquant_fx.estimate.rules import rule_of
from pquant_fx.graph.analysis import FormatMap, analyse, sample_shape
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import IDENTITIES, Op, Quantizer, is_parameter_value, module_of, op_of
from pquant_fx.graph.info import info, place

__all__ = ["Term", "costs_of", "exact_ebops", "opaque", "report", "terms_of"]


@dataclass(frozen=True)
class Term:
    """An operator that costs something, where n_parallel of its positions are computed at once."""

    node: Node
    op: str
    cost: Cost
    module: str
    n_parallel: int | None
    positions: int | None

    def ebops(self, reader: Reader) -> Tensor | None:
        """EBOPs of what is computed at once, a 0-d tensor; None for wires only. Raises Uncountable."""
        cost = self.cost(reader, self.node, *self.node.args)
        if cost is None or self.n_parallel is None or self.positions is None or self.n_parallel == self.positions:
            return cost
        return cost * (self.n_parallel / self.positions)


def exact_ebops(
    gm: GraphModule,
    formats: FormatMap | None = None,
    *,
    sign: str = "weights_unsigned",
    parallel: Mapping[str, int] | None = None,
    strict: bool = True,
) -> Ebops:
    """The exact EBOPs of a compiled graph as evaluation sees it, or of a frozen one; equal for the same weights.

    formats: what `analyse(gm)` found, to save the time. sign, parallel: see `EbopsPlan`. strict=False leaves out what can not
    be counted, and says so in `uncounted`. Raises LoweringError (PQ2xx, PQ3xx) with everything that has no exact format.
    """
    formats = analyse(gm) if formats is None else formats
    reader = Exact(gm, formats, check_sign(sign))
    problems = opaque(gm)
    costs = list(costs_of(reader, terms_of(gm, parallel or {}), problems))
    if problems and strict:
        raise LoweringError([*formats.problems.values(), *formats.raw.values()] or problems)
    return report(costs, reader.sign, "exact", list(dict.fromkeys(problems)))


def terms_of(gm: GraphModule, parallel: Mapping[str, int]) -> list[Term]:
    """Every operator on data that costs something. Raises ConfigError: PQ405 for an unknown module in `parallel`, PQ407 below 1."""
    live = live_nodes(gm)
    terms, named = [], set[str]()
    for node in gm.graph.nodes:
        record = info(node)
        named |= {record.label, record.path}
        op, rule = op_of(node), rule_of(node)
        if node not in live or is_parameter_value(node) or op is None or rule is None or rule.cost is None:
            continue
        positions = _positions(node, op)
        asked = parallel.get(record.label, parallel.get(record.path))
        n_parallel = positions if positions is None or asked is None else min(asked, positions)
        terms.append(Term(node, op.name, rule.cost, record.label, n_parallel, positions))
    wrong = [_no_module(name) for name in parallel if name not in named]
    wrong += [Problem("PQ407", f"n_parallel of '{name}' is {n}", "use 1 or more") for name, n in parallel.items() if n < 1]
    if wrong:
        raise ConfigError(wrong)
    return terms


def _no_module(name: str) -> Problem:
    return Problem("PQ405", f"n_parallel names '{name}', which is no module of the graph", "name a module path, or path@site")


def _positions(node: Node, op: Op) -> int | None:
    """Positions at which a convolution or a time-distributed dense layer is computed; None for one, and for other operators."""
    shape = sample_shape(node)
    if shape is None or op.kind != "weighted":
        return None
    count = math.prod(shape[:-1] if op.name == "linear" else shape[1:])
    return count if count > 1 else None


def costs_of(reader: Reader, terms: Sequence[Term], problems: list[Problem]) -> Iterator[tuple[Term, Tensor]]:
    """The terms that cost something, with their EBOPs; why others can not be counted goes to `problems`."""
    for term in terms:
        try:
            cost = term.ebops(reader)
        except Uncountable as error:
            problems.append(error.problem)
            continue
        if cost is not None:
            yield term, cost


def opaque(gm: GraphModule) -> list[Problem]:
    """Operators on data that the table does not know: nobody can say what they cost."""
    live, known = live_nodes(gm), (Quantizer, *IDENTITIES)
    found = [n for n in gm.graph.nodes if n in live and n.op in ("call_function", "call_module") and not is_parameter_value(n)]
    unknown = [n for n in found if rule_of(n) is None and not isinstance(module_of(gm, n), known)]
    return [Problem("PQ201", f"no EBOPs: '{n.name}' is opaque", "write it with operators of the dialect", place(n)) for n in unknown]


def report(costs: Sequence[tuple[Term, Tensor]], sign: Sign, kind: Literal["exact", "surrogate"], problems: Sequence[Problem]) -> Ebops:
    """The table of those costs, one an operator."""
    values = [float(cost) for _, cost in costs]
    whole = sum(values) or 1.0
    rows = [
        EbopsRow(term.node.name, term.module, term.op, value, value / whole, term.n_parallel, term.positions)
        for (term, _), value in zip(costs, values)
    ]
    return Ebops(tuple(rows), sign, kind, tuple(problems))
