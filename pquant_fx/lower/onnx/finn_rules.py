"""What FINN's conversion and streamlining take of a frozen network, as rules over its nodes.

Sources: its transformations FoldQuantWeights, ConvertQuantActToMultiThreshold and the streamlining of scales (Blott et al. 2018).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from pquant_fx.errors import Problem
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.constants import live_nodes
from pquant_fx.graph.dialect import IDENTITIES, Quantizer, module_of, op_of
from pquant_fx.graph.info import info, place
from pquant_fx.lower.onnx.emission import numbers
from pquant_fx.lower.onnx.formats import format_of

__all__ = ["finn_problems", "pooled", "quantizers_of", "read_as_it_is"]

_BITS = 8
"""FINN makes thresholds of quantizers of so many bits at most (max_multithreshold_bit_width)."""
_OPERATORS = (
    F.linear, F.conv1d, F.conv2d, F.relu, operator.add, operator.mul, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d,
    torch.mean, torch.cat, torch.reshape,
)  # fmt: skip
_RND = "set round_mode: RND (FINN's thresholds round ties up)"
_SHARED = "set joins: {policy: shared}"
_PER_TENSOR = "set data_granularity: per_tensor"


def finn_problems(gm: GraphModule, formats: FormatMap) -> list[Problem]:
    """Everything that FINN's conversion or streamlining does not take, in graph order: PQ201 operators, PQ202 options, PQ205 formats,
    PQ207 modes, PQ303 sums that float32 does not hold."""
    live = live_nodes(gm)
    found: list[Problem] = []
    for node in gm.graph.nodes:
        if node in live and node.op in ("call_function", "call_module"):
            found += [Problem(*parts, place(node)) for parts in _objections(gm, node, formats)]
    return found


Objection = tuple[str, str, str]


def _objections(gm: GraphModule, node: Node, formats: FormatMap) -> Iterator[Objection]:
    module = module_of(gm, node)
    if isinstance(module, Quantizer):
        yield from _weight(gm, node, module, formats) if node in formats.constants else _activation(node, module, formats)
        return
    if node in formats.constants or isinstance(module, IDENTITIES):
        return
    op = op_of(node)
    if op is None or node.target not in _OPERATORS:
        name = op.name if op is not None else str(node.target)
        yield (
            "PQ201",
            f"FINN has no layer for {name} that its streamlining reaches",
            "use linear, convolution, ReLU, add, max-pool, global mean",
        )
        return
    if (formats.bits(node) or 0) > 23:
        yield "PQ303", f"its sums need {formats.bits(node)} bits and half an lsb more, float32 has 24", "use fewer bits"
    yield from _option(gm, node, formats)


def _option(gm: GraphModule, node: Node, formats: FormatMap) -> Iterator[Objection]:
    sample = (info(node).shape or ())[1:]
    if node.target is F.linear and len(sample) != 1:
        yield "PQ202", "a linear layer on values of several axes", "flatten before it"
    if node.target in (F.conv1d, F.conv2d):
        groups, shape = int(node.args[6]), info(node.args[1]).shape or (1, 1)  # type: ignore[arg-type]
        if groups != 1 and not (groups == shape[0] and shape[1] == 1):
            yield "PQ202", f"a convolution of {groups} groups", "use one group, or one a channel (depthwise)"
    if node.target in (F.max_pool1d, F.max_pool2d) and (numbers(node.args[4]) != [1] * len(numbers(node.args[4])) or node.args[5]):
        yield "PQ202", "a max-pool with dilation or ceil_mode", "choose a window that divides the image"
    if node.target is torch.mean and numbers(node.args[1]) != list(range(2, len(info(node.args[0]).shape or ()))):  # type: ignore[arg-type]
        yield "PQ202", "a mean over other axes than all of an image", "use a global mean"
    if node.target in (F.avg_pool1d, F.avg_pool2d) and not _whole_image(node):
        yield "PQ202", "an average over windows smaller than the image", "use a global mean, or a convolution"
    if node.target is operator.mul and all(isinstance(a, Node) and a not in formats.constants for a in node.args):
        yield "PQ201", "a product of two computed values", "FINN multiplies by constants only"
    made = formats.format(node)
    if node.target is F.relu and read_as_it_is(gm, node) and made is not None and made.width > _BITS:
        yield "PQ205", f"{made.width} bits behind a ReLU that no quantizer cuts: FINN makes thresholds of {_BITS}", "quantize behind it"
    if node.target in (operator.add, torch.cat):
        yield from _join(gm, node, formats)


def _whole_image(node: Node) -> bool:
    """Whether the window of an average is the whole image, without padding."""
    image = list((info(node.args[0]).shape or ())[2:])  # type: ignore[arg-type]
    return numbers(node.args[1]) == image and not any(numbers(node.args[3]))


def _join(gm: GraphModule, node: Node, formats: FormatMap) -> Iterator[Objection]:
    """Streamlining moves a scale past a join only when all branches have the same."""
    given = node.args[0] if node.target is torch.cat else node.args
    branches = [a for a in given if isinstance(a, Node) and a not in formats.constants]  # type: ignore[union-attr]
    if len(branches) < 2:
        return
    origins = [_origin(gm, branch) for branch in branches]
    names = ", ".join(branch.name for branch in branches)
    if any(origin is None for origin in origins):
        yield "PQ205", f"a branch of the join ({names}) has no quantizer of its own", _SHARED
        return
    kinds = {tuple(int(t.max()) for t in q.kif()) for o in origins if o and isinstance(q := module_of(gm, o), Quantizer)}
    if len(kinds) > 1:
        yield "PQ205", f"the branches of the join ({names}) have different formats, FINN wants equal scales", _SHARED


def _origin(gm: GraphModule, node: Node) -> Node | None:
    """The quantizer whose values the node hands on."""
    while not isinstance(module_of(gm, node), Quantizer):
        op = op_of(node)
        if (op is None or op.kind != "grid" or node.target is torch.cat) and not isinstance(module_of(gm, node), IDENTITIES):
            return None
        node = node.all_input_nodes[0]
    return node


def _activation(node: Node, quantizer: Quantizer, formats: FormatMap) -> Iterator[Objection]:
    spec, facts = format_of(quantizer), formats.facts.get(node)
    width = int(spec.width.max())
    if len(np.unique(spec.width)) > 1 or len(np.unique(spec.k)) > 1 or len(np.unique(spec.f)) > 1:
        yield "PQ205", "its elements have several formats; only one scale moves through a layer", _PER_TENSOR
    elif not 1 <= width <= _BITS:
        yield "PQ205", f"it has {width} bits: FINN makes thresholds of 1 to {_BITS}", f"use at most {_BITS} bits (default_data_bits)"
    if spec.k.max() == 1 and width < 2:
        yield "PQ205", "a signed quantizer of one bit", "use two bits or more"
    if spec.overflow not in ("SAT", "SAT_SYM") and not (facts is not None and facts.never_overflows):
        yield "PQ207", f"overflow mode {spec.overflow} may take effect here, thresholds saturate", "use SAT"
    if spec.rounding != "RND" and not (facts is not None and facts.never_rounds):
        yield "PQ207", f"rounding mode {spec.rounding}", _RND


def _weight(gm: GraphModule, node: Node, quantizer: Quantizer, formats: FormatMap) -> Iterator[Objection]:
    if (info(node).shape is not None and len(info(node).shape or ()) < 2) or not formats.constants[node].any():
        return  # a bias is a constant of the thresholds
    spec = format_of(quantizer, formats.constants[node.all_input_nodes[0]])
    live = ~spec.zero
    if len(np.unique(spec.width[live])) > 1 or len(np.unique(spec.k[live])) > 1:
        yield "PQ205", "its weights have several widths", "set granularity: per_tensor or per_channel"
    elif any(size > 1 for size in spec.f.shape[1:]) and not (spec.f == spec.f.reshape(-1)[0]).all():
        yield "PQ205", "its scale varies within an output channel", "set granularity: per_tensor or per_channel"
    if len(node.users) > 1:
        yield "PQ202", "weights that several layers share", "give each layer its own"


def quantizers_of(gm: GraphModule, relu: Node) -> list[Quantizer]:
    """The quantizers right behind a ReLU, or behind a max-pool that only they read: the two may change places, both are monotone."""
    readers = [pooled(gm, user) or user for user in relu.users]
    return [m for user in readers if isinstance(m := module_of(gm, user), Quantizer)]


def pooled(gm: GraphModule, node: Node) -> Node | None:
    """The quantizer that reads a max-pool behind a ReLU, where nothing else does."""
    readers = list(node.users)
    behind = node.target in (F.max_pool1d, F.max_pool2d) and node.all_input_nodes[0].target is F.relu
    return readers[0] if behind and len(readers) == 1 and isinstance(module_of(gm, readers[0]), Quantizer) else None


def read_as_it_is(gm: GraphModule, relu: Node) -> bool:
    """Whether something else than a quantizer reads a ReLU: its quantizer was an identity, and FINN wants one all the same."""
    return len(quantizers_of(gm, relu)) < len(relu.users)
