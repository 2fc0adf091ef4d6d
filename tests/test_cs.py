"""Continuous Sparsification: temperature, rounds, the ticket with its factor, the loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import CSPruning, MagnitudePruning, load_config
from pquant_fx.errors import ConfigError
from pquant_fx.prune import CSMask, Member, temperature
from pquant_fx.prune.pruner import TRAINING
from tests.models import digits_like
from tests.test_session import compiled, config, masks, own_loop

pytestmark = pytest.mark.filterwarnings("ignore:layer .* is dead")  # a few steps from logits below 0 leave nothing


def made(weight: Tensor, logits: Tensor | None = None, **options: Any) -> CSMask:
    """A mask in training."""
    mask = CSMask(weight, CSPruning(**options))
    mask.enter(TRAINING)
    if logits is not None:
        with torch.no_grad():
            mask.logits.copy_(logits)
    return mask


# ---- temperature
def test_temperature_of_the_paper() -> None:
    assert [round(temperature(e, 5, 200), 4) for e in range(5)] == [1, 3.7606, 14.1421, 53.183, 200]
    assert temperature(0, 1, 200) == 200


@pytest.mark.parametrize(("epoch", "epochs"), [(-1, 3), (3, 3), (0, 0)])
def test_epochs_that_are_not_there(epoch: int, epochs: int) -> None:
    with pytest.raises(ConfigError) as caught:
        temperature(epoch, epochs, 200)
    assert caught.value.code == "PQ407"


def test_it_never_gets_above_the_final_one_and_each_round_begins_at_one() -> None:
    model = compiled(cs(rounds=2, epochs=3))
    x, y = digits_like(64)
    optimizer = torch.optim.SGD(pq.param_groups(model, 1e-2))
    seen = []
    with pq.session(model, epochs=6, steps_per_epoch=1) as s:
        for _ in range(6):
            seen.append(float(masks(model)[0].beta))  # as the forward finds it
            (F.cross_entropy(model(x), y) + s.loss()).backward()
            optimizer.step()
            s.step()
            s.epoch_end()
    assert seen == pytest.approx([1, math.sqrt(200), 200] * 2)


# ---- values and gradients
@pytest.mark.parametrize("start", [-0.5, 0.0, 2.0])
def test_a_new_mask_keeps_every_weight(start: float) -> None:
    w = torch.randn(4, 5, dtype=torch.float64)
    assert torch.allclose(made(w, threshold_init=start)(w), w, rtol=1e-14)


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 2), st.sampled_from([1.0, 3.0, 50.0]), st.integers(0, 2**20))
def test_soft_masks_and_gradients_by_the_formula(start: float, beta: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w, s, upstream = (torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    w.requires_grad_()
    mask = made(w, 0.1 * s, threshold_init=start)
    mask.beta.fill_(beta)
    sigma = torch.sigmoid(beta * 0.1 * s)
    c0 = 1 / torch.sigmoid(torch.tensor(start, dtype=torch.float64))
    out = mask(w)
    assert torch.allclose(out, c0 * sigma * w, rtol=1e-12)
    by_w, by_s = torch.autograd.grad(out, (w, mask.logits), upstream)
    assert torch.allclose(by_w, upstream * c0 * sigma, rtol=1e-12)
    assert torch.allclose(by_s, (upstream * w * c0 * beta * sigma * (1 - sigma)).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 1e-8, 0.3])
def test_the_loss_is_decay_times_the_sum_of_the_mask(decay: float) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(3, 4), torch.randn(2, 2)]
    members = [Member(made(w, 0.1 * w, threshold_decay=decay, threshold_init=-0.1), w) for w in weights]
    loss = CSMask.loss(members)
    if not decay:
        assert loss is None
        return
    assert loss is not None
    c0 = 1 + math.exp(0.1)
    assert loss.item() == pytest.approx(decay * c0 * sum(torch.sigmoid(0.1 * w).sum().item() for w in weights))
    loss.backward()
    sigma = torch.sigmoid(0.1 * weights[0])
    assert members[0].mask.logits.grad is not None
    assert torch.allclose(members[0].mask.logits.grad, decay * c0 * sigma * (1 - sigma))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_one_graph_under_torch_compile_and_under_vmap() -> None:
    w = torch.randn(3, 4, 5)
    mask = made(w[0], w[1], threshold_init=0.1)
    fast = torch.compile(mask, fullgraph=True, backend="aot_eager")
    for beta in (1.0, 7.0):
        mask.beta.fill_(beta)
        assert torch.allclose(fast(w[0]), mask(w[0]))
    assert torch.equal(torch.vmap(mask)(w), torch.stack([mask(one) for one in w]))


# ---- rounds
def test_between_rounds_suppressed_logits_stay_and_others_start_again() -> None:
    w = torch.randn(5)
    mask = made(w, torch.tensor([-2.0, -0.001, 0.0, 0.0001, 3.0]), final_temp=100.0, threshold_init=0.05)
    mask.beta.fill_(100.0)
    CSMask.end_round([Member(mask, w)], last=False)
    assert mask.logits.tolist() == pytest.approx([-200, -0.1, 0, 0.01, 0.05])
    assert mask.beta.item() == 1
    CSMask.end_round([Member(mask, w)], last=False)
    before = mask.logits.tolist()
    mask.beta.fill_(100.0)
    CSMask.end_round([Member(mask, w)], last=True)  # the ticket is drawn from the logits as they are
    assert (mask.logits.tolist(), mask.beta.item()) == (before, 100)


# ---- the ticket
@pytest.mark.parametrize("start", [-0.3, 0.0, 1.0])
def test_the_factor_becomes_part_of_the_weights(start: float) -> None:
    w = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mask = made(w, torch.tensor([-1.0, 0.0, 1e-6, 1.0]), threshold_init=start)
    mask.fix_(w)
    c0 = 1 + math.exp(-start)
    assert w.tolist() == pytest.approx([0, 0, 3 * c0, 4 * c0])  # a logit of 0 is pruned
    assert mask(w).tolist() == w.tolist()
    assert mask.sparsity(w).item() == 0.5


def test_hardening_is_the_limit_of_the_soft_mask() -> None:
    w = torch.randn(6, 7, dtype=torch.float64)
    mask = made(w, torch.randn(6, 7, dtype=torch.float64), threshold_init=-0.2)
    mask.beta.fill_(1e9)
    last = mask(w).detach().clone()
    mask.fix_(w)
    assert torch.allclose(mask(w), last, rtol=1e-12, atol=0)


def cs(epochs: int = 3, fine_tuning: int = 0, rounds: int = 1, rewind: str = "never", save: int = -1, **options: Any) -> dict[str, Any]:
    made = config(pretraining=0, epochs=epochs, fine_tuning=fine_tuning)
    made["training_parameters"] |= {"rounds": rounds, "rewind": rewind, "save_weights_epoch": save}
    return made | {"pruning_parameters": {"pruning_method": "cs", "threshold_init": -0.02, "threshold_decay": 1e-3, **options}}


@pytest.mark.parametrize("rewind", ["post-training-stage", "every-round"])
def test_rewound_weights_get_the_factor_too(rewind: str) -> None:
    """The order is: logits after a round, rewinding, the ticket."""
    model = compiled(cs(rounds=2, epochs=2, fine_tuning=1, rewind=rewind, save=1))
    x, y = digits_like(64)
    optimizer = torch.optim.Adam(pq.param_groups(model, 2e-2))
    kept, logits = {}, []
    with pq.session(model, epochs=5, steps_per_epoch=3, optimizer=optimizer) as s:
        for epoch in range(4):
            if epoch == 1:
                kept = {k: v.clone() for k, v in model.state_dict().items()}
            for _ in range(3):
                optimizer.zero_grad()
                (F.cross_entropy(model(x), y) + s.loss()).backward()
                optimizer.step()
                s.step()
            logits = [m.logits.detach().clone() for m in masks(model)]
            s.epoch_end()
            if epoch == 1:
                after = [m.logits.detach() for m in masks(model)]
                assert all(torch.allclose(a, torch.clamp(200 * b, max=-0.02)) for a, b in zip(after, logits))
        state = model.state_dict()  # the ticket: fine-tuning begins with it
        names = [name for name in state if name.endswith("weight") and not name.startswith("pq.")]
        assert len(names) == 4
        for name, logit in zip(names, logits):
            expected = kept[name] * (1 + math.exp(0.02)) * (logit > 0)
            assert torch.allclose(state[name], expected, rtol=1e-6, atol=0)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for _ in range(3):
            s.step()
        s.epoch_end()


# ---- fields
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"threshold_decay": 0.0}, {"threshold_decay": 1e-2}),
        ({"threshold_init": 0.2}, {"threshold_init": -0.05}),
    ],
)
def test_decay_and_start_say_how_much_is_pruned(less: dict[str, float], more: dict[str, float]) -> None:
    found = []
    for options in (less, more):
        model = compiled(cs(**options))
        own_loop(model, 3, digits_like(320))
        found.append(sum(float((m.mask == 0).sum()) for m in masks(model)))
    assert found[0] < found[1]


def test_final_temp_is_where_the_temperature_ends() -> None:
    w = torch.randn(3)
    members = [Member(made(w, final_temp=16.0), w)]
    seen = []
    for epoch in range(3):
        CSMask.begin_epoch(members, epoch, 3)
        seen.append(float(members[0].mask.beta))
    assert seen == [1, 4, 16]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"final_temp": 0.5}, "final_temp"), ({"threshold_init": -50.0}, "threshold_init"), ({"threshold_decay": -1.0}, "threshold_decay")],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pruning_parameters": {"pruning_method": "cs", **wrong}})
    (problem,) = caught.value.problems
    assert f"pruning_parameters.{key}" in problem.what
    assert problem.remedy


def test_another_method_takes_nothing_from_a_preset_of_this_one() -> None:
    assert load_config({"preset": "cs", "pruning_parameters": {"pruning_method": "magnitude"}}).pruning_parameters == MagnitudePruning()
