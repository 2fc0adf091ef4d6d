"""Where a first format comes from: the range of the operator before data, the value for parameters, all ranks together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import CalibrationError
from pquant_fx.quantize import AccumulatorQuantizer, CalibratedQuantizer, HGQData, HGQWeight, LearnedQuantizer
from pquant_fx.quantize.calibration import calibrate, trace_ranges
from pquant_fx.quantize.protocols import Observable, StartsFromValue
from tests.calibration_graphs import block, data
from tests.ranks import process_group


class Bounded(nn.Module):
    """One bounded activation and one that is not."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "k", "i"),
    [
        (F.relu6, 0, 3),
        (lambda x: F.hardtanh(x, -2.0, 2.0), 1, 1),
        (lambda x: F.hardtanh(x, 0.0, 0.5), 0, -1),
        (torch.sigmoid, 0, 0),
        (torch.tanh, 1, 0),
    ],
)
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("kind", ["calibrated", "hgq"])
def test_a_bounded_operator_decides_whatever_the_data_fill_of_it(function: Any, k: int, i: int, method: str, kind: str) -> None:
    torch.manual_seed(0)
    config = {"preset": "fixed8", "calibration": {"method": method}, "quantization_parameters": {"data_quantizer": kind}}
    model = pq.compile(Bounded(function), config, torch.randn(64, 8) / 1000)
    (layer,) = (n for n in model.graph_module.graph.nodes if n.name == "b")
    bits = [{int(v) for v in t.detach().flatten()} for t in model.get_submodule(str(layer.args[0].target)).kif()]
    assert bits == [{k}, {i}, {8 - k - i}]


def test_data_decide_where_the_operator_has_no_bounds() -> None:
    torch.manual_seed(0)
    model = pq.compile(Bounded(F.relu), "fixed8", torch.randn(64, 8) / 1000)
    small = [int(v) for v in model.get_submodule("pq.relu.quantizer").kif()]
    model.calibrate(100 * torch.randn(64, 8))
    assert [int(v) for v in model.get_submodule("pq.relu.quantizer").kif()][1] > small[1]


def test_protocols_tell_the_kinds_apart() -> None:
    assert isinstance(HGQData((), 8), Observable)
    assert not isinstance(HGQData((), 8), StartsFromValue)
    assert isinstance(HGQWeight((), 8), StartsFromValue)
    assert not isinstance(HGQWeight((), 8), Observable)
    assert not isinstance(AccumulatorQuantizer(), Observable | StartsFromValue)


def test_parameters_start_before_data_are_observed() -> None:
    """The format of what a layer gives is that of the quantized weights, not of the raw ones."""

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.q = nn.Parameter(torch.full((1, 4), 0.6)), HGQWeight((), 2)
            self.data = CalibratedQuantizer(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.data(F.linear(x, self.q(self.w)))

    model = pq.compile(Coarse(), "float", torch.ones(4, 4))
    k, i, f = (int(v) for v in model.get_submodule("q").kif())
    assert (k, i, f) == (1, 0, 1)  # 0.6 -> 0.5, so the sum is 2.0 and not 2.4
    assert int(model.get_submodule("data").kif()[1]) == 1


def test_failing_data_leave_parameters_and_data_as_they_were() -> None:
    torch.manual_seed(0)
    model = pq.compile(Bounded(F.relu), "hgq", torch.randn(64, 8))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        model.a.weight.mul_(16)
    bad = torch.randn(4, 8)
    bad[0, 0] = float("nan")
    with pytest.raises(CalibrationError) as caught:
        model.calibrate(bad)
    assert caught.value.code == "PQ305"
    with torch.no_grad():
        model.a.weight.div_(16)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# ---- ranges that training tracks
def learning(overflow: str = "WRAP") -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    config = {"preset": "hgq", "quantization_parameters": {"overflow_mode_data": overflow}}
    x = torch.randn(64, 8)
    model = pq.compile(Bounded(F.relu), config, x)
    for module in model.modules():
        if isinstance(module, LearnedQuantizer):
            module.begin_learning()
    return model, x


def test_ranges_are_traced_from_rounded_values_and_fractions_stay() -> None:
    model, x = learning()
    quantizer = model.get_submodule("pq.x.quantizer")
    with torch.no_grad():
        quantizer.f.fill_(1.0)
        quantizer.i.fill_(-5.0)
    assert trace_ranges(model.graph_module, [(8 * x,), (x,)]) == 2
    k, i, f = (t.detach() for t in quantizer.kif())
    assert bool((f == 1).all())
    assert bool((k == 1).all())
    codes = torch.floor(8 * x * 2 + 0.5)
    needed = torch.maximum(codes.amax(0), -codes.amin(0) - 1).clamp(min=0)
    expected = torch.tensor([int(v).bit_length() for v in needed]) - 1 + quantizer.spare_bits
    assert i.flatten().tolist() == expected.tolist()
    with torch.no_grad():
        assert torch.equal(quantizer.eval()(8 * x), codes / 2)  # nothing wraps


def test_what_saturates_is_not_traced() -> None:
    model, x = learning("SAT")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.calibrate(100 * x)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed <= {"pq.calibrated_on"}


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 8)]])
def test_tracing_needs_data_too(batches: list[Tensor]) -> None:
    model, _ = learning()
    with pytest.raises(CalibrationError) as caught:
        trace_ranges(model.graph_module, batches)
    assert caught.value.code == "PQ410"


# ---- all ranks together
SCENARIOS = {
    "minmax": ("minmax", (8, 8, 8)),
    "mse": ("mse", (16, 8)),
    "one rank without data": ("percentile", (0, 24)),
    "a bad number on one rank": ("ema", (8, 16)),
}


def batches_of(scenario: str, rank: int) -> list[Tensor]:
    """Of growing values; the last rank has the last batch, the other one all before it."""
    x = data(24) * torch.linspace(0.1, 30, 24).reshape(-1, 1, 1, 1)
    if scenario.startswith("a bad number"):
        x[-1, 0, 0, 0] = float("nan")
    parts = list(x.split(SCENARIOS[scenario][1]))
    return parts[-1:] if rank else parts[:-1]


def observe(rank: int, world: int, folder: str) -> None:
    found: dict[str, Any] = {}
    with process_group(rank, world, folder):
        for name, (method, _) in SCENARIOS.items():
            gm = block(method=method)
            try:
                calibrate(gm, [(b,) for b in batches_of(name, rank)])
                found[name] = gm.state_dict()
            except CalibrationError as error:
                found[name] = str(error)
        torch.save(found, f"{folder}/rank{rank}.pt")


def test_formats_cover_what_all_ranks_have_seen(tmp_path: Path) -> None:
    """The same as one process with all the data, also on a rank that has none; a NaN on one rank stops all."""
    mp.spawn(observe, args=(2, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{n}.pt", weights_only=True) for n in (0, 1)]
    for name in list(SCENARIOS)[:3]:
        alone = block(method=SCENARIOS[name][0])
        calibrate(alone, [(b,) for rank in (0, 1) for b in batches_of(name, rank) if len(b)])
        for rank in ranks:
            assert not isinstance(rank[name], str), rank[name]
            different = [k for k, v in alone.state_dict().items() if not torch.equal(rank[name][k], v)]
            assert different == [], name
    assert [rank["a bad number on one rank"][:5] for rank in ranks] == ["PQ305", "PQ305"]
