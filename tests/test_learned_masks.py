"""What holds for every method that learns its masks: nothing changes by reading, no waiting, one state, and fixed means as trained."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import AutoSparsePruning, CSPruning, DSTPruning
from pquant_fx.errors import TrainingError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES
from pquant_fx.prune import Layout, Member, Pruner, make_pruner
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.train.pruning import masks_of
from tests.models import ConvBN, digits_like
from tests.synchronisation import NoSynchronisation
from tests.test_session import compiled, config, masks, own_loop

# section of the configuration: what prunes a good part of a small network in a few steps
METHODS: dict[str, dict[str, Any]] = {
    "dst": {"alpha": 0.02, "threshold_decay": 1e-3, "scale_by_std": 1.0},
    "autosparse": {"threshold_init": -2.5, "threshold_decay": 1e-3, "backward_sparsity": 0.2},
    "cs": {"threshold_init": -0.02, "threshold_decay": 2e-4},
}
SECTIONS = {"dst": DSTPruning, "autosparse": AutoSparsePruning, "cs": CSPruning}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(3)


every = pytest.mark.parametrize("method", sorted(METHODS))


def made(method: str, weight: Tensor, **options: Any) -> Pruner:
    """A mask in training that prunes some of the weight."""
    mask = make_pruner(weight, SECTIONS[method](**{**METHODS[method], **options}), Layout(), None)
    mask.enter(TRAINING)
    with torch.no_grad():
        for parameter in mask.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter) - (0.0 if method == "dst" else 0.2))
    return mask


def pruning(method: str, **stages: int) -> dict[str, Any]:
    return config(**stages) | {"pruning_parameters": {"pruning_method": method, **METHODS[method]}}


# ---- a mask
@every
def test_a_new_mask_is_idle_and_keeps_every_weight(method: str) -> None:
    w = torch.randn(3, 4)
    mask = make_pruner(w, SECTIONS[method](**METHODS[method]), Layout(), None)
    assert torch.equal(mask(w), w)
    assert mask.keep(w) is None


@every
def test_reading_a_weight_twice_changes_nothing(method: str) -> None:
    w = torch.randn(5, 6)
    mask = made(method, w)
    before = {k: v.clone() for k, v in mask.state_dict().items()}
    one, two, _, _ = mask(w), mask(w), mask.sparsity(w), type(mask).loss([Member(mask, w)])
    assert torch.equal(one, two)
    assert all(torch.equal(v, before[k]) for k, v in mask.state_dict().items())
    assert 0 < int((one == 0).sum()) < w.numel() or method == "cs"


@every
def test_neither_step_nor_hook_waits_for_the_device(method: str) -> None:
    w = torch.randn(5, 6).requires_grad_()
    mask = made(method, w, **({"backward_sparsity": 0.3} if method == "autosparse" else {}))
    members = [Member(mask, w)]
    with NoSynchronisation():
        loss = type(mask).loss(members)
        assert loss is not None
        (mask(w).sum() + loss).backward()
        type(mask).step(members, 1, 10)
        mask.keep(w)


@every
def test_fixed_is_as_kept_says_and_stays(method: str) -> None:
    w = torch.randn(5, 6)
    mask = made(method, w)
    kept, last = mask.keep(w), mask(w).detach().clone()
    assert kept is not None
    mask.fix_(w)
    assert torch.equal(mask.mask, kept)
    assert torch.equal(mask(w), w)
    if method != "cs":  # whose mask is soft until then
        assert torch.equal(mask(w), last)
    members = [Member(mask, w)]
    type(mask).end(members)
    assert torch.equal(mask(w), w)


@every
def test_copies_and_states(method: str) -> None:
    w = torch.randn(4, 4)
    mask = made(method, w)
    type(mask).begin_epoch([Member(mask, w)], 1, 4)
    other = make_pruner(torch.zeros(4, 4), mask.settings, Layout(), None)
    other.load_state_dict(mask.state_dict(), strict=True)
    for same in (other, copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert same.is_training
        assert torch.equal(same(w), mask(w))
        grads = [torch.autograd.grad(one(x).square().sum(), x)[0] for one in (same, mask) for x in (w.clone().requires_grad_(),)]
        assert torch.equal(*grads)
    assert mask.double()(w.double()).dtype == torch.float64
    assert method in repr(mask)


@every
def test_nothing_is_learned_in_a_training_stage_without_epochs(method: str) -> None:
    s = pq.session(compiled(pruning(method, pretraining=1, epochs=0, fine_tuning=0)), epochs=1, steps_per_epoch=1)
    s.step()
    with pytest.raises(TrainingError, match="has 0 epochs") as caught:
        s.epoch_end()
    assert caught.value.code == "PQ412"
    assert method in str(caught.value)


@pytest.mark.parametrize("method", ["dst", "cs"])
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**20),
    st.sampled_from([m for m in ROUNDING_MODES if not m.startswith("S_")]),
    st.sampled_from(OVERFLOW_MODES),
)
def test_hard_masks_commute_with_quantization(method: str, seed: int, rounding: str, overflow: str) -> None:
    torch.manual_seed(seed)
    w = torch.randn(4, 5)
    mask = made(method, w)
    kept = mask.keep(w)
    assert kept is not None
    assert torch.equal(fixed_point(kept * w, 1, 2, 3, rounding, overflow), kept * fixed_point(w, 1, 2, 3, rounding, overflow))
    if method == "dst":
        assert torch.equal(mask(w), kept * w)


# ---- a training
def effective(model: pq.CompiledModel) -> dict[str, Tensor]:
    """What every layer multiplies with, before quantization."""
    weights = dict(model.graph_module.named_parameters())
    return {path: mask(weights[path]).detach().clone() for mask, path in masks_of(model.graph_module)}


@every
def test_the_finished_model_is_the_one_of_the_last_evaluation(method: str) -> None:
    model = compiled(pruning(method, pretraining=1, epochs=3, fine_tuning=1))
    own_loop(model, 5, digits_like(320))
    x, _ = digits_like(64)
    last = model.eval()(x)
    found = {path: mask for mask, path in masks_of(model.graph_module)}
    weights = dict(model.graph_module.named_parameters())
    for path, mask in found.items():
        assert isinstance(mask, Pruner)
        assert mask.is_fixed
        assert torch.equal(weights[path], weights[path] * mask.mask)
    pruned = sum(float((m.mask == 0).sum()) for m in masks(model)) / sum(m.mask.numel() for m in masks(model))
    assert 0.05 < pruned < 0.95
    assert torch.equal(model.freeze()(x), last)
    assert all(torch.equal(effective(model)[path], weights[path]) for path in found)


@pytest.mark.parametrize("method", ["dst", "autosparse"])
def test_weights_do_not_jump_when_masks_are_fixed(method: str) -> None:
    model = compiled(pruning(method, pretraining=0, epochs=1, fine_tuning=1))
    x, y = digits_like(64)
    optimizer = torch.optim.Adam(pq.param_groups(model, 1e-2))
    with pq.session(model, epochs=2, steps_per_epoch=5, optimizer=optimizer) as s:
        for _ in range(5):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + s.loss()).backward()
            optimizer.step()
            s.step()
        before, seen = effective(model), model.eval()(x)
        s.epoch_end()
        assert all(m.is_fixed for m in masks(model))
        assert all(torch.equal(value, before[path]) for path, value in effective(model).items())
        assert torch.equal(model.eval()(x), seen)
        for _ in range(5):
            s.step()
        s.epoch_end()


@pytest.mark.parametrize("method", ["dst", "autosparse"])
def test_rewound_weights_get_the_masks_that_were_learned(method: str) -> None:
    settings = pruning(method, pretraining=0, epochs=2, fine_tuning=0)
    settings["training_parameters"] |= {"rewind": "post-training-stage", "save_weights_epoch": 0}
    model = compiled(settings)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = digits_like(64)
    optimizer = torch.optim.Adam(pq.param_groups(model, 2e-2))
    learned: dict[str, Tensor] = {}
    with pq.session(model, epochs=2, steps_per_epoch=5, optimizer=optimizer) as s:
        for _ in range(2):
            for _ in range(5):
                optimizer.zero_grad()
                (F.cross_entropy(model(x), y) + s.loss()).backward()
                optimizer.step()
                s.step()
            learned = effective(model)
            s.epoch_end()
    state = model.state_dict()
    for path, value in learned.items():
        assert torch.equal(state[path], start[path] * (value != 0))
    assert any(bool((value == 0).any()) for value in learned.values())


@pytest.mark.filterwarnings("ignore:layer .* is dead")  # logits begin below 0, and one step is all they have
@every
def test_weights_and_masks_learn_in_one_step_with_batchnorm_and_quantization(method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 8, 8)
    model = pq.compile(ConvBN(), pruning(method, pretraining=0, epochs=1, fine_tuning=0), x)
    optimizer = torch.optim.SGD(pq.param_groups(model, 0.1))
    groups = {group["name"]: group["params"] for group in optimizer.param_groups}
    before = [p.detach().clone() for p in groups["masks"]]
    with pq.session(model, epochs=1, steps_per_epoch=1) as s:
        model.train()
        (model(x).square().mean() + s.loss()).backward()
        optimizer.step()
        s.step()
        assert all(not torch.equal(p, old) for p, old in zip(groups["masks"], before))
        s.epoch_end()


@every
def test_two_layers_with_methods_of_their_own(method: str) -> None:
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))
    rule = {"0": {"pruning": {"pruning_method": method, **METHODS[method]}}}
    model = pq.compile(net, config(pretraining=0, epochs=2, fine_tuning=0) | {"layers": rule}, digits_like(64)[0])
    own_loop(model, 2, digits_like(320))
    assert [m.settings.pruning_method for m in masks(model)] == [method, "magnitude"]
    assert masks(model)[1].mask.mean().item() == 0.5
