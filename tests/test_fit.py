"""fit: stages, losses, metrics, callbacks and calibration as promised; bad data and bad losses are named and stop it."""

from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pquant_fx as pq
from pquant_fx.train.events import EpochEnd
from pquant_fx.train.history import History, describe
from pquant_fx.train.loss import accuracy, default_loss
from pquant_fx.train.progress import progress
from tests.models import MLP, MultiIO, digits_like


def config(epochs=3, pretraining=0, fine_tuning=0, **more):
    training = {
        "epochs": epochs,
        "pretraining_epochs": pretraining,
        "fine_tuning_epochs": fine_tuning,
        "batch_size": 64,
        "learning_rate": 1e-2,
    }
    return {"preset": "fixed8", "training_parameters": training, **more}


def compiled(net=None, settings=None, x=None) -> pq.CompiledModel:
    torch.manual_seed(0)
    return pq.compile(MLP() if net is None else net, settings or config(), digits_like(64)[0] if x is None else x)


# ---- what it does
def test_it_learns_and_measures_on_validation_data():
    model = compiled(settings=config(8))
    history = model.fit(digits_like(1000), validation=digits_like(400, seed=1))
    assert history.last.metrics["accuracy"] > 0.95
    assert history.last.loss < history[0].loss
    x, y = digits_like(400, seed=1)
    with torch.no_grad():
        out = model.eval()(x)
    assert history.last.metrics["accuracy"] == float((out.argmax(1) == y).double().mean())
    assert history.last.metrics["validation_loss"] == pytest.approx(float(F.cross_entropy(out, y)))


def test_stages_follow_the_configuration():
    rows = compiled(settings=config(2, pretraining=1, fine_tuning=3)).fit(digits_like(128)).rows
    assert [row.stage for row in rows] == ["pretraining", *["training"] * 2, *["fine_tuning"] * 3]
    assert [row.epoch for row in rows] == [1, 2, 3, 4, 5, 6]


def test_no_epochs_change_no_parameter():
    model = compiled(settings=config(0))
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("pq.")}
    assert len(model.fit(digits_like(64))) == 0
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order():
    def trained(seed):
        model = compiled()
        torch.manual_seed(seed)
        model.fit(digits_like(256))
        return model.state_dict()["0.weight"]

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_the_mode_is_put_back():
    model = compiled(settings=config(1))
    model.eval().fit(digits_like(64), digits_like(64))
    assert not model.training
    model.train().fit(digits_like(64), digits_like(64))
    assert model.training


def test_the_mean_loss_weighs_samples_not_batches():
    x, y = digits_like(100)
    model = compiled(settings=config(1))
    history = model.fit([(x[:90], y[:90]), (x[90:], y[90:])], optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    with torch.no_grad():
        expected = float(F.cross_entropy(model.eval()(x), y))
    assert history.last.loss == pytest.approx(expected, rel=1e-5)


def test_the_default_rate_decays_to_zero_along_a_half_cosine(monkeypatch):
    rates = []

    class Spy(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr("pquant_fx.train.fit.Adam", Spy)
    compiled(settings=config(2)).fit(digits_like(256))
    assert rates == pytest.approx([0.5 * 1e-2 * (1 + math.cos(math.pi * n / 8)) for n in range(8)])


def test_a_users_optimizer_keeps_its_own_rate():
    model = compiled(settings=config(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    model.fit(digits_like(64), optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_formats_come_from_the_first_batches_unless_data_was_given_before():
    x, y = digits_like(128)
    model = compiled(settings=config(1))
    assert model.calibration_source == "examples"
    model.fit((100 * x, y), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert model.calibration_source == "data"
    first = next(m for m in model.modules() if isinstance(m, pq.Quantizer) and m.calibrated and not m.kif(torch.zeros(1))[0].dim())
    assert first.maximum > 50
    model.fit((x, y), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert first.maximum > 50


def test_callbacks_get_each_row_in_order():
    rows: list[EpochEnd] = []
    history = compiled(settings=config(2)).fit(digits_like(64), callbacks=[rows.append])
    assert tuple(rows) == history.rows
    with pytest.raises(AttributeError):
        rows[0].loss = 0.0


def test_metrics_see_the_whole_validation_set():
    seen = []

    def worst(output, target):
        seen.append((tuple(output.shape), tuple(target.shape)))
        return (output.argmax(1) != target).sum()

    history = compiled(settings=config(1)).fit(digits_like(64), digits_like(150, seed=1), metrics={"errors": worst})
    assert seen == [((150, 5), (150,))]
    assert set(history.last.metrics) == {"validation_loss", "errors"}


def test_floats_are_regressed():
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = x.sum(1, keepdim=True)
    model = compiled(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)), config(20), x[:64])
    history = model.fit((x, y), validation=(x, y))
    assert set(history.last.metrics) == {"validation_loss"}
    assert history.last.metrics["validation_loss"] < 0.1 * float(y.var())


def test_several_inputs_and_outputs_train_with_a_loss_of_ones_own():
    torch.manual_seed(0)
    x = {"tracks": torch.randn(200, 6), "towers": torch.randn(200, 4)}
    y = {"score": torch.randint(3, (200,)), "energy": torch.randn(200, 1)}

    def loss(out, target):
        return F.cross_entropy(out["score"], target["score"]) + F.mse_loss(out["energy"], target["energy"])

    model = compiled(MultiIO(), config(4), x)
    history = model.fit((x, y), validation=(x, y), loss=loss)
    assert history.last.loss < history[0].loss
    loader = DataLoader([((x["tracks"][n], x["towers"][n]), y["score"][n]) for n in range(200)], batch_size=50)
    by_order = model.fit(loader, loss=lambda out, target: F.cross_entropy(out["score"], target))
    assert len(by_order) == 4


def test_a_loader_and_its_tensors_train_alike_on_one_batch():
    x, y = digits_like(64)
    a, b = compiled(), compiled()
    one = a.fit(DataLoader(TensorDataset(x, y), batch_size=64), loss=F.cross_entropy)
    two = b.fit([(x, y)])
    assert [r.loss for r in one] == [r.loss for r in two]


# ---- what it refuses
def refused(call, code, what=None):
    with pytest.raises(pq.PQuantError, match=what) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.remedy


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step():
    x, y = digits_like(256)
    calls = []

    def loss(output, target):
        calls.append(1)
        return F.cross_entropy(output, target) * (float("nan") if len(calls) == 7 else 1.0)

    refused(lambda: compiled().fit((x, y), loss=loss), "PQ411", "the loss is nan in epoch 2, step 3")
    assert len(calls) <= 12


def test_nan_in_the_training_data_never_trains_on_silently():
    x, y = digits_like(128)
    x[5] = float("nan")
    model = compiled()
    refused(lambda: model.fit((x, y)), "PQ305")
    model.calibrate(digits_like(64)[0])
    with pytest.raises(pq.PQuantError) as caught:
        model.fit((x, y))
    assert caught.value.code in ("PQ305", "PQ411")


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (torch.zeros(64), "float32 and shape"),
        (torch.zeros(64, 1, dtype=torch.long), "int64 and shape"),
        (torch.zeros(64, 5, dtype=torch.long), "int64 and shape"),
        (torch.zeros(64, dtype=torch.bool), "bool"),
    ],
)
def test_targets_that_do_not_belong_to_the_output_are_refused(target, what):
    refused(lambda: compiled().fit((digits_like(64)[0], target)), "PQ410", what)


def test_wrong_shapes_are_refused_before_anything_changes():
    model = compiled()
    before = model.state_dict()["0.weight"].clone()
    refused(lambda: model.fit((torch.zeros(64, 15), torch.zeros(64).long())), "PQ409", "compiled for")
    refused(lambda: model.fit(digits_like(64), (torch.zeros(64, 15), torch.zeros(64).long())), "PQ409", "validation")
    refused(lambda: model.fit((torch.zeros(64, 16, dtype=torch.float64), torch.zeros(64).long())), "PQ409", "float64")
    assert torch.equal(model.state_dict()["0.weight"], before)
    assert model.calibration_source == "examples"


def test_wrong_uses_are_refused():
    x, y = digits_like(64)
    model, other = compiled(), MLP()
    refused(lambda: model.fit((x, y), metrics={"a": accuracy}), "PQ412", "there is none")
    refused(lambda: model.fit((x, y), optimizer=torch.optim.SGD(other.parameters(), lr=1.0)), "PQ412", "no parameter of the compiled")
    refused(lambda: model.fit((x, y), optimizer=lambda p: None), "PQ412", "NoneType")
    refused(lambda: model.fit((x, y), loss=lambda o, t: o), "PQ412", "shape")
    refused(lambda: model.fit((x, y), loss=lambda o, t: 1.0), "PQ412", "type float")
    refused(lambda: default_loss({"a": x}, y), "PQ412", "no default loss")
    outputs = model(x).shape[1]
    refused(lambda: model.fit((x, y + outputs)), "PQ410", f"the model has {outputs} outputs")
    refused(lambda: default_loss(model(x), torch.full((64,), -1)), "PQ410", "from -1 to -1")
    for p in model.parameters():
        p.requires_grad_(False)
    refused(lambda: model.fit((x, y)), "PQ412", "requires a gradient")


def test_data_that_runs_dry_or_grows_is_named():
    x, y = digits_like(64)

    class Fickle:
        def __init__(self, lengths):
            self.lengths = iter(lengths)

        def __len__(self):
            return 1

        def __iter__(self):
            return iter([(x, y)] * next(self.lengths))

    refused(lambda: compiled().fit(Fickle([1, 1, 1, 0])), "PQ410", "got no batch")
    refused(lambda: compiled().fit(Fickle([1, 1, 2])), "PQ410", "more than the 1 batches")


# ---- what it shows
def test_the_history_prints_as_a_table():
    rows = (EpochEnd(1, "training", 0, 0.5, {"accuracy": 0.75}, 0.25, 1.5), EpochEnd(2, "fine_tuning", 0, 0.25, {}, 0.5, 1.0))
    shown = str(History(rows))
    assert "accuracy" in shown
    assert "25.00%" in shown
    assert "fine_tuning" in shown
    assert describe(rows[0]) == "training  loss 0.5  accuracy 0.75  sparsity 25.0%"


def test_progress_is_drawn_on_a_terminal_and_silent_elsewhere(capsys):
    compiled(settings=config(1)).fit(digits_like(64))
    assert capsys.readouterr().out == ""
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress("training", 4, screen) as advance:
        advance(3, "loss 0.5")
        advance(1, "")
    drawn = screen.file.getvalue()
    assert "training" in drawn
    assert "4/4" in drawn
    assert "loss 0.5" in drawn
    quiet = Console(file=io.StringIO(), force_terminal=False)
    with progress("training", 4, quiet) as advance:
        advance(4, "x")
    assert quiet.file.getvalue() == ""
