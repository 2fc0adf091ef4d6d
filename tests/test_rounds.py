"""Rounds of the training stage and rewinding between them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import TrainingParameters
from pquant_fx.train.events import RoundEnd
from pquant_fx.train.loop import Loop
from pquant_fx.train.plan import Plan
from pquant_fx.train.pruning import masks_of
from pquant_fx.train.rewind import Rewind
from tests.models import digits_like
from tests.test_session import compiled, fake


def test_rounds_cover_the_training_stage_evenly():
    plan = Plan(0, 7, 0, 1, rounds=3)
    assert [plan.round_at("training", e) for e in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert [plan.in_round("training", e) for e in range(7)] == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (0, 2), (1, 2)]
    assert Plan(2, 4, 1, 1, rounds=2).cycle_at(0) == (0, 4)
    assert [Plan(2, 4, 1, 1, rounds=2).cycle_at(e) for e in (3, 4, 6)] == [(0, 4), (4, 7), (4, 7)]
    seen: list[object] = []
    s = fake(plan, seen)
    for _ in range(7):
        s.step()
        s.epoch_end()
    assert [(e.round, e.last) for e in seen if isinstance(e, RoundEnd)] == [(0, False), (1, False), (2, True)]
    after = [type(seen[n + 1]).__name__ for n, e in enumerate(seen) if isinstance(e, RoundEnd)]
    assert after == ["EpochEnd", "EpochEnd", "StageEnd"]
    with pytest.raises(pq.TrainingError, match="3 rounds do not fit into 2 epochs"):
        Plan.of_length(2, 1, pretraining=0, fine_tuning=0, rounds=3)


def test_weights_go_back_after_each_round_and_masks_do_not():
    settings = {"rewind": "every-round", "save_weights_epoch": 1, "rounds": 2, "epochs": 2, "pretraining_epochs": 0}
    model = compiled({"preset": "fixed8", "training_parameters": settings, "pruning_parameters": {"sparsity": 0.5}})
    batch, optimizer = digits_like(64), torch.optim.Adam(model.parameters(), 1e-2)
    seen = []
    with pq.session(model, epochs=4, steps_per_epoch=1, optimizer=optimizer) as s:
        for _ in range(4):
            s.loss()
            seen.append({k: v.clone() for k, v in model.state_dict().items()})
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
            s.step()
            s.epoch_end()
            seen.append({k: v.clone() for k, v in model.state_dict().items()})
    own = [k for k in seen[0] if not k.startswith("pq.")]
    same = [all(torch.equal(state[k], seen[2][k]) for k in own) for state in seen]
    # kept when epoch 1 began; the last weights are those, masked
    assert same[:7] == [False, True, True, True, True, False, False]
    masks = {path: mask.mask for mask, path in masks_of(model.graph_module)}
    assert len(masks) == 4
    assert all(0.4 < float(mask.mean()) < 0.6 for mask in masks.values())
    assert all(torch.equal(seen[-1][k], seen[2][k] * masks.get(k, 1)) for k in own)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("when", "rounds", "epochs", "save", "match"),
    [
        ("every-round", 1, 2, 2, "save_weights_epoch: 2 of the first round, which has 2 of the 2 epochs of training"),
        ("post-training-stage", 2, 4, 2, "which has 2 of the 4 epochs of training"),
        ("every-round", 1, 0, 0, "but the training stage has 0 epochs"),
    ],
)
def test_a_session_that_never_keeps_the_weights_to_go_back_to_is_refused(when, rounds, epochs, save, match):
    """The configuration has epochs enough, the loop announces fewer."""
    settings = {"rewind": when, "save_weights_epoch": save, "rounds": rounds, "epochs": 9, "pretraining_epochs": 1}
    model = compiled({"preset": "fixed8", "training_parameters": settings, "pruning_parameters": {"sparsity": 0.5}})
    with pytest.raises(pq.TrainingError, match=match) as caught:
        pq.session(model, epochs=1 + epochs, steps_per_epoch=1)
    (problem,) = caught.value.problems
    assert problem.code == "PQ412"
    assert f"rewind: {when}" in problem.what
    assert "rewind: never" in problem.remedy
    assert (f"save_weights_epoch 0 to {epochs // rounds - 1}" in problem.remedy) == (epochs > 0)
    if epochs:
        reachable = {"preset": "fixed8", "training_parameters": settings | {"save_weights_epoch": save - 1}}
        pq.session(compiled(reachable), epochs=1 + epochs, steps_per_epoch=1)  # the last epoch that is there


def test_a_round_of_an_own_loop_may_be_shorter_than_the_configuration_says():
    """Rounds of 3 epochs share 7: the first has 3, and epoch 2 is in it."""
    plan = Plan(0, 7, 0, 1, rounds=3)
    settings = TrainingParameters(rewind="every-round", save_weights_epoch=2, epochs=9)
    Rewind(torch.fx.symbolic_trace(torch.nn.Linear(2, 2)), settings, plan, Loop())
    with pytest.raises(pq.TrainingError, match="which has 3 of the 7"):
        Rewind(torch.fx.symbolic_trace(torch.nn.Linear(2, 2)), settings.model_copy(update={"save_weights_epoch": 3}), plan, Loop())
