"""The places where data is multiplied with a parameter of the network: layers, and products that the user wrote out.

    F.linear(x, W, b)   F.conv2d(x, W, b, ...)      W as torch keeps it
    torch.matmul(x, W)                              W (inputs, outputs)
    torch.matmul(W, x)                              W (outputs, inputs): the features of the result are its last axis but one

and the same with a transposed parameter, whose axes change places.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import Node

from pquant_fx.graph.constants import value_given
from pquant_fx.graph.dialect import is_parameter_value, op_of
from pquant_fx.graph.info import info
from pquant_fx.graph.values import multiplies_parameter
from pquant_fx.prune import Layout, layout_of

__all__ = ["Product", "added_constants", "product_of", "with_addends"]


@dataclass(frozen=True)
class Product:
    """data, weight: the operands. layout: of the parameter that the weight is made of; None where its axes are moved about, other
    than transposed. behind: how many axes of the result come after its features.
    """

    data: Node
    weight: Node
    layout: Layout | None
    behind: int = 0


def product_of(node: Node) -> Product | None:
    """The product that a node computes; None where it computes none, or one of two data values."""
    op = op_of(node)
    if op is None or not multiplies_parameter(node):
        return None
    a, b = node.args[:2]
    if not isinstance(a, Node) or not isinstance(b, Node):
        return None
    if op.kind == "weighted":
        return Product(a, b, _moved(layout_of(node), b), 0 if op.name == "linear" else len(info(node).shape or ()) - 2)
    if is_parameter_value(a):
        return Product(b, a, _moved(Layout(), a), 1)
    return Product(a, b, _moved(Layout(outputs=1, inputs=0), b))


def _moved(layout: Layout, weight: Node) -> Layout | None:
    """The layout of the parameter behind `weight`, through scalings and transpositions."""
    turned = False
    while weight.op != "get_attr":
        source = weight.args[0] if weight.args else None
        if not isinstance(source, Node):
            return None
        if weight.op == "call_function" and weight.target is not operator.mul:
            moves = _is_transposition(source, weight)
            if moves is None:
                return None
            turned ^= moves
        weight = source
    if not turned:
        return layout
    return Layout(layout.inputs, layout.outputs) if layout.groups == 1 and len(info(weight).shape or ()) == 2 else None


def _is_transposition(source: Node, moved: Node) -> bool | None:
    """Whether a node turns a value of two axes round; None where it does anything else but hand it on."""
    shape, gm = info(source).shape, moved.graph.owning_module
    if shape is None or gm is None or list(moved.all_input_nodes) != [source]:
        return None
    numbers = torch.arange(math.prod(shape), dtype=torch.get_default_dtype()).reshape(shape)
    found = value_given(gm, moved, {source: numbers})
    if torch.equal(found, numbers):
        return False
    return True if len(shape) == 2 and torch.equal(found, numbers.T) else None


def added_constants(node: Node, factors: bool = True) -> Iterator[tuple[Node, int]]:
    """The sums behind a product that add a constant of the circuit to it, with the constant's position; factors: also behind constant
    factors, as a BatchNorm has one."""
    targets = (operator.add, operator.sub, operator.mul) if factors else (operator.add, operator.sub)
    while len(node.users) == 1:
        (user,) = node.users
        operands = list(user.args[:2])
        constant = [at for at, a in enumerate(operands) if isinstance(a, Node) and is_parameter_value(a)]
        if user.target not in targets or len(constant) != 1 or operands.count(node) != 1:
            return
        if user.target is not operator.mul:
            yield user, constant[0]
        node = user


def with_addends(node: Node) -> Node:
    """The product with the constants that are added to it."""
    found = [user for user, _ in added_constants(node, factors=False)]
    return found[-1] if found else node
