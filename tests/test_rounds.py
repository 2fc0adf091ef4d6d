"""Rounds of the training stage and rewinding between them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.train.events import RoundEnd
from pquant_fx.train.plan import Plan
from pquant_fx.train.pruning import masks_of
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
