"""train_model and get_model_losses: a script of PQuantML's shape trains as a loop with a session does."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pquant_fx as pq
from tests.resumable import CONFIGS, EPOCHS, STEPS, compiled, data, differences


def loader() -> DataLoader:
    return DataLoader(TensorDataset(*data()), 32)


def train_epoch(model, epoch, trainloader, optimizer, loss_function, **kwargs):
    """As PQuantML's examples have it."""
    for x, y in trainloader:
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss = pq.get_model_losses(model, loss)
        loss.backward()
        optimizer.step()


def validate_epoch(model, epoch, seen, **kwargs):
    seen.append((int(epoch), model.training))


@pytest.mark.parametrize("name", ["hgq", "magnitude"])
def test_it_trains_as_a_session_does(name):
    ported, looped, seen = compiled(name), compiled(name), []
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(ported.parameters(), 1e-2)
    result = pq.train_model(
        ported,
        CONFIGS[name],
        train_epoch,
        validate_epoch,
        input_shape=(32, 1, 8, 8),
        trainloader=loader(),
        optimizer=optimizer,
        loss_function=F.cross_entropy,
        seen=seen,
    )
    assert result is ported
    assert seen == [(epoch, False) for epoch in range(EPOCHS)]

    torch.manual_seed(1)
    optimizer = torch.optim.Adam(looped.parameters(), 1e-2)
    with pq.session(looped, EPOCHS, STEPS, optimizer) as s:
        for _ in range(EPOCHS):
            looped.train()
            for x, y in loader():
                optimizer.zero_grad()
                (F.cross_entropy(looped(x), y) + s.loss()).backward()
                optimizer.step()
                s.step()
            looped.eval()
            s.epoch_end()
    assert differences(ported.state_dict(), looped.state_dict()) == []


def refused(code, what, model, train=train_epoch, config="fixed8", **more):
    keywords = {"trainloader": loader(), "loss_function": F.cross_entropy, "seen": []} | more
    with pytest.raises(pq.PQuantError, match=what) as caught:
        pq.train_model(model, CONFIGS.get(config, config), train, validate_epoch, **keywords)
    assert caught.value.code == code
    assert caught.value.remedy


def test_wrong_uses_are_named():
    model = compiled("fixed8")
    optimizer = torch.optim.Adam(model.parameters())
    refused("PQ412", "another configuration", model, config="magnitude", optimizer=optimizer)
    refused("PQ409", "input_shape is", model, input_shape=(32, 1, 9, 9), optimizer=optimizer)
    refused("PQ412", "the number of steps", model, trainloader=data(), optimizer=optimizer)
    refused("PQ412", "made 4 optimizer steps in epoch 1, 9 were announced", model, steps_per_epoch=9, optimizer=optimizer)
    refused("PQ412", "already has its 2 steps", model, steps_per_epoch=2, optimizer=optimizer)
    stranger = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
    refused("PQ412", "made 0 optimizer steps", model, optimizer=stranger)
    with pytest.raises(pq.TrainingError, match="outside train_model"):
        pq.get_model_losses(model, torch.zeros(()))


def test_two_optimizers_are_refused():
    model = compiled("fixed8")
    parameters = list(model.parameters())
    optimizers = [torch.optim.SGD(parameters[:2], 0.1), torch.optim.SGD(parameters[2:], 0.1)]

    def train(model, epoch, trainloader, optimizers, **kwargs):
        for x, y in trainloader:
            F.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()

    refused("PQ412", "two optimizers", model, train, optimizers=optimizers)


@pytest.mark.parametrize(
    ("callback", "packages"), [("lightning_callback", ["lightning", "pytorch_lightning"]), ("huggingface_callback", ["transformers"])]
)
def test_a_callback_without_its_package_says_what_to_install(callback, packages, monkeypatch):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.callbacks", None)
        monkeypatch.setitem(sys.modules, f"{package}.pytorch.callbacks", None)
    with pytest.raises(pq.ExtraMissingError, match="is not installed") as caught:
        getattr(pq, callback)()
    assert caught.value.code == "PQ503"
    assert "pip install 'pquant_fx[" in caught.value.remedy


def test_nothing_is_left_behind_after_an_error():
    model = compiled("fixed8")
    optimizer = torch.optim.Adam(model.parameters())

    def fails(model, epoch, **kwargs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pq.train_model(model, None, fails, validate_epoch, steps_per_epoch=1, seen=[])
    with pytest.raises(pq.TrainingError, match="outside train_model"):
        pq.get_model_losses(model, 0.0)
    F.cross_entropy(model(data()[0]), data()[1]).backward()
    for _ in range(3):
        optimizer.step()  # nobody counts it
