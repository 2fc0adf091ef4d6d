"""Training and freezing: BatchNorm from scratch, pruning that survives to the exported integers, and what is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from tests.models import digits_like

TRAINING = {"epochs": 4, "batch_size": 100, "learning_rate": 3e-3}


class Normalised(nn.Module):
    """BatchNorm on the input, after Linear and after a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(32), nn.BatchNorm1d(32)
        self.a, self.b, self.head = nn.Linear(16, 32, bias=False), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.a(self.bn0(x))))
        return self.head(F.relu(self.bn2(self.b(y) + y)))


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x, y = digits_like(n, seed=seed)
    return x * 3 + 5, y


def fitted(config: dict[str, Any], net: nn.Module) -> tuple[Any, Any]:
    train, test = data(2000, 0), data(500, 1)
    model = pq.compile(net, {"preset": "fixed8", "training_parameters": TRAINING, **config}, train[0][:200])
    model.fit(train)
    return model.eval(), test


def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).float().mean())


@pytest.mark.parametrize(
    "config",
    [{}, {"quantization_parameters": {"default_data_bits": 6, "default_weight_bits": 4, "overflow_mode_data": "WRAP"}}],
    ids=["8 bits", "4 bits, WRAP"],
)
def test_batchnorm_from_scratch(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Normalised()
    model, test = fitted(config, net)
    frozen = model.freeze()
    assert accuracy(frozen, test) > 0.95
    assert torch.equal(model(test[0]), frozen(test[0]))
    assert frozen.verify(100 * test[0][:60], targets=("integer", "onnx", "qonnx")).ok
    assert int(net.bn1.num_batches_tracked) == 0
    # the last tenth of 80 steps keeps the statistics
    assert {int(model.get_submodule(n).num_batches_tracked) for n in ("bn0", "bn1", "bn2")} == {72}
    # the statistics are those of the quantized scale, which four bits round by up to a sixteenth
    assert torch.allclose(model.bn0.running_mean, data(2000, 0)[0].mean(0), rtol=2.0**-4 if config else 2.0**-8, atol=0.3)


def test_a_trained_batchnorm_network_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    net = Normalised()
    x, y = data(2000, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for a, b in list(zip(x.split(100), y.split(100))) * 3:
        optimizer.zero_grad()
        F.cross_entropy(net(a), b).backward()
        optimizer.step()
    statistics = {k: v.clone() for k, v in net.named_buffers()}
    model, test = fitted({}, net.eval())
    assert all(torch.equal(dict(model.named_buffers())[k], v) for k, v in statistics.items())
    assert accuracy(model.freeze(), test) >= accuracy(net, test) - 0.01


def test_zeros_of_pruning_survive_to_the_exported_integers() -> None:
    torch.manual_seed(0)
    model, test = fitted({"pruning_parameters": {"sparsity": 0.5, "interval": 5}}, Normalised())
    masked = {n: model.get_submodule(f"pq.{n}.weight_mask").mask == 0 for n in ("a", "b", "head")}
    frozen = model.freeze()
    assert accuracy(frozen, test) > 0.95
    exported = [numpy_helper.to_array(t) for t in frozen.to_qonnx().graph.initializer]
    for name, zeros in masked.items():
        assert float(zeros.float().mean()) == 0.5
        value = frozen.graph_module.get_buffer(f"pq.{name}.weight.value")
        assert not bool(value[zeros].any())
        codes = np.sort(value.numpy(), None)
        same = [a for a in exported if a.size == codes.size and np.array_equal(np.sort(a, None), codes)]  # transposed or not
        assert same
        assert all((a == 0).sum() >= zeros.sum().item() for a in same)


def test_a_pruned_shared_layer_has_one_mask_and_one_quantizer() -> None:
    from tests.models import SharedLinear

    config = {"preset": "fixed8", "pruning_parameters": {"sparsity": 0.5}}
    model = pq.compile(SharedLinear(), config, torch.randn(32, 8))
    targets = [str(n.target) for n in model.graph_module.graph.nodes if n.op == "call_module"]
    assert targets.count("pq.fc.weight_mask") == 1
    assert [t for t in targets if "weight_quantizer" in t] == ["pq.fc.weight_quantizer"]


class Call(nn.Module):
    """Linear layers around a function of the result."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


REFUSED = {
    "softmax over the batch": (lambda y: torch.softmax(y, 0), "PQ201"),
    "abs": (torch.abs, "PQ201"),
    "division by data": (lambda y: y / (y * y + 1), "PQ202"),
    "divided by data": (lambda y: 1 / (F.relu(y) + 1), "PQ202"),
    "awkward bounds": (lambda y: F.hardtanh(y, -0.3, 0.7), "PQ202"),
    "sum over the batch": (lambda y: y + y.sum(0), "PQ201"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_meaning_trains_and_is_refused_by_name(name: str) -> None:
    function, code = REFUSED[name]
    model = pq.compile(Call(function), "fixed8", torch.randn(32, 8))
    model.train()(torch.randn(16, 8)).square().mean().backward()
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert caught.value.code == code
    assert caught.value.remedy
    assert caught.value.place.node


def test_statistics_of_the_batch_in_evaluation_are_refused() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(pq.PassError) as caught:
        pq.compile(net, "fixed8", torch.randn(32, 8))
    assert (caught.value.code, caught.value.place.module) == ("PQ202", "1")


@pytest.mark.parametrize(("rule", "named"), [({"a": {"quantize": False}}, "a"), ({"x": {"quantize": False}}, "")])
def test_a_layer_left_in_float_is_refused_where_it_is(rule: dict[str, Any], named: str) -> None:
    model = pq.compile(Call(F.relu), {"preset": "fixed8", "layers": rule}, torch.randn(32, 8))
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert {p.code for p in caught.value.problems} == {"PQ202"}
    assert not named or any(p.place.module == named for p in caught.value.problems)


def test_results_that_are_no_tensors_keep_their_place() -> None:
    class Net(Call):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"y": [super().forward(x), None], "n": 3}

    model = pq.compile(Net(F.relu), "fixed8", torch.randn(32, 8))
    frozen, x = model.freeze(), torch.randn(5, 8)
    expected, got, codes = model.eval()(x), frozen(x), frozen.integer(x)
    assert torch.equal(expected["y"][0], got["y"][0])
    assert torch.equal(got["y"][0].double(), codes["y"][0])
    assert (got["y"][1], got["n"], codes["y"][1], codes["n"]) == (None, 3, None, 3)


def test_compile_leaves_the_model_alone() -> None:
    net = Normalised()
    before = copy.deepcopy(net.state_dict())
    pq.compile(net, "fixed8", torch.randn(16, 16))
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_refused_constant_does_not_hide_a_refused_operator() -> None:
    class Net(Call):
        def __init__(self) -> None:
            super().__init__(torch.cos)
            self.raw = nn.Parameter(torch.full((3,), 0.1) + torch.tensor([0.0, 1e-3, 1.0]))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self.raw

    with pytest.raises(pq.LoweringError) as caught:
        pq.compile(Net(), "fixed8", torch.randn(32, 8)).freeze()
    assert {(p.code, p.place.node) for p in caught.value.problems} == {("PQ202", "raw"), ("PQ201", "cos")}
