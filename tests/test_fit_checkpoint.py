"""fit with a checkpoint: it goes on where it stopped, overwrites nothing unasked, and saves nothing that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.train.checkpoint import read_checkpoint
from tests.resumable import STEPS, Net, compiled, data, differences


def refused(kind, code, what, call):
    with pytest.raises(kind, match=what) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.remedy
    return caught.value


def test_fit_goes_on_where_it_stopped_and_returns_all_rows(tmp_path):
    path, (x, y) = tmp_path / "run.pt", data()

    class Stop(Exception): ...

    class Counts:
        def __init__(self, stop):
            self.seen, self.stop = 0, stop

        def __call__(self, row):
            self.seen += 1
            if self.seen == self.stop:
                raise Stop

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    model, reference = compiled("magnitude"), compiled("magnitude")
    with pytest.raises(Stop):
        model.fit((x, y), checkpoint=path, callbacks=[Counts(3)])
    assert read_checkpoint(path)["session"]["position"]["epoch"] == 2
    counts = Counts(99)
    model = compiled("magnitude")
    torch.manual_seed(1234)  # the order of the data is the first process's
    rows = model.fit((x, y), checkpoint=path, resume=True, callbacks=[counts]).rows
    assert counts.seen == 5
    torch.manual_seed(3)
    reference = compiled("magnitude")
    expected = reference.fit((x, y)).rows
    assert [(r.epoch, r.stage, r.loss, r.sparsity) for r in rows] == [(r.epoch, r.stage, r.loss, r.sparsity) for r in expected]
    assert differences(reference.state_dict(), model.state_dict()) == []
    finished = compiled("magnitude")
    assert finished.fit((x, y), checkpoint=path, resume=True, callbacks=[Counts(99)]).rows == rows
    assert differences(reference.state_dict(), finished.state_dict()) == []


def test_the_order_of_a_loader_with_its_own_generator_goes_on(tmp_path):
    def loader():
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*data()), 32, shuffle=True, generator=torch.Generator().manual_seed(8)
        )

    class Stop(Exception): ...

    def stop(row):
        if row.epoch == 3:
            raise Stop

    one = compiled("fixed8")
    one.fit(loader(), callbacks=[print])
    two = compiled("fixed8")
    with pytest.raises(Stop):
        two.fit(loader(), checkpoint=tmp_path / "run.pt", callbacks=[stop])
    two = compiled("fixed8")
    two.fit(loader(), checkpoint=tmp_path / "run.pt", resume=True, callbacks=[print])
    assert differences(one.state_dict(), two.state_dict()) == []


def test_an_existing_file_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "run.pt"
    compiled("fixed8").fit(data(), checkpoint=path)
    before = path.read_bytes()
    refused(pq.TrainingError, "PQ412", "exists", lambda: compiled("fixed8").fit(data(), checkpoint=path))
    assert path.read_bytes() == before
    refused(pq.TrainingError, "PQ412", "without a file", lambda: compiled("fixed8").fit(data(), resume=True))
    refused(
        pq.TransferError,
        "PQ401",
        "with 0 callbacks",
        lambda: compiled("fixed8").fit(data(), checkpoint=path, resume=True, callbacks=[print]),
    )
    pq.save(compiled("fixed8"), tmp_path / "net.pt")
    refused(
        pq.TransferError, "PQ401", "holds no session", lambda: compiled("fixed8").fit(data(), checkpoint=tmp_path / "net.pt", resume=True)
    )


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    path, (x, y) = tmp_path / "run.pt", data()
    calls = []

    def loss(output, target):
        calls.append(1)
        return nn.functional.cross_entropy(output, target) * (math.nan if len(calls) > 2 * STEPS + 1 else 1)

    error = refused(pq.TrainingError, "PQ411", "nan in epoch 3, step 2", lambda: compiled("fixed8").fit((x, y), loss=loss, checkpoint=path))
    assert f"the last good checkpoint is '{path}', after epoch 2" in error.remedy
    assert read_checkpoint(path)["session"]["position"]["epoch"] == 2
    assert all(bool(v.isfinite().all()) for v in pq.load(path, Net()).parameters())


def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path):
    path, model = tmp_path / "run.pt", compiled("fixed8")

    def poison(row):
        if row.epoch == 2:
            with torch.no_grad():
                model.get_parameter("head.bias")[0] = math.inf

    error = refused(
        pq.TrainingError, "PQ411", "'head.bias' is not finite after epoch 2", lambda: model.fit(data(), checkpoint=path, callbacks=[poison])
    )
    assert "after epoch 1" in error.remedy
    assert read_checkpoint(path)["session"]["position"]["epoch"] == 1
