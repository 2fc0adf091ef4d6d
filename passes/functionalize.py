"""Layers become functions of values: `conv(x)` -> `F.conv2d(x, conv.weight, conv.bias, ...)`; weights can then be quantized as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.nn.utils import parametrize

from pquant_fx.graph.batch import mark_without_batch_axis
from pquant_fx.graph.info import info, set_info
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.passes.canonical_activations import ACTIVATION_RULES
from pquant_fx.passes.canonical_form import NotCanonical
from pquant_fx.passes.canonical_layers import LAYER_RULES
from pquant_fx.passes.canonical_moves import MOVE_RULES
from pquant_fx.passes.canonical_shapes import SHAPE_RULES

__all__ = ["Functionalize", "functionalize"]

_RULES = ACTIVATION_RULES | LAYER_RULES | SHAPE_RULES | MOVE_RULES
Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and what follows x in its arguments; strings name parameters


def _linear(m: Any, x: Node) -> Call:
    return F.linear, ("weight", "bias")


def _convolution(m: Any, x: Node) -> Call:
    if m.padding_mode != "zeros":
        raise NotCanonical
    function = F.conv1d if isinstance(m, nn.Conv1d) else F.conv2d
    return function, ("weight", "bias", m.stride, _Text(m.padding) if isinstance(m.padding, str) else m.padding, m.dilation, m.groups)


def _transposed_convolution(m: Any, x: Node) -> Call:
    if m.padding_mode != "zeros":
        raise NotCanonical
    function = F.conv_transpose1d if isinstance(m, nn.ConvTranspose1d) else F.conv_transpose2d
    return function, ("weight", "bias", m.stride, m.padding, m.output_padding, m.groups, m.dilation)


def _max_pool(m: Any, x: Node) -> Call:
    function = F.max_pool1d if isinstance(m, nn.MaxPool1d) else F.max_pool2d
    return function, (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _avg_pool1d(m: Any, x: Node) -> Call:
    return F.avg_pool1d, (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)


def _avg_pool2d(m: Any, x: Node) -> Call:
    return F.avg_pool2d, (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)


def _pad(m: Any, x: Node) -> Call:
    return F.pad, (tuple(m.padding), _Text("constant"), getattr(m, "value", 0))


class _Text(str):
    """A string argument that is not the name of a parameter."""


TABLE: dict[type[nn.Module], Callable[[Any, Node], Call]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ReLU: lambda m, x: (F.relu, ()),
    nn.ReLU6: lambda m, x: (F.relu6, ()),
    nn.LeakyReLU: lambda m, x: (F.leaky_relu, (m.negative_slope,)),
    nn.Hardtanh: lambda m, x: (F.hardtanh, (m.min_val, m.max_val)),
    nn.PReLU: lambda m, x: (F.prelu, ("weight",)),
    nn.Tanh: lambda m, x: (torch.tanh, ()),
    nn.Sigmoid: lambda m, x: (torch.sigmoid, ()),
    nn.GELU: lambda m, x: (F.gelu, (_Text(m.approximate),)),
    nn.SiLU: lambda m, x: (F.silu, ()),
    nn.ELU: lambda m, x: (F.elu, (m.alpha,)),
    nn.SELU: lambda m, x: (F.selu, ()),
    nn.CELU: lambda m, x: (F.celu, (m.alpha,)),
    nn.Mish: lambda m, x: (F.mish, ()),
    nn.Softplus: lambda m, x: (F.softplus, (m.beta, m.threshold)),
    nn.Softsign: lambda m, x: (F.softsign, ()),
    nn.LogSigmoid: lambda m, x: (F.logsigmoid, ()),
    nn.Hardsigmoid: lambda m, x: (F.hardsigmoid, ()),
    nn.Hardswish: lambda m, x: (F.hardswish, ()),
    nn.LayerNorm: lambda m, x: (F.layer_norm, (m.normalized_shape, "weight", "bias", m.eps)),
    nn.RMSNorm: lambda m, x: (F.rms_norm, (m.normalized_shape, "weight", m.eps)),
    nn.Softmax: lambda m, x: (F.softmax, (m.dim,)),
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _avg_pool1d,
    nn.AvgPool2d: _avg_pool2d,
    nn.AdaptiveAvgPool1d: lambda m, x: (F.adaptive_avg_pool1d, (m.output_size,)),
    nn.AdaptiveAvgPool2d: lambda m, x: (F.adaptive_avg_pool2d, (m.output_size,)),
    nn.AdaptiveMaxPool1d: lambda m, x: (F.adaptive_max_pool1d, (m.output_size, m.return_indices)),
    nn.AdaptiveMaxPool2d: lambda m, x: (F.adaptive_max_pool2d, (m.output_size, m.return_indices)),
    nn.Flatten: lambda m, x: (torch.flatten, (m.start_dim, m.end_dim)),
    nn.Unflatten: lambda m, x: (torch.unflatten, (m.dim, m.unflattened_size)),
    nn.ZeroPad1d: _pad,
    nn.ZeroPad2d: _pad,
    nn.ConstantPad1d: _pad,
    nn.ConstantPad2d: _pad,
    nn.Upsample: lambda m, x: (F.interpolate, (m.size, m.scale_factor, _Text(m.mode), m.align_corners, m.recompute_scale_factor)),
    nn.Embedding: lambda m, x: (F.embedding, ("weight", m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)),
}
"""Layers that become functions. BatchNorm, Dropout, recurrent and attention layers stay modules, as do hooked and changed ones."""


class Functionalize:
    """call_module conv -> get_attr conv.weight, conv.bias and F.conv2d, for the layers in `TABLE`.

    A layer is left as it is when its class overrides forward, when it has hooks or a parametrization, or when the
    function has no canonical form for its options.
    """

    name = "functionalize"
    exact = True
    requires = ("canonicalize",)

    def __call__(self, gm: GraphModule) -> bool:
        rw = Rewriter(gm)
        for node in list(gm.graph.nodes):
            if node.op == "call_module" and len(node.args) == 1 and isinstance(node.args[0], Node) and not node.kwargs:
                _functional(node, rw)
        rw.sweep()
        return rw.changed


def _functional(node: Node, rw: Rewriter) -> None:
    module, x = rw.module(node), cast(Node, node.args[0])
    entry = next((f for kind, f in TABLE.items() if isinstance(module, kind) and type(module).forward is kind.forward), None)
    if module is None or entry is None or _is_changed(module):
        return
    try:
        with rw.before(node):
            function, rest = entry(module, x)
            values = [_value(node, rw, module, a) for a in rest]
            call = rw.call(function, x, *values)
            set_info(call, info(node))
            rule = _RULES.get(function)
            new = (rule(call, rw) if rule is not None else None) or call
    except NotCanonical:
        return
    rw.replace(node, new)


def _value(node: Node, rw: Rewriter, module: nn.Module, argument: Any) -> Any:
    """The parameter that a name stands for, at this call site; other arguments as they are."""
    if isinstance(argument, _Text):
        return str(argument)
    if not isinstance(argument, str):
        return argument
    parameter = getattr(module, argument)
    if parameter is None:
        return None
    read = rw.get_attr(f"{node.target}.{argument}")
    set_info(read, info(node).with_shape(tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")))
    mark_without_batch_axis(read)
    return read


def _is_changed(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or parametrize.is_parametrized(module)


functionalize = Functionalize()
