"""What has to hold for layers that passes write out: the numbers of the float model, one meaning in every engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pquant_fx as pq
from pquant_fx.graph.dialect import Quantizer
from tests.end_to_end import BITS16, assert_bits, compiled, error, float_outputs, trained
from tests.structures import Structure

__all__ = ["assert_written_out", "called", "gradients_differ", "opaque", "quantizers"]


def assert_written_out(build: Callable[[], nn.Module], *shape: int, rough: float = 0.05, fine: float = 1e-3) -> None:
    """Close to the float model with 8 bits, very close with 16, and after training the same bits in every engine."""
    name = next(iter(inspect.signature(build().forward).parameters))
    case = Structure("written out", build, {name: shape})
    net, x = case.model(), case.inputs(64)
    expected = float_outputs(net, x)
    model = compiled(case, "fixed8")
    with torch.no_grad():
        assert error(expected, model.eval()(**x)) < rough
        assert error(expected, compiled(case, BITS16).eval()(**x)) < fine  # a wrong rewrite does not hide behind rounding
    assert set(net.state_dict()) <= set(model.state_dict())
    assert_bits(trained(model, case), case)


def called(model: Any) -> list[str]:
    """The functions that a compiled graph calls, in its order."""
    return [n.target.__name__ for n in model.graph_module.graph.nodes if n.op == "call_function"]


def opaque(model: Any) -> list[str]:
    """The classes of torch.nn that are still called."""
    nodes = [n for n in model.graph_module.graph.nodes if n.op == "call_module"]
    kinds = [type(model.graph_module.get_submodule(str(n.target))) for n in nodes]
    return [k.__name__ for k in kinds if k.__module__.startswith("torch.nn") and k is not nn.Dropout]


def quantizers(model: Any, prefix: str) -> set[str]:
    """The paths of the data quantizers of ours whose path starts so."""
    found = {n.target for n in model.graph_module.graph.nodes if n.op == "call_module"}
    own = {p for p in found if isinstance(model.graph_module.get_submodule(p), Quantizer)}
    return {p for p in own if p.startswith(f"pq.{prefix}") and ".quantizer" in p}


def gradients_differ(net: nn.Module, x: Tensor) -> float:
    """The largest difference between gradients of the model and of it compiled with 16 bits, relative to each one's largest."""
    model = pq.compile(net, BITS16, x).train()
    net.train()
    torch.manual_seed(0)
    towards = torch.randn_like(_first(net(x)))
    for m in (net, model):
        (_first(m(x)) * towards).sum().backward()
    worst = 0.0
    ours = dict(model.named_parameters())
    for name, p in net.named_parameters():
        if p.grad is not None and float(p.grad.abs().max()) > 1e-4:  # keys' biases have none: a softmax does not see them
            grad = ours[name].grad
            assert grad is not None, name
            worst = max(worst, float((grad - p.grad).abs().max() / p.grad.abs().max()))
    return worst


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]
