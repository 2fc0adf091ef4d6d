"""HGQ from compile to freeze: MLP, residual CNN, depthwise, one axis, matmul of activations; every granularity, SAT and WRAP."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.quantize import HGQData, HGQWeight, LearnedQuantizer


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.c1(x)))
        return self.fc(F.relu(self.bn2(self.c2(x)) + x).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.pool, self.fc = nn.Conv2d(4, 8, 3, groups=4), nn.ReLU6(), nn.MaxPool2d(2), nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.act(self.conv(x))).flatten(1))


class OneAxis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c2(F.relu(self.c1(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.q(x) @ self.k(x).transpose(1, 2)) @ self.v(x)


NETS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "mlp": (MLP, (8,)),
    "residual": (Residual, (2, 8, 8)),
    "depthwise": (Depthwise, (4, 8, 8)),
    "one axis": (OneAxis, (3, 10)),
    "matmul": (Attention, (5, 6)),
}
PER_WEIGHT = {"preset": "hgq"}
CONFIGS: dict[str, dict[str, Any]] = {
    "per weight": PER_WEIGHT,
    "per channel, WRAP": {"preset": "hgq", "quantization_parameters": {"granularity": "per_channel", "overflow_mode_data": "WRAP"}},
    "per tensor": {"preset": "hgq", "quantization_parameters": {"granularity": "per_tensor"}},
    "per element, WRAP": {
        "preset": "hgq",
        "quantization_parameters": {"overflow_mode_data": "WRAP"},
        "layers": {"*": {"data_granularity": "per_element"}},
    },
}


def compiled(name: str, config: Any = PER_WEIGHT) -> tuple[Any, Tensor]:
    make, shape = NETS[name]
    torch.manual_seed(0)
    x = torch.randn(32, *shape)
    return pq.compile(make(), config, x), x


def trained(name: str, config: Any, steps: int = 3) -> tuple[Any, Tensor]:
    model, x = compiled(name, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    learned = [m for m in model.modules() if isinstance(m, LearnedQuantizer)]
    for module in learned:
        module.begin_learning()
    count = model.ebops_plan()
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x).square().mean() + 1e-5 * count()).backward()
        optimizer.step()
        for module in learned:
            module.clamp_()
    return model, x


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETS)
def test_a_step_trains_every_bit_and_freezing_keeps_every_result(name: str, config: str) -> None:
    model, x = trained(name, CONFIGS[config])
    assert [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []
    model.calibrate(x)
    frozen = model.freeze()
    with torch.no_grad():
        expected = model.eval()(x)
    assert torch.equal(frozen(x), expected)
    assert torch.equal(frozen.integer(x).float(), expected)
    assert frozen.ebops().total == model.ebops().total > 0


@pytest.mark.parametrize("name", NETS)
def test_checkpoints_and_copies_compute_the_same(name: str) -> None:
    model, x = trained(name, PER_WEIGHT, steps=1)
    expected = model.eval()(x)
    other, _ = compiled(name)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert {m.is_learning for m in other.modules() if isinstance(m, LearnedQuantizer)} == {True}


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {n.removeprefix("pq."): tuple(m.shape) for n, m in model.named_modules() if isinstance(m, LearnedQuantizer)}


def test_granularity_of_the_preset_is_per_weight_with_spatial_axes_shared() -> None:
    model, _ = compiled("residual")
    found = shapes(model)
    assert found["x.quantizer"] == (1, 2, 1, 1)
    assert found["c1.weight_quantizer"] == (4, 2, 3, 3)
    assert found["c1.bias_quantizer"] == (4,)
    assert found["mean.quantizer"] == (1, 4)
    assert found["fc.weight_quantizer"] == (3, 4)
    data = {n: m for n, m in model.named_modules() if isinstance(m, HGQData)}
    assert data["pq.x.quantizer"].group_size == 64
    assert data["pq.mean.quantizer"].group_size == 1


def test_per_channel_is_the_last_axis_around_linear_and_the_first_around_convolutions() -> None:
    config = CONFIGS["per channel, WRAP"]
    model, _ = compiled("matmul", config)
    assert shapes(model)["x.quantizer"] == (1, 1, 6)
    model, _ = compiled("one axis", config)
    found = shapes(model)
    assert (found["x.quantizer"], found["relu.quantizer"], found["c1.weight_quantizer"]) == ((1, 3, 1), (1, 6, 1), (6, 1, 1))


def test_first_formats_are_those_of_the_values() -> None:
    """The width of the preset; i covers each weight, at most four below the largest; data i covers what was seen."""
    model, x = compiled("mlp")
    weight = model.get_submodule("pq.a.weight_quantizer")
    assert isinstance(weight, HGQWeight)
    k, i, f = (t.detach() for t in weight.kif())
    assert bool((k + i + f == model.config.quantization_parameters.weight_bits).all())
    value = model.a.weight.detach().abs()
    assert bool((value <= i.exp2()).all())
    assert bool(((value > (i - 1).exp2()) | (i == i.max() - 4)).all())
    data = model.get_submodule("pq.x.quantizer")
    k, i, f = (t.detach() for t in data.kif())
    assert k.shape == (1, 8)
    assert bool((x.abs() <= 2**i).all())
    assert bool((x.abs().amax(0) > 2 ** (i - 1)).all())
    assert bool((k + i + f == 8).all())


def test_biases_learn_beside_learned_weights_and_follow_the_accumulator_beside_others() -> None:
    model, _ = compiled("mlp", {"preset": "hgq", "layers": {"b": {"weight_quantizer": "dynamic"}}})
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if isinstance(m, pq.Quantizer)}
    assert kinds["pq.a.bias_quantizer"] == "HGQWeight"
    assert kinds["pq.b.bias_quantizer"] == "AccumulatorQuantizer"
    assert model.get_submodule("pq.a.bias_quantizer").role == "bias"


@pytest.mark.parametrize("kind", ["tqt", "lsq", "pact", "dynamic"])
def test_the_other_learned_kinds_go_all_the_way(kind: str) -> None:
    weights = "dynamic" if kind == "pact" else kind
    config = {"preset": "fixed8", "quantization_parameters": {"data_quantizer": kind, "weight_quantizer": weights}}
    model, x = trained("residual", config)
    model.calibrate(x)
    assert torch.equal(model.freeze()(x), model.eval()(x))
    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, pq.Quantizer)}
    expected = {
        "dynamic": {"TrackedQuantizer"},
        "pact": {"PACTData", "TQTData"},
        "tqt": {"TQTData", "TQTWeight"},
        "lsq": {"LSQData", "LSQWeight"},
    }
    assert kinds >= expected[kind]


def test_calibration_after_training_moves_no_learned_format_but_traces_wrapping_ranges() -> None:
    model, x = trained("mlp", CONFIGS["per channel, WRAP"])
    quantizer = model.get_submodule("pq.x.quantizer")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    f = quantizer.f.detach().clone()
    model.calibrate(4 * x)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    k, i, _ = (t.detach() for t in quantizer.kif())
    rounded = torch.floor(4 * x * 2 ** f.round() + 0.5) * 2 ** -f.round()
    top, bottom = rounded.amax(0, keepdim=True), rounded.amin(0, keepdim=True)
    reach = 2 ** (i - quantizer.spare_bits)  # traced: everything that was seen fits
    assert bool((top <= reach - 2 ** -f.round()).all())
    assert bool((bottom >= -reach).all())
    assert bool((k == 1).all())
