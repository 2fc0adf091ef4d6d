"""Fill in the shape and dtype of every node, from those of the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from pquant_fx.graph.dialect import IDENTITIES, Mask, Quantizer, attribute_at, module_of
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.shapes import Shapes

__all__ = ["PropagateShapes", "propagate_shapes"]


class PropagateShapes:
    """NodeInfo.shape and .dtype of every node, by running the graph on meta tensors of the placeholders' shapes.

    Nothing is computed and no buffer changes. The structure stays as it is, so the result is always False. A node whose
    shape can not be found this way (an input without shape, a leaf that needs numbers) keeps what it had.
    """

    name = "propagate_shapes"
    exact = True

    def __call__(self, gm: GraphModule) -> bool:
        shapes = Shapes()
        values: dict[Node, Any] = {}
        for node in gm.graph.nodes:
            if node.op == "output":
                continue
            values[node] = value = _value(gm, node, values, shapes)
            if isinstance(value, Tensor):
                set_info(node, info(node).with_shape(tuple(value.shape), str(value.dtype).removeprefix("torch.")))
        return False


def _value(gm: GraphModule, node: Node, values: dict[Node, Any], shapes: Shapes) -> Any:
    """What the node gives on meta tensors; a meta tensor of the shape on record when that can not be run."""
    if node.op == "placeholder":
        return _recorded(node)
    if node.op == "get_attr":
        return shapes.meta(attribute_at(gm, str(node.target)))
    if any(values[n] is None for n in node.all_input_nodes):
        return _recorded(node)
    args, kwargs = map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
    module = module_of(gm, node)
    if isinstance(module, (Quantizer, Mask, *IDENTITIES)):
        return args[0]
    try:
        if module is not None:
            return shapes.run_module(module, tuple(args), dict(kwargs))
        assert callable(node.target)
        return shapes.run(node.target, tuple(args), dict(kwargs))
    except Exception:  # whatever user code in a leaf raises: the shape is information, the run itself reports errors
        return _recorded(node)


def _recorded(node: Node) -> Any:
    record = info(node)
    if record.shape is None or record.dtype is None:
        return None
    return torch.empty(record.shape, dtype=getattr(torch, record.dtype), device="meta")


propagate_shapes = PropagateShapes()
