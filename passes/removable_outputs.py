"""Whether whole outputs of a layer may be removed by a method that does so."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pquant_fx.graph.dialect import module_of, op_of
from pquant_fx.graph.values import multiplies_parameter, result_of
from pquant_fx.passes.products import with_addends

__all__ = ["normalised", "pre_activation", "why_outputs_stay"]

_RECTIFIERS = (F.relu, F.relu6)


def why_outputs_stay(gm: GraphModule, layers: Sequence[Node], rectified: bool) -> str | None:
    """What is in the way of removing outputs of the layers that share one weight; None: nothing.

    rectified: the method measures what gets through the ReLU behind the layer.
    """
    if any(map(_reaches_output, layers)):
        return "its outputs are outputs of the network"
    if rectified and any(pre_activation(gm, layer) is None for layer in layers):
        return "no ReLU follows it directly"
    return None


def pre_activation(gm: GraphModule, layer: Node) -> Node | None:
    """What the ReLU behind a layer takes: the layer's result, with BatchNorm; None where anything else takes it as well."""
    value = with_addends(result_of(layer))
    value = normalised(gm, value) or value
    users = list(value.users)
    return value if users and all(u.target in _RECTIFIERS for u in users) else None


def normalised(gm: GraphModule, value: Node) -> Node | None:
    """The BatchNorm that was not folded and is all that takes the value; None where there is none."""
    users = list(value.users)
    return users[0] if len(users) == 1 and isinstance(module_of(gm, users[0]), _BatchNorm) else None


def _reaches_output(layer: Node) -> bool:
    """Whether a result of the network holds the layer's outputs one for one, whatever happened to them on the way."""
    stack, seen = [layer], set[Node]()
    while stack:
        current = stack.pop()
        if current.op == "output":
            return True
        if current in seen:
            continue
        seen.add(current)
        op = op_of(current)
        if current is layer or op is None or not multiplies_parameter(current):
            stack.extend(current.users)
    return False
