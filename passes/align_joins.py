"""align_joins: how the branches of an add, a concat, a maximum share a grid.

align    nothing to do: grids are powers of two, the sum of two formats is exact (the default)
shared   q(a) + q(b) with one and the same Quantizer, for toolchains that need equal scales
requant  q(a + b): the result is quantized at the join
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch.fx import GraphModule, Node

from pquant_fx.config import Config
from pquant_fx.graph.info import info
from pquant_fx.graph.placed import is_placed
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import data_operands, is_data_quantizer, is_join, non_negative, quantized_source
from pquant_fx.passes.quantizer_choice import data_quantizer
from pquant_fx.passes.settings import own_path, settings_of, type_name

__all__ = ["AlignJoins"]


@dataclass(frozen=True)
class AlignJoins:
    """Apply the configured policy to every join. Notes (PQ607) name branches whose quantizer the user placed: they keep it."""

    config: Config
    name: ClassVar[str] = "align_joins"
    requires: ClassVar[tuple[str, ...]] = ("insert_quantizers",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        joins = [n for n in gm.graph.nodes if is_join(n)]
        policies = {n: self._policy(n, gm) for n in joins}
        for group in _connected([n for n in joins if policies[n] == "shared"]):
            _share(group, rw, self.config)
        for node in joins:
            if policies[node] == "requant":
                _requantize(node, rw, self.config)
        return rw.changed

    def _policy(self, node: Node, gm: GraphModule) -> str:
        record = info(node)
        return self.config.join_policy(path=record.path or node.name, type_name=type_name(gm, node), site=record.site)


def _connected(joins: list[Node]) -> list[list[Node]]:
    """Joins that have a branch in common, directly or through others, must agree on its format."""
    groups: list[tuple[set[Node], list[Node]]] = []
    for join in joins:
        values = {_unquantized(o) for o in data_operands(join)}
        touching = [g for g in groups if g[0] & values]
        groups = [g for g in groups if g not in touching]
        merged = (values.union(*(g[0] for g in touching)), [*(j for g in touching for j in g[1]), join])
        groups.append(merged)
    return [members for _, members in groups]


def _unquantized(branch: Node) -> Node:
    source = branch.args[0] if is_data_quantizer(branch) and not is_placed(branch) else branch
    assert isinstance(source, Node)
    return source


def _share(joins: list[Node], rw: Rewriter, config: Config) -> None:
    """One quantizer for all branches; a branch that has one already takes the shared one instead, unless the user placed it."""
    branches: list[Node] = []
    for join in joins:
        for branch in data_operands(join):
            if is_placed(branch):
                what = f"the branch '{branch.name}' of '{join.name}' keeps the quantizer that was placed on it"
                rw.note("PQ607", what, "take it away for the shared one, or set the join's policy to align", branch)
            elif branch not in branches:
                branches.append(branch)
    if not branches or (all(map(is_data_quantizer, branches)) and len({str(b.target) for b in branches}) == 1):
        return
    settings = settings_of(config, rw.gm, joins[0])
    if len({info(b).shape for b in branches}) > 1:
        settings = replace(settings, data_granularity="per_tensor")  # no finer format fits values of different shapes
    quantizer = data_quantizer(settings, config, branches[0], unsigned=all(map(non_negative, branches)))
    path = rw.own(f"{own_path(joins[0])}.shared_quantizer", quantizer)
    for branch in branches:
        if is_data_quantizer(branch):
            with rw.before(branch):
                rw.replace(branch, rw.call_module(path, branch.args[0]))
            rw.disown(str(branch.target))
        else:
            with rw.after(branch):
                made = rw.call_module(path, branch)
            for join in joins:
                rw.redirect(join, branch, made)


def _requantize(node: Node, rw: Rewriter, config: Config) -> None:
    """Quantize the result, unless it is moved straight from quantized values or quantized next anyway."""
    users = [u for u in node.users if not is_data_quantizer(u)]
    if quantized_source(node) or not users:
        return
    quantizer = data_quantizer(settings_of(config, rw.gm, node), config, node, unsigned=non_negative(node))
    with rw.after(node):
        made = rw.call_module(rw.own(f"{own_path(node)}.quantizer", quantizer), node)
    for user in users:
        rw.redirect(user, node, made)
