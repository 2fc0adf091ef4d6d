"""The own-loop door: schedules run to their ends, events come in order, misuse is named, and fit is nothing but this loop."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.train.data import batches_of
from pquant_fx.train.events import STAGES, EpochEnd, EpochStart, StageEnd, StageStart, StepEnd
from pquant_fx.train.plan import Plan
from pquant_fx.train.session import Session
from tests.models import MLP, ConvBN, digits_like

SAMPLES, BATCH = 320, 32
STEPS = SAMPLES // BATCH


def config(sparsity=0.5, pretraining=1, epochs=4, fine_tuning=1, **pruning):
    return {
        "preset": "fixed8",
        "training_parameters": {
            "pretraining_epochs": pretraining,
            "epochs": epochs,
            "fine_tuning_epochs": fine_tuning,
            "batch_size": BATCH,
            "learning_rate": 5e-3,
        },
        "pruning_parameters": {"pruning_method": "magnitude", "sparsity": sparsity, **pruning},
    }


def compiled(settings=None) -> pq.CompiledModel:
    torch.manual_seed(0)
    x, _ = digits_like(64)
    return pq.compile(MLP(), config() if settings is None else settings, x)


def masks(model):
    return [m for m in model.modules() if isinstance(m, pq.Mask)]


def own_loop(model, epochs, train, log=None):
    """Adam with the same decay as fit's default, over resident batches in fit's order."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    data = batches_of(train, model.graph_module, size=BATCH, seed=torch.initial_seed() % 2**62, shuffle=True)
    model.calibrate([batch.inputs for batch in data.read(0)])
    with pq.session(model, epochs=epochs, steps_per_epoch=len(data)) as s:
        for epoch in range(epochs):
            model.train()
            for step, batch in enumerate(data.read(epoch)):
                done = (epoch * len(data) + step) / (epochs * len(data))
                optimizer.param_groups[0]["lr"] = 0.5 * 5e-3 * (1 + math.cos(math.pi * done))
                loss = F.cross_entropy(model(*batch.inputs), batch.target) + s.loss()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                s.step()
            row = s.epoch_end()
            if log is not None:
                log.append(row)


# ---- results
def test_an_own_loop_gives_the_same_bits_as_fit():
    train = digits_like(SAMPLES)
    fitted, looped = compiled(), compiled()
    fitted.fit(train)
    own_loop(looped, 6, train)
    expected, got = fitted.state_dict(), looped.state_dict()
    assert list(expected) == list(got)
    assert all(torch.equal(expected[k], got[k]) for k in expected), [k for k in expected if not torch.equal(expected[k], got[k])]
    assert not torch.equal(expected["0.weight"], compiled().state_dict()["0.weight"])


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.87])
def test_the_asked_sparsity_is_reached_exactly_in_every_layer(sparsity):
    model = compiled(config(sparsity))
    log: list[dict[str, float]] = []
    own_loop(model, 6, digits_like(SAMPLES), log)
    assert len(masks(model)) == 4
    for mask, layer in zip(masks(model), (0, 2, 4, 6)):
        weight = model.state_dict()[f"{layer}.weight"]
        count = weight.numel()
        assert float(mask.sparsity(weight)) == pytest.approx(round(sparsity * count) / count, abs=1e-7)
    total = sum(model.state_dict()[f"{n}.weight"].numel() for n in (0, 2, 4, 6))
    zeros = sum(round(sparsity * model.state_dict()[f"{n}.weight"].numel()) for n in (0, 2, 4, 6))
    assert log[-1]["sparsity"] == pytest.approx(zeros / total, abs=1e-6)


def test_sparsity_is_zero_in_pretraining_grows_and_stands_still_in_fine_tuning():
    log: list[dict[str, float]] = []
    own_loop(compiled(config(0.6, pretraining=2, epochs=6, fine_tuning=2)), 10, digits_like(SAMPLES), log)
    seen = [row["sparsity"] for row in log]
    assert seen[0] == seen[1] == 0
    assert seen[2] > 0
    assert seen == sorted(seen)
    # the schedule ends at 75 % of the six training epochs: after epoch 2 + 4.5
    assert seen[6] == seen[7] == seen[9] == pytest.approx(0.6, abs=0.01)
    assert seen[5] < seen[6]


def test_pruned_weights_are_zero_and_stay_zero_in_fine_tuning():
    model = compiled(config(0.5, pretraining=0, epochs=3, fine_tuning=2))
    own_loop(model, 5, digits_like(SAMPLES))
    for layer in (0, 2, 4, 6):
        weight = model.state_dict()[f"{layer}.weight"]
        assert int((weight == 0).sum()) == round(0.5 * weight.numel())


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_sparsity_is_reached_however_short_the_training_is(epochs):
    model = compiled(config(0.5, pretraining=1, epochs=epochs, fine_tuning=1))
    own_loop(model, 2 + epochs, digits_like(SAMPLES))
    assert all(float((m.mask == 0).float().mean()) == pytest.approx(0.5, abs=0.01) for m in masks(model))


def test_a_second_training_does_not_bring_pruned_weights_back():
    model = compiled(config(0.5, pretraining=0, epochs=4, fine_tuning=1))
    own_loop(model, 5, digits_like(SAMPLES))
    log: list[dict[str, float]] = []
    own_loop(model, 5, digits_like(SAMPLES), log)
    assert all(row["sparsity"] == pytest.approx(0.5, abs=0.01) for row in log)


def test_a_model_without_pruning_has_an_ordinary_loop():
    model = compiled("fixed8")
    log: list[dict[str, float]] = []
    own_loop(model, 2, digits_like(SAMPLES), log)
    assert [row["sparsity"] for row in log] == [0.0, 0.0]
    loss = pq.session(model, 1, 1).loss()
    assert loss.shape == ()
    assert float(loss) == 0


def test_masks_act_before_batchnorm_scales_and_are_exact_there_too():
    torch.manual_seed(0)
    x, y = torch.randn(SAMPLES, 1, 8, 8), torch.randint(10, (SAMPLES,))
    model = pq.compile(ConvBN(), config(0.5), x[:64])
    model.fit((x, y))
    frozen = model.freeze()
    assert all(float((m.mask == 0).float().mean()) == pytest.approx(0.5, abs=0.03) for m in masks(model))
    assert torch.equal(frozen(x), model.eval()(x))


# ---- events
def fake(plan, seen):
    class Bare(nn.Module):
        graph_module = torch.fx.symbolic_trace(nn.Linear(2, 2))
        config = None

    return Session(Bare(), plan, listeners=[seen.append])


@given(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.integers(1, 3))
def test_every_stage_begins_and_ends_once_and_steps_are_counted(pretraining, training, fine_tuning, steps):
    plan = Plan(pretraining, training, fine_tuning, steps)
    seen: list[object] = []
    with fake(plan, seen) if plan.epochs else warnings.catch_warnings() as s:
        for _ in range(plan.epochs):
            for _ in range(steps):
                s.step()
            s.epoch_end()
    if not plan.epochs:
        return
    bounds = [(type(e).__name__, e.stage) for e in seen if isinstance(e, StageStart | StageEnd)]
    assert bounds == [(kind, stage) for stage in STAGES for kind in ("StageStart", "StageEnd")]
    assert sum(isinstance(e, StepEnd) for e in seen) == plan.steps
    assert [e.epoch for e in seen if isinstance(e, EpochEnd)] == list(range(1, plan.epochs + 1))
    for stage in STAGES:
        assert [e.step for e in seen if isinstance(e, StepEnd) and e.stage == stage] == list(range(1, plan.steps_of(stage) + 1))
        assert [e.epoch for e in seen if isinstance(e, EpochStart) and e.stage == stage] == list(range(plan.epochs_of(stage)))
    inside = None
    for event in seen:
        if isinstance(event, StageStart):
            inside = event.stage
        elif isinstance(event, StepEnd | EpochStart):
            assert event.stage == inside


def test_an_epoch_begins_before_its_first_loss_and_a_stage_before_its_first_epoch():
    seen: list[object] = []
    s = fake(Plan(1, 1, 1, 1), seen)
    for stage in STAGES:
        assert StageStart(stage, 1, 1) in seen or s.epoch == 0
        assert float(s.loss()) == 0
        assert seen[-2:] == [StageStart(stage, 1, 1), EpochStart(stage, 0, 0, 1)]
        s.step()
        assert seen[-1] == StepEnd(stage, 0, 1, 1, last=True)
        s.epoch_end()


def test_losses_and_measurements_of_all_methods_come_together():
    class Method:
        def __init__(self, loss, **measured):
            self.extra, self.measured = loss, measured

        def __call__(self, event): ...

        def loss(self):
            return None if self.extra is None else torch.tensor(self.extra)

        def measure(self):
            return self.measured

    class Bare(nn.Module):
        graph_module = torch.fx.symbolic_trace(nn.Linear(2, 2))
        config = None

    s = Session(Bare(), Plan(0, 1, 0, 1), listeners=[Method(1.5), Method(None, ebops=100.0), lambda event: None, Method(2.0, beta=1e-5)])
    assert float(s.loss()) == 3.5
    s.step()
    assert s.epoch_end() == {"sparsity": 0.0, "ebops": 100.0, "beta": 1e-5}
    assert Session(Bare(), Plan(0, 1, 0, 1), listeners=[Method(None)]).extra_loss() is None


# ---- misuse
def refused(call, what):
    with pytest.raises(pq.TrainingError, match=what) as caught:
        call()
    assert caught.value.code == "PQ412"
    assert caught.value.remedy


def test_a_step_too_many_is_refused():
    s = pq.session(compiled("fixed8"), epochs=1, steps_per_epoch=2)
    s.step()
    s.step()
    refused(s.step, "epoch 1 already has its 2 steps")
    s.epoch_end()
    refused(s.step, "after the last of 1 epochs")
    refused(s.loss, "after the last of 1 epochs")
    refused(s.epoch_end, "after the last of 1 epochs")


def test_an_epoch_without_a_step_is_refused():
    refused(pq.session(compiled("fixed8"), epochs=1, steps_per_epoch=2).epoch_end, "without a step")


def test_a_closed_session_is_refused_and_an_early_end_is_told():
    model = compiled("fixed8")
    s = pq.session(model, epochs=3, steps_per_epoch=1).__enter__()
    s.step()
    s.epoch_end()
    with pytest.warns(pq.PQuantWarning, match="after 1 of 3 epochs"):
        s.__exit__(None, None, None)
    refused(s.step, "closed session")


def test_an_error_in_the_loop_passes_through_without_a_warning():
    with pytest.raises(ZeroDivisionError), pq.session(compiled("fixed8"), epochs=3, steps_per_epoch=1):
        1 / 0


@pytest.mark.parametrize("model", [MLP(), nn.Linear(2, 2)])
def test_a_model_that_is_not_compiled_is_refused(model):
    refused(lambda: pq.session(model, 1, 1), "is no compiled model")


@pytest.mark.parametrize(("epochs", "steps"), [(0, 1), (1, 0), (-1, 5), (2.0, 5), (True, 5)])
def test_counts_must_be_positive_whole_numbers(epochs, steps):
    model = compiled("fixed8")
    refused(lambda: pq.session(model, epochs, steps), "`epochs`|`steps_per_epoch`")


def test_fewer_epochs_than_the_configured_stages_are_refused():
    model = compiled(config(pretraining=3, fine_tuning=2))
    refused(lambda: pq.session(model, 4, 10), "4 epochs are fewer than 3 of pre-training and 2 of fine-tuning")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_wrappers_are_looked_through():
    model = compiled("fixed8")
    assert pq.session(torch.compile(model), 1, 1).plan.epochs == 1
