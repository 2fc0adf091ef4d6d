"""save, load, resume: the same model in a new process, nothing pickled, the old file survives, every wrong file is named."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.graph.decisions import decide, decisions_of
from pquant_fx.train import listeners
from pquant_fx.train.checkpoint import read_checkpoint
from pquant_fx.train.random_state import random_state, set_random_state
from tests import resumable
from tests.models import MLP, MultiIO
from tests.resumable import STEPS, Net, compiled, data, differences


def refused(kind, code, what, call):
    with pytest.raises(kind, match=what) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.remedy
    return caught.value


def trained(name: str, path: Path) -> pq.CompiledModel:
    model = compiled(name)
    model.fit(data(), checkpoint=path)
    return model


# ---- the model
@pytest.mark.parametrize("name", ["fixed8", "hgq", "magnitude"])
def test_a_loaded_model_is_the_saved_one_to_the_last_bit(name, tmp_path):
    model = trained(name, tmp_path / "run.pt")
    pq.save(model, tmp_path / "net.pt")
    torch.manual_seed(99)  # the weights of the network that is given do not matter
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for file in ("run.pt", "net.pt"):
        again = pq.load(tmp_path / file, net)
        assert differences(model.state_dict(), again.state_dict()) == []
        assert again.config == model.config
        assert again.fingerprint == model.fingerprint
        assert again.calibration_source == "data"
        x = data()[0]
        assert torch.equal(again.eval()(x), model.eval()(x))
        assert torch.equal(again.freeze().integer(x, codes=True), model.freeze().integer(x, codes=True))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_file_is_plain_data_of_a_size_that_examples_do_not_blow_up(tmp_path):
    x = torch.randn(3000, 16).repeat(1, 1)
    model = pq.compile(MLP(), "fixed8", x)
    pq.save(model, tmp_path / "net.pt", extra={"best": 0.5, "order": torch.Generator().get_state(), "names": ["a"], "none": None})
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    assert content["version"] == 1
    assert content["extra"]["best"] == 0.5
    assert content["examples"]["tensors"]["input"].shape == (3000, 16)
    big = pq.compile(MLP(4000), "fixed8", torch.randn(3000, 4000))
    pq.save(big, tmp_path / "big.pt")
    assert os.path.getsize(tmp_path / "big.pt") < 4 * sum(p.numel() for p in big.parameters()) + 2**21


def test_several_inputs_pipelines_and_decisions_come_back(tmp_path):
    asked = []

    def widest(gm) -> bool:
        decide(gm, "widest", lambda: asked.append(1) or "fc")
        return False

    config, examples = pq.load_config("fixed8"), {"towers": torch.randn(8, 4), "tracks": torch.randn(8, 6)}

    def pipeline():
        return pq.default_pipeline(config).insert(widest, after="canonicalize")

    model = pq.compile(MultiIO(), config, examples, pipeline=pipeline())
    assert asked == [1]
    pq.save(model, tmp_path / "net.pt")
    again = pq.load(tmp_path / "net.pt", MultiIO(), pipeline=pipeline())
    assert asked == [1]  # replayed, not taken again
    assert decisions_of(again.graph_module) == {"widest": "fc"}
    assert again.input_names == model.input_names == ("tracks", "towers")
    assert differences(model.eval()(**examples), again.eval()(**examples)) == []


def test_leaves_are_given_again(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x.sort(-1).values

    def network():
        return nn.Sequential(nn.Linear(16, 4), Odd())

    pq.save(pq.compile(network(), "float", torch.randn(8, 16), leaves=(Odd,)), tmp_path / "net.pt")
    assert isinstance(pq.load(tmp_path / "net.pt", network(), leaves=(Odd,)), pq.CompiledModel)


# ---- wrong files
def test_every_wrong_file_is_named(tmp_path):
    good = tmp_path / "good.pt"
    pq.save(compiled("fixed8"), good)
    whole = good.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        error = refused(pq.TransferError, "PQ510", "can not be read", lambda: pq.load(tmp_path / "cut.pt", Net()))
        assert "cut.pt" in str(error)
    (tmp_path / "text.pt").write_text("no checkpoint")
    refused(pq.TransferError, "PQ510", "can not be read", lambda: pq.load(tmp_path / "text.pt", Net()))
    refused(pq.TransferError, "PQ510", "there is no file", lambda: pq.load(tmp_path / "none.pt", Net()))
    refused(pq.TransferError, "PQ510", "can not be read", lambda: pq.load(tmp_path, Net()))
    torch.save(Net().state_dict(), tmp_path / "float.pt")
    refused(pq.TransferError, "PQ510", "was not written by pq.save", lambda: pq.load(tmp_path / "float.pt", Net()))
    torch.save(Net(), tmp_path / "pickled.pt")  # a pickled module is not executed
    refused(pq.TransferError, "PQ510", "can not be read", lambda: pq.load(tmp_path / "pickled.pt", Net()))
    torch.save(torch.load(good, weights_only=True) | {"version": 2}, tmp_path / "new.pt")
    refused(pq.TransferError, "PQ510", "version 2", lambda: pq.load(tmp_path / "new.pt", Net()))


def test_another_network_is_refused_with_the_first_difference(tmp_path):
    pq.save(compiled("fixed8"), tmp_path / "net.pt")

    class Other(Net):
        def forward(self, x):
            return super().forward(x).relu()

    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(27, 6)

    error = refused(pq.TransferError, "PQ401", "another network", lambda: pq.load(tmp_path / "net.pt", Other()))
    assert "relu" in str(error)
    refused(pq.TransferError, "PQ401", "size mismatch", lambda: pq.load(tmp_path / "net.pt", Wider()))
    refused(pq.TransferError, "PQ401", "does not compile", lambda: pq.load(tmp_path / "net.pt", MLP()))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = compiled("fixed8"), tmp_path / "net.pt"
    pq.save(model, path)
    before = path.read_bytes()

    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    refused(pq.OutputError, "PQ505", "No space left", lambda: pq.save(model, path))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.pt"]


def test_what_is_no_plain_data_is_named(tmp_path):
    error = refused(
        pq.TrainingError,
        "PQ412",
        r"extra\['a'\]\[1\] is a PosixPath",
        lambda: pq.save(compiled("fixed8"), tmp_path / "net.pt", extra={"a": [1, Path("x")], "b": np.zeros(3)}),
    )
    assert len(error.problems) == 2
    assert not os.listdir(tmp_path)


# ---- going on
def test_all_that_was_saved_is_asked_for_and_nothing_else(tmp_path):
    model, path = compiled("fixed8"), tmp_path / "net.pt"
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pq.save(model, path, optimizer=optimizer)
    refused(pq.TransferError, "PQ401", "also holds the state of the optimizer", lambda: pq.resume(model, path))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    refused(pq.TransferError, "PQ401", "holds no scheduler", lambda: pq.resume(model, path, optimizer=optimizer, scheduler=scheduler))
    fewer = torch.optim.SGD(list(model.parameters())[:2], 0.1)
    refused(pq.TransferError, "PQ401", "the optimizer in .* does not fit", lambda: pq.resume(model, path, optimizer=fewer))
    other = pq.compile(Net(), resumable.CONFIGS["fixed8"] | {"calibration": {"batches": 7}}, data()[0][:64])
    error = refused(pq.TransferError, "PQ401", "another configuration", lambda: pq.resume(other, path, optimizer=optimizer))
    assert "calibration.batches is 32 there, 7 here" in str(error)
    assert pq.resume(model, path, optimizer=optimizer) is None


def test_a_session_of_another_length_is_refused(tmp_path):
    model = compiled("fixed8")
    pq.save(model, tmp_path / "run.pt", session=pq.session(model, 5, STEPS))
    refused(
        pq.TrainingError,
        "PQ412",
        "another length",
        lambda: pq.resume(model, tmp_path / "run.pt", session=pq.session(model, 6, STEPS)),
    )


def test_all_random_numbers_go_on():
    def draw():
        return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal()

    draw()
    state = random_state()
    expected = [draw() for _ in range(3)]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_measurements_between_two_counts_are_made_again_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(listeners, "_COUNTS", 2)  # of 5 epochs, every third is counted
    straight, again = compiled("hgq"), compiled("hgq")
    x, y = data()

    def loop(model, epochs, path=None, after=None):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        model.calibrate(x)
        rows = []
        with pq.session(model, 5, STEPS) as s:
            if path is not None and path.exists():
                pq.resume(model, path, session=s, optimizer=optimizer)
            for epoch in range(s.epoch, epochs):
                model.train()
                for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(32):
                    loss = nn.functional.cross_entropy(model(x[part]), y[part]) + s.loss()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    s.step()
                rows.append(s.epoch_end())
                if path is not None and epoch == after:
                    pq.save(model, path, session=s, optimizer=optimizer)
                    raise KeyboardInterrupt
        return rows

    expected = loop(straight, 5)
    assert ["ebops" in row for row in expected].count(True) < 5
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        loop(compiled("hgq"), 5, path, after=2)
    assert read_checkpoint(path)["session"]["listeners"]["ResourceTerms"]["measured"] is not None
    assert loop(again, 5, path) == expected[3:]
    assert differences(straight.state_dict(), again.state_dict()) == []
