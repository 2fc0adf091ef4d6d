"""Many spellings, one operator: after this pass a graph holds the operators of the dialect, in their canonical form."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.graph.batch import has_batch_axis, mark_without_batch_axis
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.canonical_activations import ACTIVATION_RULES
from pquant_fx.passes.canonical_form import NotCanonical, Rule, arguments, canonical, is_tensor
from pquant_fx.passes.canonical_layers import LAYER_RULES
from pquant_fx.passes.canonical_moves import MOVE_RULES
from pquant_fx.passes.canonical_shapes import SHAPE_RULES

__all__ = ["Canonicalize", "canonicalize"]

T = torch.Tensor


def binary(node: Node, rw: Rewriter, function: Callable[..., Any], swapped: bool = False) -> Node | None:
    """a + b however it is spelled; alpha becomes a factor of b. Numbers stay numbers."""
    a, b, alpha = arguments(node, "input", "other", "alpha", alpha=1)
    if alpha != 1:
        b = rw.call(operator.mul, b, alpha) if isinstance(b, Node) else b * alpha
    return canonical(node, rw, function, *((b, a) if swapped else (a, b)))


def division(node: Node, rw: Rewriter, swapped: bool = False) -> Node | None:
    a, b, rounding = arguments(node, "input", "other", "rounding_mode", rounding_mode=None)
    if rounding is not None:
        raise NotCanonical
    return canonical(node, rw, operator.truediv, *((b, a) if swapped else (a, b)))


def square(node: Node, rw: Rewriter) -> Node | None:
    """x ** 2 -> x * x, which is how torch computes it."""
    x, exponent = arguments(node, "input", "exponent", exponent=2)
    if type(exponent) not in (int, float) or exponent != 2:
        raise NotCanonical
    return rw.call(operator.mul, x, x)


def unary(node: Node, rw: Rewriter, function: Callable[..., Any]) -> Node | None:
    x, _ = arguments(node, "input", "inplace", inplace=False)
    return canonical(node, rw, function, x)


def extremum(node: Node, rw: Rewriter, function: Callable[..., Any]) -> Node | None:
    """torch.max(a, b) of two values -> torch.maximum; the reductions of that name stay."""
    a, b = arguments(node, "input", "other")
    if not isinstance(a, Node) or not isinstance(b, Node):
        raise NotCanonical
    return canonical(node, rw, function, a, b)


def leaky_relu(node: Node, rw: Rewriter) -> Node | None:
    x, slope, _ = arguments(node, "input", "negative_slope", "inplace", negative_slope=0.01, inplace=False)
    return canonical(node, rw, F.leaky_relu, x, slope)


def hardtanh(node: Node, rw: Rewriter) -> Node | None:
    x, low, high, _ = arguments(node, "input", "min_val", "max_val", "inplace", min_val=-1.0, max_val=1.0, inplace=False)
    return canonical(node, rw, F.hardtanh, x, low, high)


def identity(node: Node, rw: Rewriter) -> Node | None:
    """clone and contiguous: writes in place are gone from the graph, so a value needs no second copy."""
    return node.args[0]  # type: ignore[return-value]


def dropout(node: Node, rw: Rewriter) -> Node | None:
    """Dropout that never drops is an identity."""
    names = ("input", "p", "training", "inplace")
    x, p, training, _ = arguments(node, *names, p=0.5, training=True, inplace=False)
    if training and p != 0:
        raise NotCanonical
    return x


_ADD, _SUB, _MUL = (partial(binary, function=f) for f in (operator.add, operator.sub, operator.mul))
_RELU, _RELU6 = partial(unary, function=F.relu), partial(unary, function=F.relu6)
_MATMUL, _NEG = partial(binary, function=torch.matmul), partial(unary, function=operator.neg)

RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys((operator.add, torch.add, T.add, T.__add__, T.__radd__), _ADD),
    **dict.fromkeys((operator.sub, torch.sub, torch.subtract, T.sub, T.subtract, T.__sub__), _SUB),
    **dict.fromkeys((torch.rsub, T.__rsub__), partial(binary, function=operator.sub, swapped=True)),
    **dict.fromkeys((operator.mul, torch.mul, torch.multiply, T.mul, T.multiply, T.__mul__, T.__rmul__), _MUL),
    **dict.fromkeys((operator.truediv, torch.div, torch.divide, torch.true_divide, T.div, T.divide, T.true_divide), division),
    **dict.fromkeys((T.__truediv__, T.__div__), division),
    **dict.fromkeys((T.__rdiv__, T.__rtruediv__), partial(division, swapped=True)),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm, torch.mm, T.matmul, T.bmm, T.mm, T.__matmul__), _MATMUL),
    T.__rmatmul__: partial(binary, function=torch.matmul, swapped=True),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative, T.neg, T.negative), _NEG),
    **dict.fromkeys((operator.pow, torch.pow, T.pow, T.__pow__, torch.square, T.square), square),
    **dict.fromkeys((torch.rsqrt, T.rsqrt), partial(unary, function=torch.rsqrt)),
    **dict.fromkeys((torch.maximum, T.maximum, torch.max, T.max), partial(extremum, function=torch.maximum)),
    **dict.fromkeys((torch.minimum, T.minimum, torch.min, T.min), partial(extremum, function=torch.minimum)),
    **dict.fromkeys((F.relu, torch.relu, T.relu), _RELU),
    F.relu6: _RELU6,
    F.leaky_relu: leaky_relu,
    F.hardtanh: hardtanh,
    **dict.fromkeys((T.clone, torch.clone, T.contiguous), identity),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), dropout),
    **ACTIVATION_RULES,
    **LAYER_RULES,
    **SHAPE_RULES,
    **MOVE_RULES,
}
"""What a function becomes. Every function that is not here stays as it is."""

_OPAQUE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.reshape: T.reshape,
    torch.permute: T.permute,
    torch.mean: T.mean,
    torch.sum: T.sum,
    torch.amax: T.amax,
    torch.cat: torch.concat,
    operator.getitem: T.__getitem__,
    F.pad: torch._C._nn.pad,
}
"""The dialect's names stand for their canonical form only: a call that has none goes on under another name of the same function."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Canonicalize:
    """x.relu(), torch.relu(x), F.relu(x, inplace=True) -> F.relu(x), and likewise for the table `RULES`.

    Methods become functions, options become positional numbers, identities go. What has no canonical form stays opaque.
    """

    name = "canonicalize"
    exact = True

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            if node.op in ("call_function", "call_method", "call_module"):
                _rewrite(node, rw)
        rw.sweep()
        return rw.changed


def _rewrite(node: Node, rw: Rewriter) -> None:
    function = getattr(T, str(node.target), None) if node.op == "call_method" else node.target
    with rw.before(node):
        new = _module(node, rw) if node.op == "call_module" else _apply(node, rw, function)
    if new is None or new is node:
        return
    if not has_batch_axis(node) and new not in node.all_input_nodes:
        mark_without_batch_axis(new)
    if new in node.all_input_nodes:
        for user in list(node.users):
            rw.redirect(user, node, new)
        rw.erase_if_dead(node)
    else:
        rw.replace(node, new)


def _apply(node: Node, rw: Rewriter, function: Any) -> Node | None:
    rule = RULES.get(function)
    if rule is not None:
        try:
            return rule(node, rw)
        except NotCanonical:
            if node.op == "call_function" and not (function is operator.getitem and not is_tensor(node.args[0])):
                opaque = _OPAQUE.get(function)
                return rw.call(opaque, *node.args, **node.kwargs) if opaque is not None else None
    return rw.call(function, *node.args, **node.kwargs) if node.op == "call_method" else None


def _module(node: Node, rw: Rewriter) -> Node | None:
    module = rw.module(node)
    if module is None or module._forward_hooks or module._forward_pre_hooks or len(node.args) != 1:
        return None
    passes_through = type(module) is nn.Identity or (type(module) in _DROPOUTS and getattr(module, "p", None) == 0)
    return node.args[0] if passes_through and isinstance(node.args[0], Node) else None


canonicalize = Canonicalize()
