"""Settings to modules: every kind, the shape of its format by granularity, and the sign by structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.quantize import CalibratedQuantizer, DynamicQuantizer


class Net(nn.Module):
    """Convolution over one axis, a dense layer over particles, a plain one, a BatchNorm that can not fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.over, self.bn, self.fc = nn.Conv1d(3, 4, 3, padding=1), nn.Linear(5, 6), nn.BatchNorm1d(4), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        y = F.relu(self.over(y))
        return self.fc(self.bn(y).flatten(1))


def compiled(layers: dict[str, Any] | None = None, **parameters: Any) -> Any:
    torch.manual_seed(0)
    config = {"preset": "fixed8", "quantization_parameters": parameters, "layers": layers or {}}
    return pq.compile(Net(), config, torch.randn(16, 3, 5))


def quantizers(model: Any) -> dict[str, Any]:
    """By path without "pq.", in the order of the graph."""
    called = [str(n.target) for n in model.graph_module.graph.nodes if n.op == "call_module"]
    modules = {path.removeprefix("pq."): model.get_submodule(path) for path in called}
    return {path: m for path, m in modules.items() if isinstance(m, pq.Quantizer)}


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(getattr(q, "k", torch.zeros(())).shape) for n, q in quantizers(model).items()}


DATA = ("x.quantizer", "relu.quantizer", "relu_1.quantizer", "bn.quantizer")


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("per_tensor", [(), (), (), ()]),
        ("per_channel", [(1, 3, 1), (1, 4, 1), (1, 1, 6), (1, 1, 6)]),
        ("per_element", [(1, 3, 5), (1, 4, 5), (1, 4, 6), (1, 4, 6)]),
    ],
)
@pytest.mark.parametrize("kind", ["calibrated", "dynamic", "tqt", "lsq", "hgq"])
def test_data_formats_have_one_batch_and_the_granularity_of_their_value(kind: str, granularity: str, expected: list[Any]) -> None:
    model = compiled(data_quantizer=kind, data_granularity=granularity)
    found = [n for n in quantizers(model) if n.endswith(".quantizer")]
    assert [shapes(model)[n] for n in found] == expected
    with torch.no_grad():
        assert torch.equal(model.freeze()(x := torch.randn(9, 3, 5)), model.eval()(x))


@pytest.mark.parametrize(
    ("granularity", "axis", "expected"),
    [("per_tensor", None, ()), ("per_channel", 0, (4, 1, 1)), ("per_weight", "each", (4, 3, 3))],
)
def test_weight_formats(granularity: str, axis: Any, expected: tuple[int, ...]) -> None:
    dynamic = quantizers(compiled(granularity=granularity))["conv.weight_quantizer"]
    assert isinstance(dynamic, DynamicQuantizer)
    assert dynamic.axis == axis
    for kind in ("tqt", "lsq", "hgq"):
        assert shapes(compiled(granularity=granularity, weight_quantizer=kind))["conv.weight_quantizer"] == expected


def test_a_format_beats_a_kind() -> None:
    layers = {"conv": {"weight_format": "fixed<6,1>"}, "relu": {"data_format": "ufixed<5,2>"}}
    found = quantizers(compiled(layers, weight_quantizer="hgq", data_quantizer="tqt"))
    assert [type(found[n]).__name__ for n in ("conv.weight_quantizer", "conv.bias_quantizer", "relu.quantizer")] == [
        "FixedQuantizer",
        "AccumulatorQuantizer",
        "FixedQuantizer",
    ]


def test_pact_clips_what_can_not_be_negative_and_nothing_else() -> None:
    found = quantizers(compiled(data_quantizer="pact"))
    assert [type(found[n]).__name__ for n in DATA] == ["TQTData", "PACTData", "PACTData", "TQTData"]


def test_the_sign_comes_from_structure() -> None:
    model = compiled()
    found = quantizers(model)
    assert [found[n].non_negative for n in DATA] == [False, True, True, False]
    model.calibrate(torch.rand(16, 3, 5))
    assert [int(found[n].kif()[0]) for n in DATA] == [1, 0, 0, 1]


def test_calibration_options_reach_the_quantizers() -> None:
    torch.manual_seed(0)
    config = {"preset": "fixed8", "calibration": {"method": "kl", "safety_bits": 2}}
    found = quantizers(pq.compile(Net(), config, torch.randn(16, 3, 5)))["relu.quantizer"]
    assert isinstance(found, CalibratedQuantizer)
    assert (found.method, found.safety_bits) == ("kl", 2)


def test_mse_ranges_need_the_shape_which_folding_leaves_known() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    torch.manual_seed(0)
    config = {"preset": "fixed8", "quantization_parameters": {"weight_range": "mse", "default_weight_bits": 4}}
    model = pq.compile(net, config, torch.randn(8, 2, 6, 6))
    (found,) = (q for q in quantizers(model).values() if isinstance(q, DynamicQuantizer))
    assert tuple(found.less.shape) == (4, 1, 1, 1)


def test_numbers_that_were_written_down_do_not_learn() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.1 * x + 0.3

    found = quantizers(pq.compile(Scaled(), "hgq", torch.randn(8, 4)))
    assert sorted(type(q).__name__ for n, q in found.items() if "number" in n) == ["AccumulatorQuantizer", "DynamicQuantizer"]


def test_an_affine_batchnorm_learns_scale_and_offset_with_the_granularity_of_weights() -> None:
    for granularity, expected in (("per_weight", (6,)), ("per_channel", (6,)), ("per_tensor", ())):
        torch.manual_seed(0)
        net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))
        config = {"preset": "hgq", "quantization_parameters": {"granularity": granularity}}
        found = {n: q for n, q in quantizers(pq.compile(net, config, torch.randn(16, 6))).items() if not n.startswith("_1")}
        kinds = [(q.role, tuple(q.k.shape)) for q in found.values() if type(q).__name__ == "HGQWeight"]
        assert kinds == [("weight", expected), ("bias", (6,) if granularity != "per_tensor" else ())]
