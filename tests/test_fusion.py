"""The graph as it is run (`fusion`) computes what the graph that everyone sees computes: values, gradients, running statistics."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.graph.dialect import module_of
from pquant_fx.graph.fusion import corrected, fused, rectified
from pquant_fx.quantize import FixedQuantizer


class Block(nn.Module):
    """BatchNorm before a ReLU, before a join that a ReLU clips, and before the end; a ReLU that two values read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 4, 3, padding=1, bias=False) for n in (2, 4, 4, 4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.relu(self.norms[0](self.a(x)))
        y = F.relu(self.norms[1](self.b(shortcut))) + shortcut
        z = F.relu(shortcut + self.norms[3](self.d(y)))
        return z + F.relu(y) + self.norms[2](self.c(y))


CONFIGS: dict[str, Any] = {
    "fixed8": "fixed8",
    "signed": {"preset": "fixed8", "layers": {"relu": {"data_format": "fixed<8,2>"}}},
    "per channel": {"preset": "fixed8", "quantization_parameters": {"granularity": "per_channel"}},
    "truncating": {"preset": "fixed8", "quantization_parameters": {"round_mode": "TRN", "overflow_mode_data": "SAT_SYM"}},
    "wrapping": {"preset": "fixed8", "quantization_parameters": {"overflow_mode_data": "WRAP"}},
    "hgq": "hgq",
}


def block(config: Any = "fixed8") -> tuple[pq.CompiledModel, Tensor]:
    torch.manual_seed(3)
    net, x = Block(), torch.randn(6, 2, 5, 5)
    with torch.no_grad():
        for norm in net.norms:
            norm.weight.uniform_(-1, 1)  # of either sign, as training may leave them
            norm.bias.uniform_(-1, 1)
        net.norms[0].weight[1] = 0
    return pq.compile(net, config, x), x


def step(model: pq.CompiledModel, graph: Any, x: Tensor) -> dict[str, Tensor]:
    """What a training step leaves behind: the result, the gradients, and the state."""
    x = x.clone().requires_grad_()
    out = graph(x)
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    found = {"out": out.detach(), "x": x.grad} | {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: v.clone() for n, v in model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mode", ["train", "eval", "fixed"])
def test_values_gradients_and_statistics_are_those_of_the_graph(name: str, mode: str) -> None:
    model, x = block(CONFIGS[name])
    model.train(mode != "eval")
    for module in model.modules():
        if isinstance(module, BatchCorrection):
            module.fix(mode == "fixed")
    twin = copy.deepcopy(model)
    one, two = step(model, model, 3 * x), step(twin, twin.graph_module, 3 * x)
    assert one.keys() == two.keys()
    assert any(key.startswith("grad") for key in one)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=0, msg=key)


def test_what_is_run_together() -> None:
    model, _ = block()
    graph = fused(model.graph_module).graph
    called = [n.target for n in graph.nodes if n.op == "call_function"]
    assert (called.count(corrected), called.count(rectified), called.count(F.relu)) == (3, 1, 0)
    # the last one is added to something before anything quantizes it
    left = [n for n in graph.nodes if isinstance(module_of(model.graph_module, n), BatchCorrection)]
    assert [[user.target for user in n.users] for n in left] == [[operator.add]]


def test_nothing_between_the_layer_and_the_quantizer_is_kept_for_the_gradient() -> None:
    model, x = block()
    kept: list[tuple[int, ...]] = []

    def count(run: Any) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
            run(x)
        return sum(shape == (6, 4, 5, 5) for shape in kept)

    assert count(model) == count(model.graph_module) - 6  # two of each corrected ReLU (but one more for the join), one of the other


class Doubled(FixedQuantizer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_forward_of_the_users_own_is_called() -> None:
    gm = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    gm.add_submodule("q", Doubled(0, 2, 2))
    x = gm.graph.placeholder("x")
    gm.graph.output(gm.graph.call_module("q", (gm.graph.call_function(F.relu, (x,)),)))
    gm.recompile()
    assert fused(gm)(torch.tensor([-1.0, 1.25])).tolist() == [0.0, 2.5]


def test_hooks_of_the_user_see_what_they_asked_for() -> None:
    model, x = block()
    seen: list[Tensor] = []
    quantizers = [m for m in model.modules() if isinstance(m, FixedQuantizer)]
    corrections = [m for m in model.modules() if isinstance(m, BatchCorrection)]
    for module in quantizers + corrections:
        module.register_forward_hook(lambda *given: seen.append(given[-1]))
    model(x)
    assert len(seen) == len(quantizers) + len(corrections)
