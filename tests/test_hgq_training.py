"""Training learned bits: pressure lowers EBOPs, stages do what they promise, a checkpoint continues identically."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.batch_correction import BatchCorrection
from pquant_fx.quantize import HGQData, HGQQuantizer, LearnedQuantizer, TrackedQuantizer
from tests.models import ConvBN, digits_like

STEPS = 5


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))


def compiled(training=None, net=None, x=None, **more) -> pq.CompiledModel:
    stages = {"pretraining_epochs": 0, "epochs": 4, "batch_size": 32, "learning_rate": 1e-2, "bits_freeze": 0.0}
    settings = {"preset": "hgq", "training_parameters": stages | (training or {}), **more}
    return pq.compile(net or small(), settings, digits_like(64)[0] if x is None else x)


def with_beta(beta, **training) -> pq.CompiledModel:
    return compiled(training, quantization_parameters={"hgq_beta": beta})


def learned(model) -> list[torch.Tensor]:
    return [p.detach().clone() for m in model.modules() if isinstance(m, LearnedQuantizer) for p in m.parameters()]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def steps(model, session, optimizer, count, x, y):
    """`count` optimizer steps, ending epochs where they end; returns the rows."""
    rows = []
    for n in range(count):
        part = slice(32 * (n % STEPS), 32 * (n % STEPS) + 32)
        loss = F.cross_entropy(model.train()(x[part]), y[part]) + session.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.step()
        if (n + 1) % STEPS == 0:
            rows.append(session.epoch_end())
    return rows


# ---- pressure
def test_more_beta_leaves_fewer_ebops():
    counts = []
    for beta in (0.0, 1e-4, 1e-3):
        torch.manual_seed(0)
        history = with_beta(beta, learning_rate=4e-2).fit(digits_like(160))
        assert history.last.beta == pytest.approx(beta)
        counts.append(history.last.ebops)
    assert counts[0] > 1.1 * counts[1] > 1.2 * counts[2] > 0


def test_rows_hold_the_exact_count_and_the_table_shows_it():
    model = with_beta([[0, 1e-6, "log"], [2, 1e-4]])
    seen = []
    history = model.fit(digits_like(160), callbacks=[lambda row: seen.append(model.ebops().total)])
    assert [row.ebops for row in history] == seen
    assert [row.beta for row in history] == pytest.approx([1e-6, 1e-5, 1e-4, 1e-4])
    assert "EBOPs" in str(history)
    assert f"{history.last.ebops:,.0f}" in str(history)
    plain = pq.compile(small(), {"preset": "fixed8", "training_parameters": {"epochs": 1}}, digits_like(64)[0]).fit(digits_like(64))
    assert plain.last.ebops is None
    assert plain.last.beta is None
    assert "EBOPs" not in str(plain)


def test_long_trainings_are_not_counted_in_every_epoch_but_in_the_last():
    history = with_beta(1e-5, epochs=150).fit(digits_like(32))
    counted = [row.epoch for row in history if row.ebops is not None]
    assert 50 <= len(counted) <= 100
    assert counted[-1] == 150
    assert str(history)


def test_the_controller_approaches_its_target():
    target = 600.0
    beta = {"target_ebops": target, "init_beta": 1e-4, "p": 1.0, "i": 0.2, "warmup_epochs": 1}
    torch.manual_seed(0)
    history = with_beta(beta, epochs=30).fit(digits_like(160))
    assert history[0].ebops > 2 * target
    assert history.last.ebops < 1.5 * target
    assert len({row.beta for row in history}) > 10


def test_gamma_alone_presses_on_bits_too():
    totals = []
    for gamma in (0.0, 0.1):
        torch.manual_seed(0)
        model = compiled({"learning_rate": 4e-2}, quantization_parameters={"hgq_beta": 0.0, "hgq_gamma": gamma})
        model.fit(digits_like(160))
        totals.append(sum(float(m.magnitude_bits().detach().sum()) for m in model.modules() if isinstance(m, HGQQuantizer)))
    assert totals[1] < totals[0]


def test_the_loss_is_beta_times_the_surrogate_plus_gamma_times_the_bits():
    model = compiled({"epochs": 1}, quantization_parameters={"hgq_beta": 2e-5, "hgq_gamma": 3e-4})
    model.calibrate(digits_like(64)[0])
    session = pq.session(model, epochs=1, steps_per_epoch=1)
    bits = sum(m.regularization() for m in model.modules() if isinstance(m, LearnedQuantizer))
    expected = 2e-5 * model.ebops_plan()() + 3e-4 * bits
    assert float(session.loss().detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


# ---- stages
def test_nothing_presses_in_pretraining():
    model = compiled({"pretraining_epochs": 1, "epochs": 1}, quantization_parameters={"hgq_beta": 1e-3})
    x, y = digits_like(160)
    model.calibrate(x)
    session = pq.session(model, epochs=2, steps_per_epoch=STEPS)
    optimizer = torch.optim.SGD(pq.param_groups(model, 1e-2))
    assert float(session.loss()) == 0
    steps(model, session, optimizer, STEPS, x, y)
    assert float(session.loss().detach()) > 0.1


@pytest.mark.parametrize("learn_on", [False, True])
def test_fine_tuning_holds_formats_unless_told_otherwise(learn_on):
    model = compiled({"epochs": 1, "fine_tuning_epochs": 1, "fine_tune_formats": learn_on})
    x, y = digits_like(160)
    model.calibrate(x)
    optimizer = torch.optim.Adam(pq.param_groups(model, 1e-2))
    session = pq.session(model, epochs=2, steps_per_epoch=STEPS)
    start = learned(model)
    steps(model, session, optimizer, STEPS, x, y)
    trained, weight = learned(model), model.get_parameter("0.weight").detach().clone()
    assert not equal(start, trained)
    assert (session.extra_loss() is None) != learn_on
    steps(model, session, optimizer, STEPS, x, y)
    assert equal(trained, learned(model)) != learn_on
    assert not torch.equal(weight, model.get_parameter("0.weight"))


def test_bits_stand_still_for_the_last_share_of_the_training():
    model = compiled({"epochs": 2, "bits_freeze": 0.3})
    x, y = digits_like(160)
    model.calibrate(x)
    optimizer = torch.optim.Adam(pq.param_groups(model, 1e-2))
    session = pq.session(model, epochs=2, steps_per_epoch=STEPS)
    seen = []
    for n in range(10):
        steps(model, session, optimizer, 1, x, y)
        seen.append(learned(model))
        if (n + 1) % STEPS == 0:
            session.epoch_end()
    moved = [not equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True] * 6 + [False] * 3


def test_formats_begin_to_learn_with_the_training_and_need_a_calibration():
    model = compiled()
    quantizers = [m for m in model.modules() if isinstance(m, LearnedQuantizer)]
    model.calibrate(10 * digits_like(64)[0])
    wide = next(m.maximum for m in quantizers if isinstance(m, HGQData))
    model.calibrate(digits_like(64)[0])
    assert next(m.maximum for m in quantizers if isinstance(m, HGQData)) < wide
    assert not any(m.is_learning for m in quantizers)
    pq.session(model, epochs=1, steps_per_epoch=1).loss()
    assert all(m.is_learning for m in quantizers)


def test_bits_stay_within_their_bounds():
    model = with_beta(1.0, learning_rate=0.5)
    model.fit(digits_like(160))
    for m in model.modules():
        if isinstance(m, HGQQuantizer) and m.by_width:
            assert float(m.b.detach().min()) >= 0


def test_ranges_that_follow_their_data_stop_before_fine_tuning():
    model = compiled({"epochs": 1, "fine_tuning_epochs": 1}, quantization_parameters={"use_hgq": False, "data_quantizer": "dynamic"})
    tracked = [m for m in model.modules() if isinstance(m, TrackedQuantizer)]
    assert tracked
    followed = []

    def loss(output, target):
        followed.append([bool(m.following) for m in tracked])
        return F.cross_entropy(output, target)

    model.fit(digits_like(160), loss=loss)
    assert [all(now) for now in followed] == [True] * STEPS + [False] * STEPS
    assert not any(followed[-1])


def test_ranges_of_a_loop_of_ones_own_are_traced_before_freezing_or_freezing_is_refused():
    model = compiled({"epochs": 1}, quantization_parameters={"overflow_mode_data": "WRAP"})
    x, y = digits_like(160)
    model.calibrate(x)
    with pq.session(model, epochs=1, steps_per_epoch=STEPS) as session:
        steps(model, session, torch.optim.Adam(pq.param_groups(model, 1e-2)), STEPS, x, y)
    again = compiled({"epochs": 1}, quantization_parameters={"overflow_mode_data": "WRAP"})
    again.load_state_dict(model.state_dict())
    for trained in (model, again):
        with pytest.raises(pq.LoweringError, match="last training batches") as caught:
            trained.freeze()
        assert caught.value.code == "PQ307"
        assert "calibrate" in caught.value.remedy
        assert len(caught.value.problems) == 2
        trained.calibrate(x)
        assert torch.equal(trained.freeze()(x), trained.eval()(x))


# ---- BatchNorm
@pytest.mark.parametrize(("share", "moves"), [(0.0, [True] * 10), (0.3, [True] * 7 + [False] * 3), (1.0, [False] * 10)])
def test_batch_statistics_stop_before_the_end(share, moves):
    torch.manual_seed(0)
    x, y = torch.randn(160, 1, 8, 8), torch.randint(10, (160,))
    settings = {"preset": "fixed8", "training_parameters": {"pretraining_epochs": 0, "epochs": 2, "batchnorm_freeze": share}}
    model = pq.compile(ConvBN(), settings, x[:64])
    model.calibrate(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session = pq.session(model, epochs=2, steps_per_epoch=STEPS).__enter__()
    moved = []
    for n in range(10):
        before = model.get_buffer("bn.running_mean").clone()
        steps(model, session, optimizer, 1, x, y)
        moved.append(not torch.equal(before, model.get_buffer("bn.running_mean")))
        if (n + 1) % STEPS == 0:
            session.epoch_end()
    assert moved == moves
    assert not any(m.fixed for m in model.modules() if isinstance(m, BatchCorrection))


# ---- checkpoints
@pytest.mark.parametrize(
    "more",
    [
        {"budget": {"ebops": 500}, "quantization_parameters": {"hgq_beta": 0.0}},
        {"quantization_parameters": {"hgq_beta": {"target_ebops": 500, "warmup_epochs": 1, "i": 0.1}}},
        {"quantization_parameters": {"hgq_beta": [[0, 1e-5, "log"], [3, 1e-3]]}, "pruning_parameters": {"sparsity": 0.5}},
    ],
)
@pytest.mark.parametrize("at", [7, 10, 19, 22])
@pytest.mark.filterwarnings("ignore:the budget:pquant_fx.PQuantWarning")
def test_a_checkpoint_continues_identically(more, at, tmp_path):
    training = {"epochs": 4, "fine_tuning_epochs": 1, "bits_freeze": 0.2}
    x, y = digits_like(160)

    def begun():
        model = compiled(training, **more)
        model.calibrate(x)
        return model, torch.optim.Adam(pq.param_groups(model, 2e-2)), pq.session(model, epochs=5, steps_per_epoch=STEPS)

    def go(model, optimizer, session, first, last):
        rows = []
        for n in range(first, last):
            part = slice(32 * (n % STEPS), 32 * (n % STEPS) + 32)
            loss = F.cross_entropy(model.train()(x[part]), y[part]) + session.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            session.step()
            if (n + 1) % STEPS == 0:
                rows.append(session.epoch_end())
        return rows

    one = begun()
    go(*one, 0, at)
    state = [copy.deepcopy(part.state_dict()) for part in one]
    torch.save(state, tmp_path / "checkpoint.pt")
    expected = go(*one, at, 25)
    two = begun()
    for part, loaded in zip(two, torch.load(tmp_path / "checkpoint.pt", weights_only=True)):
        part.load_state_dict(loaded)
    assert go(*two, at, 25) == expected
    ours, theirs = one[0].state_dict(), two[0].state_dict()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_the_state_of_another_session_is_refused():
    model = compiled()
    model.calibrate(digits_like(64)[0])
    state = pq.session(model, epochs=4, steps_per_epoch=5).state_dict()
    for other in (pq.session(model, epochs=5, steps_per_epoch=5), pq.session(plain(), epochs=4, steps_per_epoch=5)):
        with pytest.raises(pq.TrainingError) as caught:
            other.load_state_dict(state)
        assert caught.value.code == "PQ412"


def plain() -> pq.CompiledModel:
    return pq.compile(small(), {"preset": "fixed8", "training_parameters": {"pretraining_epochs": 0}}, digits_like(64)[0])
