"""A learned power of two behind each ReLU: starts at 1, trains through its rounding, freezes to a shift."""

from __future__ import annotations

import operator
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.power_of_two import PowerOfTwo
from pquant_fx.quantize import CalibratedQuantizer
from pquant_fx.train.groups import param_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x))).mean((2, 3))
        return F.relu(self.fc(y))


def compiled(layers: dict[str, Any] | None = None, on: bool = True, preset: str = "fixed8") -> Any:
    torch.manual_seed(0)
    config = {"preset": preset, "quantization_parameters": {"use_relu_multiplier": on}, "layers": layers or {}}
    return pq.compile(Net(), config, torch.randn(16, 2, 6, 6))


def exponents(model: Any) -> dict[str, nn.Parameter]:
    return {n: m.exponent for n, m in model.named_modules() if isinstance(m, PowerOfTwo)}


@pytest.mark.parametrize("m", [-30, -7, -1, 0, 1, 12, 30])
def test_it_is_exactly_a_power_of_two_with_the_gradient_of_one(m: int) -> None:
    module = PowerOfTwo()
    with torch.no_grad():
        module.exponent.fill_(m + 0.3)
    value = module()
    assert float(value.detach()) == 2.0**m == module.number()
    value.backward()
    assert float(module.exponent.grad) == pytest.approx(log(2) * 2.0**m, rel=1e-6)


def test_it_starts_at_one_and_changes_nothing() -> None:
    x = torch.randn(16, 2, 6, 6)
    plain, scaled = compiled(on=False), compiled()
    assert list(exponents(scaled)) == ["pq.act.multiplier", "pq.relu.multiplier"]
    assert torch.equal(plain.eval()(x), scaled.eval()(x))
    assert not exponents(plain)


def test_the_product_is_what_is_quantized() -> None:
    model = compiled()
    (quantizer,) = (n for n in model.graph_module.graph.nodes if str(n.target) == "pq.act.quantizer")
    product = quantizer.args[0]
    assert [product.args[0].name, str(product.args[1].target)] == ["act", "pq.act.multiplier"]
    found = model.get_submodule("pq.act.quantizer")
    assert isinstance(found, CalibratedQuantizer)
    assert found.non_negative
    assert int(found.kif()[0]) == 0


def test_rules_name_single_relus() -> None:
    assert list(exponents(compiled({"act": {"relu_multiplier": True}}, on=False))) == ["pq.act.multiplier"]
    assert list(exponents(compiled({"ReLU": {"relu_multiplier": False}}))) == ["pq.relu.multiplier"]


def test_it_trains_and_never_decays() -> None:
    model = compiled()
    model.train()(torch.randn(16, 2, 6, 6)).square().sum().backward()
    assert all(bool(p.grad != 0) for p in exponents(model).values())
    groups = {id(p): g["weight_decay"] for g in param_groups(model, 0.1, 0.5) for p in g["params"]}
    assert {groups[id(p)] for p in exponents(model).values()} == {0.0}


@pytest.mark.parametrize("preset", ["fixed8", "hgq"])
@pytest.mark.parametrize("m", [-2.2, 0.4, 1.6])
def test_freezing_gives_a_number_that_every_engine_reads_as_a_shift(preset: str, m: float) -> None:
    model, x = compiled(preset=preset), torch.randn(16, 2, 6, 6)
    with torch.no_grad():
        exponents(model)["pq.act.multiplier"].fill_(m)
    model.calibrate(x)
    frozen = model.freeze()
    assert not [m for m in frozen.modules() if isinstance(m, PowerOfTwo)]
    factors = [n.args[1] for n in frozen.graph_module.graph.nodes if n.target is operator.mul]
    assert factors == ([] if round(m) == 0 else [2.0 ** round(m)])
    with torch.no_grad():
        assert torch.equal(frozen(x), model.eval()(x))
    report = frozen.verify(x, ("integer", "onnx", "qonnx"))
    assert all(row.different == 0 for row in report.rows), report
    assert frozen.ebops().total == model.ebops().total


def test_a_second_run_adds_no_second_one() -> None:
    config = pq.load_config({"preset": "fixed8", "quantization_parameters": {"use_relu_multiplier": True}})
    model = compiled()
    code = model.graph_module.code
    step = next(p for p in pq.default_pipeline(config) if getattr(p, "name", "") == "relu_multiplier")
    assert not step(model.graph_module)
    assert model.graph_module.code == code
