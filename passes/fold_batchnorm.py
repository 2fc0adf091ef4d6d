"""fold_batchnorm: BatchNorm becomes arithmetic on its own parameters, before anything is quantized.

    y = BN(F.conv2d(x, W, b))   ->   scale = gamma * rsqrt(var + eps)
                                     y = F.conv2d(x, W * scale, (b - mean) * scale + beta)
    y = BN(x)  (anything else)  ->   y = x * scale + (beta + (-mean) * scale)

so that what is quantized later is what the hardware multiplies with (Jacob et al. 2018; never gamma and beta on their own).
A layer whose parameters the user quantizes is left as it is, like anything else that is no layer.
No parameter is divided by, replaced or copied: the checkpoint keys stay, and a gamma of zero is an ordinary value.

The running statistics are folded, in training too. A network that never saw data trains with batch statistics: behind the
folded layer stands a BatchCorrection, which turns the one into the other and does nothing in evaluation.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.errors import PassError, Problem
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.graph.info import info, place, set_info
from pquant_fx.graph.rewriter import Rewriter

__all__ = ["FoldBatchnorm", "has_running_statistics"]

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d)
_FOLDS_INTO = (F.linear, F.conv1d, F.conv2d, *_TRANSPOSED)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def has_running_statistics(gm: nn.Module) -> bool:
    """Whether any BatchNorm of the model has seen data."""
    norms = [m for m in gm.modules() if isinstance(m, _KINDS) and m.running_mean is not None]
    return any(
        (m.num_batches_tracked is not None and int(m.num_batches_tracked) > 0)
        or bool(m.running_mean.any())  # type: ignore[union-attr]
        or bool((m.running_var != 1).any())  # type: ignore[union-attr]
        for m in norms
    )


@dataclass(frozen=True)
class FoldBatchnorm:
    """Rewrite every BatchNorm. statistics: `running`, `batch`, or `auto` (running where the network has any).

    Raises PassError (PQ202) for a BatchNorm that keeps no running statistics: evaluation would depend on the batch.
    """

    statistics: str = "auto"
    name: ClassVar[str] = "fold_batchnorm"
    exact: ClassVar[str] = "eval"  # in train, running statistics may replace those of the batch
    requires: ClassVar[tuple[str, ...]] = ("functionalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        nodes = [n for n in gm.graph.nodes if isinstance(rw.module(n), _KINDS)]
        problems = [problem for n in nodes if (problem := _refusal(n, rw))]
        if problems:
            raise PassError(problems)
        running = self.statistics == "running" or (self.statistics == "auto" and has_running_statistics(gm))
        for node in nodes:
            with rw.before(node):
                new = _rewritten(node, rw)
            layer = info(new) if new.target in _FOLDS_INTO else info(node)
            source = node.args[0]
            with rw.before(node):
                result = new if running else _corrected(node, new, rw)
            rw.replace(node, result)
            set_info(new, layer)  # a folded layer is still called after the convolution, not after its BatchNorm
            rw.erase_if_dead(source)
            if new.target in _FOLDS_INTO and not source.users:
                rw.rename(new, source.name)
        return rw.changed


def _refusal(node: Node, rw: Rewriter) -> Problem | None:
    norm = rw.module(node)
    if not isinstance(norm, _KINDS):
        return None
    if norm.running_mean is None:
        what = f"{type(norm).__name__} with track_running_stats=False normalises by its batch in evaluation too"
        return Problem("PQ202", what, "keep running statistics (the default), or list the module in `leaves`", place(node))
    return None


def _rewritten(node: Node, rw: Rewriter) -> Node:
    norm = rw.module(node)
    assert isinstance(norm, _KINDS)
    value = node.args[0]
    assert isinstance(value, Node)
    mean, variance = rw.get_attr(f"{node.target}.running_mean"), rw.get_attr(f"{node.target}.running_var")
    scale = rw.call(torch.rsqrt, rw.call(operator.add, variance, norm.eps))
    if norm.affine:
        scale = rw.call(operator.mul, rw.get_attr(f"{node.target}.weight"), scale)
    beta = rw.get_attr(f"{node.target}.bias") if norm.affine else None
    shape = info(value).shape
    rank = len(shape) if shape is not None else 2
    foldable = value.target in _FOLDS_INTO and len(value.users) == 1 and not _is_quantized(value, rw)
    if foldable and (value.target is not F.linear or rank == 2):  # else BN's channels are not Linear's
        return _folded(value, scale, mean, beta, rw)
    offset = rw.call(operator.mul, rw.call(operator.neg, mean), scale)  # never mean itself: training changes it in place
    if beta is not None:
        offset = rw.call(operator.add, beta, offset)
    ones = tuple(1 for _ in range(rank - 2))
    factor, offset = (rw.call(torch.reshape, v, (-1, *ones)) for v in (scale, offset))
    set_info(factor, info(factor).with_shape((norm.num_features, *ones)))  # one scale for each channel: each gets its own format
    return rw.call(operator.add, rw.call(operator.mul, value, factor), offset)


def _is_quantized(layer: Node, rw: Rewriter) -> bool:
    """Whether the user quantizes the layer's parameters: a scale on top would take them off their grid."""
    stack, seen = [a for a in layer.args[1:3] if isinstance(a, Node)], set[Node]()
    while stack:
        node = stack.pop()
        if rw.module(node, Quantizer) is not None:
            return True
        seen.add(node)
        stack.extend(n for n in node.all_input_nodes if n not in seen)
    return False


def _folded(value: Node, scale: Node, mean: Node, beta: Node | None, rw: Rewriter) -> Node:
    """The producing layer again, with the scaled weight and the shifted bias."""
    x, _, bias, *rest = value.args
    new_weight = _scaled(value, scale, rw)
    shifted = rw.call(operator.neg, mean) if bias is None else rw.call(operator.sub, bias, mean)
    new_bias = rw.call(operator.mul, shifted, scale)
    if beta is not None:
        new_bias = rw.call(operator.add, new_bias, beta)
    folded = rw.call(value.target, x, new_weight, new_bias, *rest)  # type: ignore[arg-type]
    rw.inherit(folded, value)
    return folded


def _scaled(value: Node, scale: Node, rw: Rewriter) -> Node:
    """The weight times one scale an output channel, which a transposed convolution counts inside of its groups: (C, O / groups, ...)."""
    weight = value.args[1]
    if value.target not in _TRANSPOSED:
        rank = {F.linear: 2, F.conv1d: 3, F.conv2d: 4}[value.target]  # type: ignore[index]
        return rw.call(operator.mul, weight, rw.call(torch.reshape, scale, (-1, *(1 for _ in range(rank - 1)))))
    assert isinstance(weight, Node)
    groups, shape = int(value.args[6]), info(weight).shape  # type: ignore[arg-type]
    assert shape is not None
    apart = rw.call(torch.reshape, weight, (groups, shape[0] // groups, *shape[1:]))
    scaled = rw.call(operator.mul, apart, rw.call(torch.reshape, scale, (groups, 1, shape[1], *(1 for _ in shape[2:]))))
    return rw.call(torch.reshape, scaled, shape)


def _corrected(node: Node, folded: Node, rw: Rewriter) -> Node:
    """What batch statistics make of the folded value in training."""
    norm = rw.module(node)
    assert isinstance(norm, _KINDS)
    made = BatchCorrection(norm.momentum, norm.eps, synchronised=isinstance(norm, nn.SyncBatchNorm))
    names = ("running_mean", "running_var", "num_batches_tracked", *(("weight", "bias") if norm.affine else ()))
    operands: list[Node | None] = [rw.get_attr(f"{node.target}.{name}") for name in names]
    operands += [None] * (5 - len(operands))
    return rw.call_module(rw.own(f"{node.target}.correction", made), folded, *operands)
