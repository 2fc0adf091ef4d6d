"""How each operator of the dialect couples channels: one row an operator, `COUPLINGS[op]`.

A row says which indices of operands and result go together, and which arguments change when some have gone. Axes are those
of one sample (argument axes minus one); an axis that a row does not speak about is held, so an incomplete row removes nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph import coupling_moves as moves
from pquant_fx.graph import coupling_rules as rules
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.coupled_axes import Axes, CoupledAxes
from pquant_fx.graph.coupling_rules import Kept
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.rewriter import is_own_constant
from pquant_fx.graph.tables import TABLE_FUNCTIONS, lookup

__all__ = ["COUPLINGS", "Coupling", "couple", "coupling_of"]

Couple = Callable[[CoupledAxes, Node, Sequence[Axes | None]], None]
"""rule(coupled, node, units of the result, then those of each argument: None for what is no tensor)."""


@dataclass(frozen=True)
class Coupling:
    """couple: records what goes together. resized(node, kept): the arguments once the rest is gone (None: they stay)."""

    couple: Couple
    resized: Callable[[Node, Kept], tuple[Any, ...]] | None = None


def couple(gm: GraphModule, formats: FormatMap) -> CoupledAxes:
    """The coupled units of a graph whose parameters are constants of ours and whose quantizers are static.

    Whatever else there is (parameters of the user, opaque nodes, inputs, outputs) is held.
    """
    coupled = CoupledAxes(gm, formats)
    later = []
    for node in gm.graph.nodes:
        if node.target is torch.reshape:
            later.append(node)  # which axis of a block may shrink depends on all others
        else:
            _visit(coupled, node)
    for node in later:
        _visit(coupled, node)
    return coupled


def coupling_of(node: Node) -> Coupling | None:
    """The row of the operator that `node` calls; None for everything else."""
    return COUPLINGS.get(node.target) if node.op == "call_function" and callable(node.target) else None


def _visit(coupled: CoupledAxes, node: Node) -> None:
    operands, constants = node.all_input_nodes, coupled.formats.constants
    if node.op == "placeholder":
        _hold(coupled, [node], node, "is an input of the network")
    elif node.op == "output":
        _hold(coupled, operands, node, "returns it: outputs keep their shape")
    elif node.op == "get_attr" and not is_own_constant(node):
        _hold(coupled, [node], node, "is no constant that freezing made")
    elif node.op != "get_attr":
        row = coupling_of(node) if node not in constants else None
        quantizer = coupled.quantizer(node)
        if quantizer is not None:
            _quantizer(coupled, node)
        elif row is not None and all(coupled.axes(n) is not None for n in (node, *operands)):
            row.couple(coupled, node, [coupled.axes(node), *(coupled.axes(a) if isinstance(a, Node) else None for a in node.args)])
        coupled.finish(node, [node, *operands])


def _hold(coupled: CoupledAxes, values: Sequence[Node], node: Node, why: str) -> None:
    for value in values:
        for units in coupled.axes(value) or ():
            coupled.hold(units, node, why)


def _quantizer(coupled: CoupledAxes, node: Node) -> None:
    """A quantizer that is called at several places has one format, which gets smaller for all of them."""
    x, result, quantizer = coupled.axes(node.all_input_nodes[0]), coupled.axes(node), coupled.quantizer(node)
    if x is None or result is None or quantizer is None:
        return
    rules.broadcast(coupled, node, result, x)
    rules.broadcast(coupled, node, result, coupled.format_axes(node, quantizer))


_VALUE_BY_VALUE = Coupling(rules.elementwise)
_CONVOLUTION = Coupling(rules.convolution, rules.fewer_groups)
_TRANSPOSED = Coupling(rules.transposed_convolution, rules.fewer_groups)
_POOL = Coupling(rules.pool)
_REDUCTION = Coupling(rules.reduction)
COUPLINGS: dict[Callable[..., Any], Coupling] = {
    F.linear: Coupling(rules.linear),
    F.conv1d: _CONVOLUTION,
    F.conv2d: _CONVOLUTION,
    F.conv_transpose1d: _TRANSPOSED,
    F.conv_transpose2d: _TRANSPOSED,
    torch.matmul: Coupling(rules.matmul),
    operator.add: _VALUE_BY_VALUE,
    operator.sub: _VALUE_BY_VALUE,
    operator.mul: _VALUE_BY_VALUE,
    operator.truediv: _VALUE_BY_VALUE,
    operator.neg: _VALUE_BY_VALUE,
    torch.maximum: _VALUE_BY_VALUE,
    torch.minimum: _VALUE_BY_VALUE,
    torch.rsqrt: _VALUE_BY_VALUE,
    F.relu: _VALUE_BY_VALUE,
    F.relu6: _VALUE_BY_VALUE,
    F.leaky_relu: _VALUE_BY_VALUE,
    F.hardtanh: _VALUE_BY_VALUE,
    F.prelu: Coupling(rules.prelu),
    **dict.fromkeys(TABLE_FUNCTIONS, _VALUE_BY_VALUE),
    lookup: Coupling(rules.table),
    F.avg_pool1d: _POOL,
    F.avg_pool2d: _POOL,
    torch.mean: _REDUCTION,
    scaled_pool: _POOL,
    scaled_sum: _REDUCTION,
    torch.sum: _REDUCTION,
    embed: Coupling(rules.embedding),
    upsample: _POOL,
    F.max_pool1d: _POOL,
    F.max_pool2d: _POOL,
    torch.amax: _REDUCTION,
    F.pad: Coupling(moves.padding, moves.smaller_pads),
    torch.cat: Coupling(moves.concatenation),
    torch.reshape: Coupling(moves.reshaping, moves.new_shape),
    torch.permute: Coupling(moves.permutation),
    operator.getitem: Coupling(moves.selection, moves.fewer_taken),
}
