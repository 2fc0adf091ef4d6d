"""Rules of `canonicalize` for activations: those with a table, clamps, PReLU, softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.fx import Node
from torch.nn import functional as F

from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.canonical_form import NotCanonical, Rule, arguments, axis_of, canonical, sample_shape

__all__ = ["ACTIVATION_RULES"]

T = torch.Tensor


def activation(node: Node, rw: Rewriter, function: Callable[..., Any], **options: float) -> Node | None:
    """f(x, options in their order); in place or not is the same."""
    x, *given = arguments(node, "input", *options, "inplace", **options, inplace=False)
    return canonical(node, rw, function, x, *given[:-1])


def gelu(node: Node, rw: Rewriter) -> Node | None:
    """torch takes the approximation by keyword only."""
    x, approximate = arguments(node, "input", "approximate", approximate="none")
    if approximate == "none":
        return canonical(node, rw, F.gelu, x)
    if node.target is F.gelu and len(node.args) == 1:
        return None
    return rw.call(F.gelu, x, approximate=str(approximate))


def clamp(node: Node, rw: Rewriter) -> Node | None:
    """Between two numbers it is a hard tanh, above 0 a ReLU."""
    x, low, high = arguments(node, "input", "min", "max", min=None, max=None)
    if low == 0 and high is None:
        return rw.call(F.relu, x)
    if type(low) not in (int, float) or type(high) not in (int, float) or low >= high:
        raise NotCanonical
    return rw.call(F.hardtanh, x, low, high)


def prelu(node: Node, rw: Rewriter) -> Node | None:
    return canonical(node, rw, F.prelu, *arguments(node, "input", "weight"))


def softmax(node: Node, rw: Rewriter, options: tuple[str, ...]) -> Node | None:
    """Over one axis of a sample."""
    x, axis, *rest = arguments(node, "input", "dim", *options, **dict.fromkeys(options), dim=None)
    axis = axis_of(axis, len(sample_shape(x)) + 1)
    if axis == 0 or rest[-1] is not None:  # a dtype of its own
        raise NotCanonical
    return canonical(node, rw, F.softmax, x, axis)


ACTIVATION_RULES: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys((torch.tanh, T.tanh, F.tanh), partial(activation, function=torch.tanh)),
    **dict.fromkeys((torch.sigmoid, T.sigmoid, F.sigmoid, torch.special.expit), partial(activation, function=torch.sigmoid)),
    **dict.fromkeys((torch.exp, T.exp), partial(activation, function=torch.exp)),
    **dict.fromkeys((torch.erf, T.erf, torch.special.erf), partial(activation, function=torch.erf)),
    **dict.fromkeys((torch.reciprocal, T.reciprocal), partial(activation, function=torch.reciprocal)),
    **{f: partial(activation, function=f) for f in (F.silu, F.mish, F.softsign, F.logsigmoid, F.hardsigmoid, F.hardswish)},
    **dict.fromkeys((F.selu, torch.selu), partial(activation, function=F.selu)),
    F.elu: partial(activation, function=F.elu, alpha=1.0),
    **dict.fromkeys((F.celu, torch.celu), partial(activation, function=F.celu, alpha=1.0)),
    F.softplus: partial(activation, function=F.softplus, beta=1, threshold=20),
    F.gelu: gelu,
    **dict.fromkeys((torch.clamp, T.clamp, torch.clip, T.clip), clamp),
    **dict.fromkeys((F.prelu, torch.prelu, T.prelu), prelu),
    F.softmax: partial(softmax, options=("_stacklevel", "dtype")),
    **dict.fromkeys((torch.softmax, T.softmax), partial(softmax, options=("dtype",))),
}
