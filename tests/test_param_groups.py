"""Every trainable parameter is in exactly one optimizer group, and bits, masks, biases and normalisation never decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.train.fit import fit
from tests.models import MLP, ConvBN, digits_like

HGQ = {"preset": "hgq", "training_parameters": {"pretraining_epochs": 0, "epochs": 1, "batch_size": 64, "bits_rate": 3.0}}


class Sloped(pq.Mask):
    """A mask that learns a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(4, 1))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * torch.sigmoid(w.abs() - self.threshold)

    def sparsity(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())


class Zoo(nn.Module):
    """Parameters of every sort beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.norm = nn.LayerNorm((4, 4))
        self.table = nn.Parameter(torch.randn(1, 4))
        self.gain = nn.Parameter(torch.ones(4))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.table * self.gain


def compiled(net=None, settings=None, x=None) -> pq.CompiledModel:
    torch.manual_seed(0)
    return pq.compile(net or MLP(), settings or HGQ, digits_like(64)[0] if x is None else x)


def names(model, groups) -> dict[str, set[str]]:
    known = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {known[id(p)] for p in group["params"]} for group in groups}


def test_every_parameter_is_in_exactly_one_group():
    for net, x in ((MLP(), digits_like(64)[0]), (ConvBN(), torch.randn(16, 1, 8, 8)), (Zoo(), digits_like(64)[0])):
        model = compiled(net, x=x)
        held = [p for group in pq.param_groups(model, 1e-3) for p in group["params"]]
        assert len(held) == len({id(p) for p in held})
        assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def test_members_decay_and_rate_follow_the_table():
    model = compiled(Zoo(), x=digits_like(64)[0])
    model.get_submodule("pq").add_module("mask", Sloped())
    groups = pq.param_groups(model, lr=0.1, weight_decay=0.01)
    found = names(model, groups)
    assert found["weights"] == {"linear.weight", "table", "unused.weight"}
    assert found["no_decay"] == {"linear.bias", "norm.weight", "norm.bias", "gain", "unused.bias"}
    assert found["masks"] == {"pq.mask.threshold"}
    assert found["bits"] == {name for name, _ in model.named_parameters() if name.startswith("pq.")} - found["masks"]
    assert len(found["bits"]) > 4
    decay = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}
    assert decay == {"weights": (0.1, 0.01), "no_decay": (0.1, 0.0), "masks": (0.1, 0.0), "bits": (pytest.approx(0.3), 0.0)}


def test_batchnorm_does_not_decay():
    model = compiled(ConvBN(), x=torch.randn(16, 1, 8, 8))
    assert {"bn.weight", "bn.bias", "head.bias"} == names(model, pq.param_groups(model, 1.0))["no_decay"]


def test_what_is_not_trained_and_groups_without_members_are_left_out():
    model = compiled(settings="fixed8")
    model.get_parameter("0.weight").requires_grad_(False)
    groups = pq.param_groups(model, 1e-3)
    assert [g["name"] for g in groups] == ["weights", "no_decay"]
    assert "0.weight" not in names(model, groups)["weights"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_wrappers_are_looked_through():
    model = compiled()
    wrapped = pq.param_groups(torch.compile(model), 1e-3)
    assert names(model, wrapped) == names(model, pq.param_groups(model, 1e-3))


def test_an_optimizer_takes_the_groups_and_only_weights_decay():
    model = compiled()
    model.calibrate(digits_like(64)[0])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(pq.param_groups(model, lr=0.5, weight_decay=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight", "2.weight", "4.weight", "6.weight"}


def test_fit_uses_them(monkeypatch):
    seen = []

    class Spy(torch.optim.Adam):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            seen.append({g["name"]: g["lr"] for g in self.param_groups})

    monkeypatch.setattr("pquant_fx.train.fit.Adam", Spy)
    fit(compiled(), digits_like(64))
    assert seen == [{"weights": 4e-3, "no_decay": 4e-3, "bits": pytest.approx(1.2e-2)}]


@pytest.mark.parametrize("frozen", [True, False])
def test_what_has_nothing_to_train_is_refused(frozen):
    model = compiled() if frozen else MLP()
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(pq.TrainingError) as caught:
        pq.param_groups(model, 1e-3)
    assert caught.value.code == "PQ412"
    assert caught.value.remedy
