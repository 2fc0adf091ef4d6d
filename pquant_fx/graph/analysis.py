"""Exact analysis: `analyse(gm)` finds, for every value of a graph, the integer codes it can hold and why not where it can not.

One walk over the graph, each operator by its interval rule: the cost is that of a few evaluations of one sample. Works on
compiled graphs as well (as they are in evaluation); formats are read from the quantizers, so a result is never stale, only
never kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.formats import FixedFormat
from pquant_fx.graph.alternatives import alternative
from pquant_fx.graph.constants import computes, constant_values, live_nodes, readers
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, module_of, op_of
from pquant_fx.graph.info import info, place
from pquant_fx.graph.interval_quantizer import QuantizerFacts, formats_of, full_range, quantize_interval
from pquant_fx.graph.interval_rules import RULES
from pquant_fx.graph.interval_tables import require_table
from pquant_fx.graph.intervals import CONSTANT_BITS, Inexact, Interval, constant
from pquant_fx.graph.operand_marks import why_opaque
from pquant_fx.graph.tables import lookup

__all__ = ["FormatMap", "analyse", "sample_shape"]

_BATCH = "it broadcasts or reshapes over the batch axis"


@dataclass(frozen=True, eq=False)
class FormatMap:
    """What is known about the values of one graph.

    intervals: of every node that computes a tensor, None where it is off any known grid; accumulators: bounds of partial
    sums in any order, of weighted, arithmetic and pool nodes; constants: parameter values as evaluation sees them;
    facts: what is proven about each data quantizer; reasons: why an interval is None, in words;
    problems: the nodes that have no exact meaning by themselves; raw: nodes that use a value before it is quantized.
    """

    intervals: Mapping[Node, Interval | None]
    accumulators: Mapping[Node, Interval]
    constants: Mapping[Node, Tensor]
    facts: Mapping[Node, QuantizerFacts]
    reasons: Mapping[Node, str]
    problems: Mapping[Node, Problem]
    raw: Mapping[Node, Problem]

    def __getitem__(self, node: Node) -> Interval:
        """The interval of `node`. Raises LoweringError with the reason when there is none."""
        found = self.intervals.get(node)
        if found is not None:
            return found
        cause = self.problems.get(node) or self.raw.get(node)
        what = f"'{node.name}' has no exact format: {self.reasons.get(node, 'it is no value of this graph')}"
        raise LoweringError(cause or Problem("PQ202", what, "mend the named cause first", place(node)))

    def format(self, node: Node) -> FixedFormat | None:
        """The smallest format that holds the value of `node`; None when it is off grid."""
        found = self.intervals.get(node)
        return None if found is None else found.format()

    def bits(self, node: Node) -> int | None:
        """Magnitude bits that the value of `node` and every partial sum of it need; None when it is off grid."""
        found = self.intervals.get(node)
        if found is None:
            return None
        sums = self.accumulators.get(node)
        return max(found.bits, sums.bits if sums is not None else 0)

    def require(self) -> None:
        """Raise LoweringError with every problem of the graph, if there is any."""
        if found := [*self.problems.values(), *self.raw.values()]:
            raise LoweringError(found)


def sample_shape(node: Node) -> tuple[int, ...] | None:
    """The shape of one sample of a data value, None when no shape was recorded."""
    shape = info(node).shape
    return None if shape is None else tuple(shape[1:])


def analyse(gm: GraphModule, *, declared: bool = False) -> FormatMap:
    """Intervals, accumulators and facts of `gm` in evaluation. Changes nothing; findings are kept for `FormatMap.require`.

    Inputs are real numbers until their first quantizer. declared: take the whole range of its format as the result of each
    data quantizer, so that what follows from it does not rest on today's weights. Raises LoweringError where a parameter
    can not even be computed.
    """
    return _Analysis(gm, declared).run()


@dataclass
class _Analysis:
    gm: GraphModule
    declared: bool
    intervals: dict[Node, Interval | None] = field(default_factory=dict)
    accumulators: dict[Node, Interval] = field(default_factory=dict)
    facts: dict[Node, QuantizerFacts] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)
    problems: dict[Node, Problem] = field(default_factory=dict)
    raw: dict[Node, Problem] = field(default_factory=dict)
    _real: set[Node] = field(default_factory=set)  # values that are still the user's real numbers

    def run(self) -> FormatMap:
        self.constants = constant_values(self.gm)
        self.live = live = live_nodes(self.gm)
        for node in self.gm.graph.nodes:
            if node.op == "output":
                self._output(node)
            elif node not in live:
                self._unknown(node, "evaluation does not use it")
            else:
                self._visit(node)
        tensors = {n: v for n, v in self.constants.items() if isinstance(v, Tensor)}
        return FormatMap(self.intervals, self.accumulators, tensors, self.facts, self.reasons, self.problems, self.raw)

    # ---- one node
    def _visit(self, node: Node) -> None:
        try:
            if node.op == "placeholder":
                self._real.add(node)
                self._unknown(node, "inputs are real numbers until a quantizer rounds them")
            elif node in self.constants:
                self._constant(node)
            elif isinstance(quantizer := module_of(self.gm, node), Quantizer):
                self._quantizer(node, quantizer)
            elif isinstance(quantizer, IDENTITIES):
                self._identity(node)
            elif (op := op_of(node)) is not None and op.kind == "table" and node.target is not lookup:
                self._table(node)
            else:
                self._operator(node)
        except Inexact as error:
            self._refuse(node, error)

    def _constant(self, node: Node) -> None:
        value = self.constants[node]
        quantizer = module_of(self.gm, node)
        used = any(user not in self.constants and computes(self.gm, user) for user in readers(self.gm, node, self.live))
        if not isinstance(value, Tensor) or not (used or isinstance(quantizer, Quantizer)):
            self._unknown(node, "a parameter before its quantizer")
            return
        array = value.detach().cpu().double().numpy()
        if isinstance(quantizer, Quantizer):
            if not quantizer.calibrated:
                raise _uncalibrated()
            self.intervals[node] = constant(array)
            return
        try:
            self.intervals[node] = constant(array, CONSTANT_BITS)
        except Inexact as error:
            if error.code == "PQ305":
                raise
            self._unknown(node, error.what)
            self.raw[node] = Problem(error.code, f"'{node.target}': {error.what}", error.remedy, place(node))

    def _quantizer(self, node: Node, quantizer: Quantizer) -> None:
        source = node.args[0]
        assert isinstance(source, Node)
        x = self.intervals.get(source)
        shape = x.shape if x is not None else sample_shape(source)
        if shape is None:
            raise Inexact("PQ202", "the shape of its input is not known", "run `propagate_shapes` after the pass that made it")
        if not quantizer.calibrated:
            raise _uncalibrated()
        formats = formats_of(quantizer, shape, data=True)
        if x is None:
            self.intervals[node] = full_range(formats, quantizer.overflow)
            self.facts[node] = QuantizerFacts(never_overflows=False, never_rounds=False)
        else:
            value, self.facts[node] = quantize_interval(x, formats, quantizer.rounding, quantizer.overflow)
            self.intervals[node] = full_range(formats, quantizer.overflow) if self.declared else value

    def _identity(self, node: Node) -> None:
        source = node.args[0]
        assert isinstance(source, Node)
        self.intervals[node] = self.intervals.get(source)
        if self.intervals[node] is None:
            self._blame(node, [source])

    def _table(self, node: Node) -> None:
        """Real numbers again, until a quantizer makes them the entries of a table."""
        x = self.intervals.get(node.all_input_nodes[0])
        if x is None:
            self._blame(node, node.all_input_nodes)
            return
        require_table(x)
        self._real.add(node)
        self._unknown(node, "its results are real numbers until a quantizer rounds them")

    def _operator(self, node: Node) -> None:
        op = op_of(node)
        if op is None or not callable(node.target):
            name, module = _called(self.gm, node)
            why, remedy = why_opaque(node) or ("", alternative(name, module))
            raise Inexact("PQ201", f"{name} has no exact integer meaning{why}", remedy)
        unknown = [n for n in node.all_input_nodes if self.intervals.get(n) is None]
        args = self._operands(node)
        if args is None:
            self._blame(node, unknown)
            return
        value, accumulator = RULES[node.target](*args)
        value = self._sample(node, value)
        if unknown:
            self._blame(node, unknown)
            return
        self.intervals[node] = value
        if accumulator is not None and op.kind in ("weighted", "arithmetic", "pool"):
            self.accumulators[node] = self._sample(node, accumulator)

    # ---- operands and results
    def _operands(self, node: Node) -> Any:
        """The node's arguments as intervals, data with a batch axis of 1; None when the shape of one is not known.

        An input that has no interval is taken as zeros of its shape, only to hear what else the rule objects to.
        """
        missing = False

        def operand(a: Any) -> Any:
            nonlocal missing
            if not isinstance(a, Node):
                return a
            known = self.intervals.get(a)
            if known is None:
                shape = tuple(self.constants[a].shape) if a in self.constants else sample_shape(a)
                if shape is None:
                    missing = True
                    return None
                nothing = np.zeros(shape, dtype=np.int64)
                known = Interval(0, nothing, nothing)
            return known if a in self.constants else known.moved(np.expand_dims, 0)

        args = map_aggregate((*node.args, *node.kwargs.values()), operand)
        return None if missing else args

    def _sample(self, node: Node, value: Interval) -> Interval:
        """The value of one sample; raises Inexact (PQ202) when samples of a batch were mixed."""
        data = [n for n in node.all_input_nodes if n not in self.constants]
        ranks = {len(found.shape) + 1 if (found := self.intervals.get(n)) is not None else len(sample_shape(n) or ()) + 1 for n in data}
        op = op_of(node)
        name = op.name if op is not None else ""
        mixed = not value.shape or value.shape[0] != 1
        if name == "matmul":
            mixed = mixed or len(ranks) > 1 or (node.args[1] in data and min(ranks) < 3)
        elif op is not None and op.kind == "arithmetic":
            mixed = mixed or {value.low.ndim} != ranks
        if mixed:
            raise Inexact("PQ202", _BATCH, "keep axis 0 for the batch: a circuit sees one sample at a time")
        return value.moved(np.squeeze, 0)

    # ---- what can not be known
    def _output(self, node: Node) -> None:
        for used in node.all_input_nodes:
            if used in self._real:
                what = f"the output returns '{used.name}', which no quantizer has rounded"
                self.raw[node] = Problem("PQ202", what, "put a quantizer on it", place(used))

    def _unknown(self, node: Node, reason: str) -> None:
        self.intervals[node] = None
        self.reasons[node] = reason

    def _refuse(self, node: Node, error: Inexact) -> None:
        self._unknown(node, error.what)
        what = f"'{node.name}': {error.what}"
        self.problems[node] = Problem(error.code, what, error.remedy, place(node))

    def _blame(self, node: Node, unknown: list[Node]) -> None:
        """`node` has no interval because of its inputs: real numbers may still be moved about, nothing else."""
        op = op_of(node)
        real = [n for n in unknown if n in self._real]
        self._unknown(node, f"its input '{unknown[0].name}' has none")
        if not real:
            return
        if len(real) == len(node.all_input_nodes) and (op is None or op.kind == "grid"):
            self._real.add(node)
            return
        what = f"'{node.name}' uses '{real[0].name}' before a quantizer has rounded it"
        remedy = "quantize the network's inputs (quantize_input: true)" if real[0].op == "placeholder" else "quantize it (quantize: true)"
        self.raw[node] = Problem("PQ202", what, remedy, place(node))


def _uncalibrated() -> Inexact:
    return Inexact("PQ307", "its format was never set", "calibrate the model with real data, or give a static format")


def _called(gm: GraphModule, node: Node) -> tuple[str, nn.Module | None]:
    """What an opaque node calls, in the user's words: a class with its module, or a function (also one that tracing wrapped)."""
    module = module_of(gm, node)
    wrapped = getattr(module, "function", None) if type(module).__module__.startswith("pquant_fx.") else None
    if module is not None and wrapped is None:
        return type(module).__name__, module
    function = node.target if wrapped is None else wrapped
    return getattr(function, "__name__", str(function)), None
