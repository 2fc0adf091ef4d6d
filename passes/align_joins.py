"""align_joins: how the branches of an add, a concat, a maximum share a grid.

align    nothing to do: grids are powers of two, the sum of two formats is exact (the default)
shared   q(a) + q(b) with one and the same Quantizer, for toolchains that need equal scales
requant  q(a + b): the result is quantized at the join
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from pquant_fx.config import Config
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.info import info
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.values import data_operands, is_data_quantizer, is_join, non_negative, quantized_source
from pquant_fx.passes.insert_quantizers import data_quantizer
from pquant_fx.passes.settings import own_path, settings_of, type_name

__all__ = ["AlignJoins"]


@dataclass(frozen=True)
class AlignJoins:
    """Apply the configured policy to every join."""

    config: Config
    name: ClassVar[str] = "align_joins"
    requires: ClassVar[tuple[str, ...]] = ("insert_quantizers",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in [n for n in gm.graph.nodes if is_join(n)]:
            record = info(node)
            policy = self.config.join_policy(path=record.path or node.name, type_name=type_name(gm, node), site=record.site)
            _POLICIES[policy](node, rw, self.config)
        return rw.changed


def _align(node: Node, rw: Rewriter, config: Config) -> None:
    """Exact as it is."""


def _shared(node: Node, rw: Rewriter, config: Config) -> None:
    """One quantizer for all branches; a branch that has one already takes the shared one instead."""
    operands = data_operands(node)
    path = rw.own(f"{own_path(node)}.shared_quantizer", _quantizer(node, rw, config))
    for operand in operands:
        if is_data_quantizer(operand):
            with rw.before(operand):
                rw.replace(operand, rw.call_module(path, operand.args[0]))
        else:
            with rw.after(operand):
                made = rw.call_module(path, operand)
            rw.redirect(node, operand, made)


def _requant(node: Node, rw: Rewriter, config: Config) -> None:
    """Quantize the result, unless it is moved straight from quantized values or quantized next anyway."""
    if quantized_source(node) or all(is_data_quantizer(u) for u in node.users):
        return
    users = list(node.users)
    with rw.after(node):
        made = rw.call_module(rw.own(f"{own_path(node)}.quantizer", _quantizer(node, rw, config)), node)
    for user in users:
        rw.redirect(user, node, made)


def _quantizer(node: Node, rw: Rewriter, config: Config) -> Quantizer:
    return data_quantizer(settings_of(config, rw.gm, node), config, unsigned=non_negative(node))


_POLICIES: dict[str, Callable[[Node, Rewriter, Config], None]] = {"align": _align, "shared": _shared, "requant": _requant}
