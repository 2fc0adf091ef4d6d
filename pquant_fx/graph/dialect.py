"""The graph language: which operators a graph may hold after `canonicalize` and `functionalize`, as one table.

Parameters are values: `get_attr conv.weight -> Mask -> Quantizer -> F.conv2d`. `Quantizer` and `Mask` are the two node
kinds of ours, `call_module` leaves. Everything that is not in `OPS` is *opaque*: it runs and trains as it is, and every
target refuses it by name.

Canonical argument forms (all positional; n spatial axes; batch is always axis 0):

    F.linear(x, w, b | None)
    F.conv1d / F.conv2d(x, w, b | None, stride, padding, dilation, groups)      tuples of n ints
    F.conv_transpose1d / 2d(x, w, b | None, stride, padding, output_padding, groups, dilation)   tuples, w (C, O / groups, *kernel)
    F.max_pool1d / F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode) tuples of n ints
    F.avg_pool1d / F.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad)
    F.relu(x)   F.relu6(x)   F.leaky_relu(x, slope)   F.hardtanh(x, low, high)   F.prelu(x, slopes)
    torch.tanh(x), F.elu(x, alpha), ...             the functions of `tables`; before freezing a leaf `Tabulated` stands for them
    lookup(x, entries, f, low)                      what a table is once frozen
    operator.add / sub / mul / truediv(a, b)       a, b: nodes or Python numbers
    operator.neg(x)   torch.matmul(a, b)   torch.maximum / torch.minimum(a, b)
    torch.cat((a, b, ...), axis)                    axis >= 1
    torch.reshape(x, (-1, *sample_shape))           flatten, view, squeeze, unsqueeze end up here
    torch.permute(x, axes)                          axes[0] == 0
    torch.mean(x, axes, keepdim) / torch.sum / torch.amax        sorted axes >= 1
    scaled_sum(x, axes, keepdim, r)   scaled_pool(x, kernel, ..., r)   means over P elements, P no power of two, r about 1/P
    upsample(x, factors)   embed(x, w, padding_idx)  nearest, a factor for each spatial axis; rows of w
    F.pad(x, pads, "constant", 0)                   torch's pads, last axis first
    operator.getitem(x, (slice, ...))               one slice of ints an axis, the first one slice(None, None, None)
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from pquant_fx.formats import OverflowMode, RoundingMode
from pquant_fx.graph.activation_statistics import ActivationStatistics
from pquant_fx.graph.batch_correction import BatchCorrection, Pointwise
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.tables import TABLE_FUNCTIONS, Tabulated, lookup

__all__ = [
    "DROPOUTS",
    "IDENTITIES",
    "OPS",
    "Mask",
    "Op",
    "Quantizer",
    "attribute_at",
    "forget_answers",
    "is_parameter_value",
    "module_of",
    "op_of",
    "owner_of",
]

Kind = Literal["weighted", "arithmetic", "pool", "activation", "table", "embedding", "grid"]


@dataclass(frozen=True)
class Op:
    """One operator of the dialect.

    kind: `weighted` multiplies data by a parameter (args 0, 1, 2 are x, weight, bias); `arithmetic` combines values;
    `pool` sums or averages; `activation` is elementwise on one value; `table` likewise, read from a table of its input's codes;
    `embedding` takes rows of a weight (args 0, 1 are numbers of rows, weight) and keeps their codes;
    `grid` moves or selects values and keeps their codes.
    data: how many leading arguments are data values (-1: the first argument is a tuple of them).
    non_negative: the result is >= 0 whatever the input; None: if all its data inputs are. bounds: what the result can not leave,
    whatever the input (for hardtanh its arguments say so). channels: the axis of a weight that counts output channels (of one
    group, where it is not axis 0).
    """

    name: str
    kind: Kind
    data: int = 1
    non_negative: bool | None = False
    bounds: tuple[float, float] | None = None
    channels: int = 0


OPS: dict[Callable[..., Any], Op] = {
    F.linear: Op("linear", "weighted"),
    F.conv1d: Op("conv1d", "weighted"),
    F.conv2d: Op("conv2d", "weighted"),
    F.conv_transpose1d: Op("conv_transpose1d", "weighted", channels=1),
    F.conv_transpose2d: Op("conv_transpose2d", "weighted", channels=1),
    torch.matmul: Op("matmul", "arithmetic", 2),
    operator.add: Op("add", "arithmetic", 2, None),
    operator.sub: Op("sub", "arithmetic", 2),
    operator.mul: Op("mul", "arithmetic", 2, None),
    operator.truediv: Op("div", "arithmetic", 2),
    operator.neg: Op("neg", "arithmetic"),
    torch.maximum: Op("maximum", "arithmetic", 2, None),
    torch.minimum: Op("minimum", "arithmetic", 2, None),
    torch.rsqrt: Op("rsqrt", "arithmetic"),
    F.relu: Op("relu", "activation", non_negative=True),
    F.relu6: Op("relu6", "activation", non_negative=True, bounds=(0.0, 6.0)),
    F.leaky_relu: Op("leaky_relu", "activation"),
    F.hardtanh: Op("hardtanh", "activation"),
    F.prelu: Op("prelu", "activation"),
    **{function: Op(t.name, "table", non_negative=t.non_negative, bounds=t.bounds) for function, t in TABLE_FUNCTIONS.items()},
    lookup: Op("lookup", "table"),
    F.avg_pool1d: Op("avg_pool1d", "pool", non_negative=None),
    F.avg_pool2d: Op("avg_pool2d", "pool", non_negative=None),
    torch.mean: Op("mean", "pool", non_negative=None),
    scaled_pool: Op("scaled_pool", "pool", non_negative=None),
    scaled_sum: Op("scaled_sum", "pool", non_negative=None),
    torch.sum: Op("sum", "pool", non_negative=None),
    embed: Op("embed", "embedding", channels=1),
    upsample: Op("upsample", "grid", non_negative=None),
    F.max_pool1d: Op("max_pool1d", "grid", non_negative=None),
    F.max_pool2d: Op("max_pool2d", "grid", non_negative=None),
    torch.amax: Op("amax", "grid", non_negative=None),
    F.pad: Op("pad", "grid", non_negative=None),
    torch.cat: Op("cat", "grid", -1, None),
    torch.reshape: Op("reshape", "grid", non_negative=None),
    torch.permute: Op("permute", "grid", non_negative=None),
    operator.getitem: Op("getitem", "grid", non_negative=None),
}
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
IDENTITIES = (nn.Identity, *DROPOUTS, BatchCorrection, ActivationStatistics)
"""Leaf modules that do nothing in evaluation."""


class Quantizer(nn.Module, ABC):
    """A value-to-value node that puts its input on a fixed-point grid: `forward(x)` returns q(x; k, i, f).

    How k, i, f come about (given, calibrated, from the input's range, learned) is the subclass's business; every
    consumer reads them through `kif`, so they can not go stale.
    """

    rounding: RoundingMode
    overflow: OverflowMode
    bit_parameters: tuple[str, ...] = ()
    """The trainable parameters that say how many bits there are: `param_groups` gives them no weight decay."""

    @abstractmethod
    def kif(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """k, i, f as integer-valued tensors that broadcast to the value (batch axis 1 for data).

        x: the value being quantized; only quantizers whose format follows their input need it.
        """

    def magnitude_bits(self, x: Tensor | None = None) -> Tensor:
        """relu(i + f), what EBOPs count of each element (without sign): broadcasts to the value, differentiable where i or f is
        learned. x: as in `kif`.
        """
        _, i, f = self.kif(x)
        return (i + f).clamp(min=0)

    def sign_bits(self, x: Tensor | None = None) -> Tensor:
        """1 where the format stores a sign: k, and 0 where nothing but 0 can be stored. x: as in `kif`."""
        k, i, f = self.kif(x)
        return k * (i + f >= (1 if self.overflow == "SAT_SYM" else 0))

    @classmethod
    def bits_of(cls, quantizers: Sequence[Quantizer], signs: Sequence[bool]) -> Sequence[tuple[Tensor, Tensor | None]]:
        """`magnitude_bits` and, where asked for, `sign_bits` of several quantizers of this class: a place to compute them together."""
        return [(q.magnitude_bits(), q.sign_bits() if signed else None) for q, signed in zip(quantizers, signs)]

    @classmethod
    def together(cls, quantizers: Sequence[Self], values: Sequence[Tensor]) -> Sequence[Tensor]:
        """`forward` of several quantizers of this class, each on a parameter's value: a place to compute them at once."""
        return [quantizer(value) for quantizer, value in zip(quantizers, values)]

    def pointwise(self, x: Tensor, rectify: bool = False) -> Pointwise | None:
        """All that the quantizer does to `x` (rectify: to relu(x)) as one function, for `fusion`; None where there is more to it."""
        return None

    @property
    @abstractmethod
    def calibrated(self) -> bool:
        """False while the format is a placeholder that no data, range or user has set."""

    @property
    def maximum(self) -> float:
        """Largest value that can come out; infinite while the format is not known."""
        return self._limit(upper=True)

    @property
    def minimum(self) -> float:
        """Smallest value that can come out; -infinite while the format is not known."""
        return self._limit(upper=False)

    def _limit(self, upper: bool) -> float:
        if not self.calibrated:
            return float("inf") if upper else float("-inf")
        k, i, f = (t.detach().double() for t in self.kif())
        high = (torch.exp2(i) - torch.exp2(-f)).clamp(min=0)
        if upper:
            return float(high.max())
        low = -k * (high if self.overflow == "SAT_SYM" else torch.exp2(i))
        return float(torch.where(k + i + f > 0, low, torch.zeros_like(low)).min())


class Mask(nn.Module, ABC):
    """A weight-to-weight node: `forward(W)` returns the *effective* weight of W's shape, not a 0/1 tensor."""

    @abstractmethod
    def sparsity(self, weight: Tensor) -> Tensor:
        """Fraction of the latent `weight` that the mask removes, a 0-d tensor."""

    def keep(self, weight: Tensor) -> Tensor | None:
        """1 where a weight is kept and 0 where it is removed, of W's shape and without synchronisation; None: nothing is known.

        EBOPs count no bits for removed weights, so that a resource term does not press on them.
        """
        return None

    @classmethod
    def together(cls, masks: Sequence[Self], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """`forward` of several masks of this class, each on its weight: a place to compute them at once."""
        return [mask(weight) for mask, weight in zip(masks, weights)]


def module_of(gm: GraphModule, node: Node) -> nn.Module | None:
    """The module that `node` calls, or None when it calls none."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def attribute_at(root: nn.Module, path: str) -> Any:
    """What a `get_attr` node with that target reads: a parameter, a buffer, or any attribute. Raises AttributeError."""
    return getattr(*owner_of(root, path))


def owner_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the attribute of that path, and the attribute's name there. Raises AttributeError."""
    owner, _, name = path.rpartition(".")
    return root.get_submodule(owner), name


def op_of(node: Node) -> Op | None:
    """The dialect entry of `node`, or None (placeholders, outputs, modules but `Tabulated`, opaque functions)."""
    if node.op == "call_module" and (gm := node.graph.owning_module) is not None:
        module = module_of(gm, node)
        return OPS[module.function] if isinstance(module, Tabulated) else None
    return OPS.get(node.target) if node.op == "call_function" and callable(node.target) else None


def is_parameter_value(node: Node) -> bool:
    """Whether `node` depends on parameters and buffers only: a constant of the circuit.

    Answers are kept with the graph until the next Rewriter or `verify` (see `forget_answers`), or every question would walk
    back to the inputs and a pass would cost the square of the depth.
    """
    known: dict[Node, bool] = vars(node.graph).setdefault(_ANSWERS, {})
    stack = [node]
    while stack:
        current = stack[-1]
        inputs = current.all_input_nodes
        unknown = [used for used in inputs if used not in known]
        if current.op == "placeholder" or any(known.get(used) is False for used in inputs):
            known[stack.pop()] = False
        elif unknown:
            stack += unknown
        else:
            known[stack.pop()] = True
    return known[node]


def forget_answers(graph: Graph) -> None:
    """Let `is_parameter_value` look again: the graph may have been edited."""
    vars(graph).pop(_ANSWERS, None)


_ANSWERS = "_pquant_fx_parameter_values"
