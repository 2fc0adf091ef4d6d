"""Masks before or after quantization: every method, granularity and order ends as it was evaluated, and the order changes who is judged."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.config import DSTPruning, load_config
from pquant_fx.graph.dialect import Quantizer
from pquant_fx.prune import DSTMask, Pruner
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.quantize.fixed_point import fixed_point
from pquant_fx.train.pruning import masks_of
from pquant_fx.train.quantized_weights import show_quantized
from tests.models import ConvBN
from tests.test_dst import Step

# method and granularity -> section; all prune a part of the network below in a few steps
CASES: dict[str, dict[str, Any]] = {
    "magnitude": {"pruning_method": "magnitude", "sparsity": 0.5, "interval": 1},
    "magnitude-structured": {"pruning_method": "magnitude", "sparsity": 0.5, "granularity": "structured", "interval": 1},
    "magnitude-nm": {"pruning_method": "magnitude", "granularity": "nm", "nm": "2:4", "interval": 1},
    "dst-channelwise": {"pruning_method": "dst", "alpha": 0.02},
    "dst-weightwise": {"pruning_method": "dst", "alpha": 0.02, "threshold_type": "weightwise"},
    "dst-layerwise": {"pruning_method": "dst", "alpha": 0.02, "threshold_type": "layerwise"},
    "autosparse": {"pruning_method": "autosparse", "threshold_init": -2.5},
    "cs": {"pruning_method": "cs", "threshold_init": -0.02, "threshold_decay": 1e-3},
    "pdp": {"pruning_method": "pdp", "sparsity": 0.5},
    "pdp-structured": {"pruning_method": "pdp", "sparsity": 0.5, "structured_pruning": True},
    "pdp-nm": {"pruning_method": "pdp", "nm": "2:4"},
    "wanda": {"pruning_method": "wanda", "sparsity": 0.5, "t_start_collecting_batch": 0, "t_delta": 2},
    "wanda-nm": {"pruning_method": "wanda", "N": 2, "M": 4, "t_start_collecting_batch": 0, "t_delta": 2},
    "activation": {"pruning_method": "activation_pruning", "threshold": 0.6, "t_start_collecting_batch": 0, "t_delta": 2},
    "mdmm": {"pruning_method": "mdmm", "target_sparsity": 0.5},
    "mdmm-structured": {"pruning_method": "mdmm", "target_sparsity": 0.5, "metric_type": "StructuredSparsity"},
    "mdmm-nm": {"pruning_method": "mdmm", "metric_type": "NMSparsity"},
    "mdmm-patterns": {"pruning_method": "mdmm", "metric_type": "PACAPatternSparsity", "disable_pruning_for_layers": ["Linear"]},
    "mdmm-hardware": {"pruning_method": "mdmm", "metric_type": "FPGAAwareSparsity", "target_sparsity": 0.5, "rf": 4},
}
SOFT = ("cs", "mdmm")
"""Methods whose weights change where the mask is fixed: it is not yet there in training."""
QUANTIZED = tuple(name for name in CASES if name.split("-")[0] in ("magnitude", "dst", "wanda", "mdmm"))


def made(name: str, first: bool, fine_tuning: int = 1, bits: int = 4) -> pq.CompiledModel:
    torch.manual_seed(0)
    net = ConvBN()
    net.bn.weight.data.uniform_(0.5, 2)
    config = {
        "preset": "fixed8",
        "training_parameters": {"pretraining_epochs": 1, "epochs": 2, "fine_tuning_epochs": fine_tuning, "pruning_first": first},
        "quantization_parameters": {"default_weight_bits": bits},
        "pruning_parameters": CASES[name],
    }
    return pq.compile(net, config, data()[0])


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 1, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)


def step(model: pq.CompiledModel, s: Any, optimizer: torch.optim.Optimizer) -> None:
    x, y = data()
    optimizer.zero_grad()
    (F.cross_entropy(model.train()(x), y) + s.loss()).backward()
    optimizer.step()
    s.step()


def pruners(model: pq.CompiledModel) -> list[tuple[Pruner, Tensor]]:
    found = [(mask, model.get_parameter(path).detach()) for mask, path in masks_of(model.graph_module)]
    return [(mask, weight) for mask, weight in found if isinstance(mask, Pruner)]


@pytest.mark.parametrize(("name", "first"), list(itertools.product(CASES, [True, False])))
def test_the_finished_model_is_the_last_evaluation(name: str, first: bool) -> None:
    model = made(name, first)
    x, optimizer = data()[0], torch.optim.Adam(pq.param_groups(model, 1e-2))
    with pq.session(model, epochs=4, steps_per_epoch=4, optimizer=optimizer) as s:
        for epoch in range(4):
            for _ in range(4):
                step(model, s, optimizer)
            if epoch == 2:
                last, state = model.eval()(x), {k: v.clone() for k, v in model.state_dict().items()}
                read = [(mask(w), mask.sparsity(w), mask.train()(w)) for mask, w in pruners(model)]
                assert all(torch.equal(state[k], v) for k, v in model.state_dict().items()), "reading changes nothing"
                assert read
            s.epoch_end()
            if epoch == 2:
                assert all(mask.is_fixed for mask, _ in pruners(model))
                assert torch.equal(model.eval()(x), last) != name.startswith(SOFT)
    last = model.eval()(x)
    assert all(torch.equal(w, w * mask.mask) for mask, w in pruners(model))
    assert 0.1 < sum(float((m.mask == 0).sum()) for m, _ in pruners(model)) / sum(w.numel() for _, w in pruners(model)) < 0.95
    assert torch.equal(model.freeze()(x), last)
    assert torch.equal(model.eval()(x), last)


@pytest.mark.parametrize(("name", "first"), list(itertools.product((*QUANTIZED, "activation"), [True, False])))
def test_masks_commute_with_quantization(name: str, first: bool) -> None:
    model = made(name, first, fine_tuning=0)
    optimizer = torch.optim.Adam(pq.param_groups(model, 1e-2))
    with pq.session(model, epochs=3, steps_per_epoch=4, optimizer=optimizer) as s:
        for epoch in range(3):
            for n in range(4):
                step(model, s, optimizer)
                if (epoch, n) == (2, 3):
                    assert sum(check_commutes(mask, w) for mask, w in pruners(model)) > 0
            s.epoch_end()


def check_commutes(mask: Pruner, weight: Tensor) -> int:
    """How many weights are removed."""
    kept = mask.keep(weight)
    assert kept is not None
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    for k, i, f, rounding, overflow in ((1, 0, 3, "RND", "SAT"), (1, -1, 3, "TRN", "WRAP")):
        bits = torch.tensor(k), torch.tensor(i), torch.tensor(f)
        after = kept * fixed_point(weight, *bits, rounding, overflow)
        assert torch.equal(fixed_point(kept * weight, *bits, rounding, overflow), after)
    return int((kept == 0).sum())


# ---- who is judged
TIED = torch.tensor([[0.30, 0.26, 0.9, -1.0]])  # in quarters: 1, 1, 4 (saturated at 3), -4


@pytest.mark.parametrize(
    ("section", "latent", "quantized"),
    [
        ({"pruning_method": "magnitude", "sparsity": 0.25}, [1, 0, 1, 1], [0, 1, 1, 1]),
        ({"pruning_method": "magnitude", "sparsity": 0.25, "scope": "global"}, [1, 0, 1, 1], [0, 1, 1, 1]),
        ({"pruning_method": "magnitude", "granularity": "nm", "nm": "3:4"}, [1, 0, 1, 1], [1, 0, 1, 1]),
        ({"pruning_method": "wanda", "sparsity": 0.25, "t_start_collecting_batch": 0, "t_delta": 1}, [1, 0, 1, 1], [0, 1, 1, 1]),
        ({"pruning_method": "mdmm", "target_sparsity": 0.25}, [1, 0, 1, 1], [0, 1, 1, 1]),
        ({"pruning_method": "dst", "threshold_init": 0.27, "alpha": 0}, [1, 0, 1, 1], [0, 0, 1, 1]),
    ],
)
def test_ties_of_quantized_weights_are_decided_by_index(section: dict[str, Any], latent: list[int], quantized: list[int]) -> None:
    for first, expected in ((True, latent), (False, quantized)):
        net = nn.Linear(4, 1)
        net.weight.data.copy_(TIED)
        config = {
            "preset": "fixed8",
            "training_parameters": {"pretraining_epochs": 0, "epochs": 1, "pruning_first": first},
            "quantization_parameters": {
                "default_weight_keep_negatives": True,
                "default_weight_integer_bits": 0,
                "default_weight_fractional_bits": 2,
                "default_weight_bits": None,
            },
            "pruning_parameters": section,
        }
        x = torch.ones(4, 4)
        model = pq.compile(net, config, x)
        with pq.session(model, epochs=1, steps_per_epoch=2) as s:
            for _ in range(2):
                model.train()(x)  # what Wanda looks at; nothing moves the weights
                s.step()
            s.epoch_end()
        ((mask, weight),) = pruners(model)
        assert mask.mask.tolist() == [expected]
        assert torch.equal(weight, TIED * mask.mask)


def test_without_quantization_the_order_changes_nothing() -> None:
    found = []
    for first in (True, False):
        torch.manual_seed(0)
        training = {"pretraining_epochs": 0, "epochs": 1, "pruning_first": first}
        model = pq.compile(
            ConvBN(), {"preset": "float", "training_parameters": training, "pruning_parameters": {"sparsity": 0.5}}, data()[0]
        )
        model.fit(data())
        found.append([mask.mask for mask, _ in pruners(model)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_behind_batchnorm_weights_are_judged_on_their_own_scale() -> None:
    model = made("magnitude", first=False, bits=3)
    show_quantized(model.graph_module)
    weight, bn = model.get_parameter("conv.weight").detach(), model.get_submodule("bn")
    scaled = weight * (bn.weight * torch.rsqrt(bn.running_var + bn.eps)).detach().reshape(-1, 1, 1, 1)
    (quantizer,) = [m for name, m in model.named_modules() if name.endswith("conv.weight_quantizer")]
    assert isinstance(quantizer, Quantizer)
    k, i, f = quantizer.kif(scaled)
    expected = fixed_point(scaled, k, i, f, quantizer.rounding, quantizer.overflow) * weight / scaled
    seen = pruners(model)[0][0].seen
    assert seen is not None
    torch.testing.assert_close(seen, expected)
    assert all(len(row.unique()) < len(row.flatten()) for row in seen), "the grid ties weights"


def test_the_gradient_is_that_of_a_mask_behind_a_straight_through_quantizer() -> None:
    torch.manual_seed(0)
    weight, threshold, grad = torch.randn(3, 5), torch.rand(3, 1), torch.randn(3, 5)
    q = fixed_point(weight, *map(torch.tensor, (1.0, 2.0, 1.0)), "RND", "SAT")
    mask = DSTMask(weight, DSTPruning())
    mask.judge_quantized(weight)
    mask.see(q)
    mask.enter(TRAINING)
    with torch.no_grad():
        mask.threshold.copy_(threshold)
    w = weight.clone().requires_grad_()
    out = mask(w)
    kept = (q.abs() > threshold).float()
    assert torch.equal(out, weight * kept)
    assert not torch.equal(kept, (weight.abs() > threshold).float())
    (out * grad).sum().backward()
    oracle_q, oracle_t = q.clone().requires_grad_(), threshold.clone().requires_grad_()
    (oracle_q * Step.apply(oracle_q.abs() - oracle_t) * grad).sum().backward()
    torch.testing.assert_close(w.grad, oracle_q.grad)
    torch.testing.assert_close(mask.threshold.grad, oracle_t.grad)


@pytest.mark.parametrize("method", ["pdp", "cs", "autosparse", "activation_pruning"])
def test_methods_that_can_not_be_told_the_order_say_so(method: str) -> None:
    config = load_config({"preset": method, "training_parameters": {"pruning_first": False}})
    (note,) = [note for note in config.notes if "pruning_first" in note.what]
    assert method in note.what
    assert note.severity == "info"
    assert load_config(method).notes == ()
    assert not [
        n for n in load_config({"preset": "dst", "training_parameters": {"pruning_first": False}}).notes if "pruning_first" in n.what
    ]
