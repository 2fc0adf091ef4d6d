"""Softmax as a maximum, two tables, a sum and a product: its parts, its accuracy, the same bits everywhere."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.graph.dialect import module_of, op_of
from pquant_fx.graph.tables import exp_neg, inverse_sum

AXES = {"vector": ((10,), -1), "channels": ((5, 6, 3), 1), "tokens": ((4, 16), 2)}


class Net(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.softmax = nn.Softmax(axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.softmax(x)


def config(bits: int) -> dict[str, Any]:
    wide = {"x": {"format": f"fixed<{bits + 2},5>"}}
    return {"preset": "fixed8", "quantization_parameters": {"default_data_bits": bits}, "inputs": wide}


def compiled(name: str, bits: int, samples: int = 2000) -> tuple[Any, torch.Tensor, int]:
    shape, axis = AXES[name]
    x = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0)) * 3
    config = {
        "preset": "fixed8",
        "quantization_parameters": {"default_data_bits": bits},
        "inputs": {"x": {"format": f"fixed<{bits + 2},5>"}},
    }
    return pq.compile(Net(axis), config, x).eval(), x, axis


@pytest.mark.parametrize("name", AXES)
def test_every_engine_gives_the_same_shares(name: str) -> None:
    model, x, _ = compiled(name, 8, 300)
    frozen = model.freeze()
    x = torch.cat([x, x * 20, x * 0, torch.round(x * 4) / 8])
    assert torch.equal(model(x), frozen(x))
    report = frozen.verify(x, ("integer", "onnx", "qonnx"))
    assert report.ok, str(report)
    frozen.to_qonnx(strict=True)


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("bits", [6, 8, 10, 12])
def test_shares_lie_within_nine_steps_of_the_exact_ones(name: str, bits: int) -> None:
    model, x, axis = compiled(name, bits)
    with torch.no_grad():
        found, exact = model(x), torch.softmax(model.graph_module.pq.x.quantizer(x), axis)
    assert float((found - exact).abs().max()) < 9 * 2.0**-bits
    assert float((found - exact).abs().mean()) < 0.75 * 2.0**-bits
    assert float((found.sum(axis) - 1).abs().max()) < 5 * 2.0**-bits
    clear = exact.topk(2, axis).values.diff(dim=axis).abs().squeeze(axis) > 2.0 ** (1 - bits)
    assert bool((found.argmax(axis) == exact.argmax(axis))[clear].all())


@pytest.mark.parametrize("overflow", ["WRAP", "SAT_SYM", "SAT_ZERO"])
def test_other_overflow_modes(overflow: str) -> None:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    model = pq.compile(Net(1), {"preset": "fixed8", "layers": {"softmax": {"data_overflow": overflow}}}, x).eval()
    frozen = model.freeze()
    assert torch.equal(model(x), frozen(x))
    assert frozen.verify(x, ("integer", "onnx", "qonnx")).ok
    assert float((frozen(x) - torch.softmax(x, 1)).abs().max()) < 0.06


def test_its_parts_and_their_formats() -> None:
    model, _, _ = compiled("vector", 8)
    gm = model.graph_module
    found = [(op.name, n) for n in gm.graph.nodes if (op := op_of(n)) is not None]
    assert [name for name, _ in found] == ["amax", "sub", "exp_neg", "sum", "inverse_sum", "mul"]
    exponent, share = (module_of(gm, node) for node in (found[2][1].args[0], found[3][1].args[0]))
    assert [int(t) for t in exponent.kif()] == [0, 3, 5], "e^-8 is below half an lsb of a share of 8 bits"
    assert int(share.kif()[0]) == 0
    assert all(n.meta["pquant_fx"].path == "softmax" for _, n in found)
    assert pq.compile(Net(1), "float", torch.randn(4, 5)).graph_module.graph.find_nodes(op="call_function", target=operator.mul) == []


def test_formats_do_not_rest_on_how_sharp_the_data_were() -> None:
    """Calibrated on nearly uniform shares, used on sharp ones."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    model = pq.compile(Net(1), {"preset": "fixed8", "inputs": {"x": {"format": "fixed<8,6>"}}}, 0.1 * x).eval()
    sharp = (20 * x).round()
    assert float((model(sharp) - torch.softmax(sharp.clamp(-32, 31.75), 1)).abs().max()) < 0.02


def test_gradients_are_those_of_softmax() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 10, requires_grad=True)
    model, towards = pq.compile(Net(1), config(12), x.detach()).train(), torch.randn(500, 10)
    (found,) = torch.autograd.grad((model(x) * towards).sum(), x)
    (exact,) = torch.autograd.grad((torch.softmax(x, 1) * towards).sum(), x)
    assert float((found - exact).abs().max()) < 0.01
    tied = torch.tensor([[1.0, 1.0, *[-3.0] * 8]], requires_grad=True)
    (found,), (exact,) = (torch.autograd.grad(f(tied)[0, 0], tied) for f in (model, lambda t: torch.softmax(t, 1)))
    assert torch.allclose(found, exact, atol=0.01)
    assert float(exact[0, 1]) < -0.2, "logits that are equal are told apart"


def test_its_functions_where_they_are_used() -> None:
    x = torch.linspace(0, 30, 100)
    assert torch.equal(exp_neg(x), torch.exp(-x))
    assert torch.equal(inverse_sum(1 + x), 1 / (1 + x))
    assert float(inverse_sum(torch.zeros(()))) == 1


def test_other_softmaxes_are_refused_by_name() -> None:
    class OverTheBatch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x, 0)

    with pytest.raises(pq.LoweringError, match="softmax") as caught:
        pq.compile(OverTheBatch(), "fixed8", torch.randn(8, 4)).freeze()
    assert (caught.value.code, "one axis of a sample" in caught.value.remedy) == ("PQ201", True)
    assert pq.check(Net(1), torch.randn(8, 3, 4, 4), target="hls4ml").ok
