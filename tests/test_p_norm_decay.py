"""Weight decay by the p-norm: the paper's proximal step, on weights only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pquant_fx as pq
from pquant_fx.train.p_norm_decay import p_norm_decay


@pytest.mark.parametrize(("p", "factor"), [(1.0, 0.99900100), (0.8, 0.99799452), (0.5, 0.99502488)])
def test_factor(p: float, factor: float) -> None:
    w = nn.Parameter(torch.tensor([0.01, 0.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=1e-3)
    p_norm_decay(optimizer, 1e-2, p)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert w.tolist() == pytest.approx([0.01 * factor, 0.0], rel=1e-8)


def test_it_shrinks_what_the_optimizer_made_by_where_the_weight_was() -> None:
    w = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1)
    p_norm_decay(optimizer, 0.3, 0.5)
    w.grad = torch.tensor([1.0, -2.0], dtype=torch.float64)
    optimizer.step()
    x = torch.tensor([0.5, 0.25], dtype=torch.float64) ** 1.5
    expected = torch.tensor([0.4, -0.05], dtype=torch.float64) * x / (x + 0.5 * 0.1 * 0.3)
    torch.testing.assert_close(w.detach(), expected)


def test_only_weights_shrink_and_removing_it_ends_it() -> None:
    model = pq.compile(nn.Linear(4, 2), "fixed8", torch.randn(8, 4))
    optimizer = torch.optim.SGD(pq.param_groups(model, lr=0.1))
    handles = p_norm_decay(optimizer, 0.1)
    before = {n: v.detach().clone() for n, v in model.named_parameters()}
    for v in model.parameters():
        v.grad = torch.zeros_like(v)
    optimizer.step()
    changed = {n for n, v in model.named_parameters() if not torch.equal(v, before[n])}
    assert changed == {"weight"}
    assert bool((model.weight.detach().abs() < before["weight"].abs()).all())
    for handle in handles:
        handle.remove()
    before = {n: v.detach().clone() for n, v in model.named_parameters()}
    optimizer.step()
    assert all(torch.equal(v, before[n]) for n, v in model.named_parameters())


def test_no_rate_no_gradient_no_change() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([a, b], lr=0.0)
    p_norm_decay(optimizer, 0.1)
    b.grad = torch.ones(2)
    optimizer.step()
    assert a.tolist() == [1, 1]
    assert b.tolist() == [0, 0]


@pytest.mark.parametrize(("options", "what"), [({"p": 0.0}, "p is"), ({"p": 1.5}, "p is"), ({"strength": -1.0}, "strength")])
def test_impossible_settings(options: dict[str, float], what: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(pq.TrainingError, match=what):
        p_norm_decay(optimizer, **{"strength": 0.1, **options})


def test_two_decays_are_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1)
    with pytest.raises(pq.TrainingError, match="already decays"):
        p_norm_decay(optimizer, 0.1)
