"""Canonicalize: every spelling of an operator ends as the one of the dialect, with the same values; a second run changes nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn import functional as F

from pquant_fx.graph.dialect import OPS
from pquant_fx.graph.means import scaled_pool, scaled_sum
from pquant_fx.graph.moves import embed, upsample
from pquant_fx.graph.passes import Pipeline
from pquant_fx.graph.tables import exp_neg, inverse_root, inverse_sum, lookup
from pquant_fx.graph.verify import verify
from pquant_fx.passes.canonicalize import RULES, canonicalize
from pquant_fx.trace import trace

T = torch.Tensor
X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
W1, W2 = torch.randn(3, 6, 3), torch.randn(3, 4, 3, 2)
ALL = slice(None)


def calls(gm: GraphModule) -> list[tuple[Any, ...]]:
    """The calls of a graph as (target, arguments after the values...)."""
    found = []
    for node in gm.graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            found.append((node.target, *(a for a in node.args if not isinstance(a[0] if type(a) is tuple else a, torch.fx.Node))))
    return found


def build(f: Callable[..., Any], *examples: torch.Tensor) -> GraphModule:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2 = nn.Parameter(W1), nn.Parameter(W2)

        def forward(self, x, other=None):
            return f(x) if other is None else f(x, other)

    gm = trace(Net(), dict(zip(("x", "other"), examples))).graph_module
    pipeline = Pipeline((canonicalize,))
    pipeline(gm, examples)
    assert not pipeline(gm), "a second run changes nothing"
    torch.testing.assert_close(gm(*examples), f(*examples))
    for n in (1, 3):
        other = tuple(torch.cat([e, e])[:n] for e in examples)
        torch.testing.assert_close(gm(*other), f(*other))
    return gm


ONE = [
    (lambda x: x.relu(), (F.relu,)),
    (torch.relu, (F.relu,)),
    (lambda x: F.relu(x, inplace=False), (F.relu,)),
    (lambda x: F.leaky_relu(x, negative_slope=0.25), (F.leaky_relu, 0.25)),
    (lambda x: F.hardtanh(x, max_val=0.5), (F.hardtanh, -1.0, 0.5)),
    (lambda x: x.clamp(-1, 0.5), (F.hardtanh, -1, 0.5)),
    (lambda x: torch.clip(x, min=0), (F.relu,)),
    (lambda x: x.tanh(), (torch.tanh,)),
    (F.sigmoid, (torch.sigmoid,)),
    (lambda x: F.silu(x, inplace=False), (F.silu,)),
    (lambda x: F.gelu(x, approximate="none"), (F.gelu,)),
    (lambda x: F.gelu(x, approximate="tanh"), (F.gelu,)),
    (lambda x: F.elu(x, alpha=0.5), (F.elu, 0.5)),
    (lambda x: F.softplus(x, threshold=10), (F.softplus, 1, 10)),
    (lambda x: torch.special.erf(x.reciprocal()), (torch.reciprocal,), (torch.erf,)),
    (lambda x: x.softmax(-1), (F.softmax, 2)),
    (lambda x: F.softmax(x, dim=1), (F.softmax, 1)),
    (lambda x: x.amax(-1, keepdim=True), (torch.amax, (2,), True)),
    (lambda x: x.add(2), (operator.add, 2)),
    (lambda x: torch.add(x, x), (operator.add,)),
    (lambda x: 1.0 - x, (operator.sub, 1.0)),
    (lambda x: torch.rsub(x, 1.0), (operator.sub, 1.0)),
    (lambda x: 2 / x, (operator.truediv, 2)),
    (lambda x: x.div(4), (operator.truediv, 4)),
    (lambda x: x * 3, (operator.mul, 3)),
    (lambda x: x.square(), (operator.mul,)),
    (lambda x: x**2, (operator.mul,)),
    (lambda x: -x, (operator.neg,)),
    (lambda x: x @ x.mT, (torch.permute, (0, 2, 1)), (torch.matmul,)),
    (lambda x: torch.bmm(x, x.transpose(1, 2)), (torch.permute, (0, 2, 1)), (torch.matmul,)),
    (lambda x: torch.max(x, x * 2), (operator.mul, 2), (torch.maximum,)),
    (lambda x: torch.flatten(x, 1), (torch.reshape, (-1, 48))),
    (lambda x: x.view(x.size(0), -1), (torch.reshape, (-1, 48))),
    (lambda x: x.view(*x.shape[:1], 2, 3, 8), (torch.reshape, (-1, 2, 3, 8))),
    (lambda x: x.reshape(-1, 48), (torch.reshape, (-1, 48))),
    (lambda x: x.unflatten(2, (2, 4)), (torch.reshape, (-1, 6, 2, 4))),
    (lambda x: x.unsqueeze(-1), (torch.reshape, (-1, 6, 8, 1))),
    (lambda x: x[:, None], (torch.reshape, (-1, 1, 6, 8))),
    (lambda x: x.permute(0, 2, 1), (torch.permute, (0, 2, 1))),
    (lambda x: x.swapaxes(-1, -2), (torch.permute, (0, 2, 1))),
    (lambda x: torch.movedim(x, 2, 1), (torch.permute, (0, 2, 1))),
    (lambda x: x[:, 1:3], (operator.getitem, (ALL, slice(1, 3, 1), slice(0, 8, 1)))),
    (lambda x: x[..., ::2], (operator.getitem, (ALL, slice(0, 6, 1), slice(0, 8, 2)))),
    (lambda x: x[:, -1], (operator.getitem, (ALL, slice(5, 6, 1), slice(0, 8, 1))), (torch.reshape, (-1, 8))),
    (lambda x: x.select(2, 0), (operator.getitem, (ALL, slice(0, 6, 1), slice(0, 1, 1))), (torch.reshape, (-1, 6))),
    (lambda x: x.narrow(1, 2, 3), (operator.getitem, (ALL, slice(2, 5, 1), slice(0, 8, 1)))),
    (lambda x: x.chunk(4, 1)[2], (operator.getitem, (ALL, slice(4, 6, 1), slice(0, 8, 1)))),
    (lambda x: x.split([1, 5], dim=1)[-1], (operator.getitem, (ALL, slice(1, 6, 1), slice(0, 8, 1)))),
    (lambda x: x.split(5, dim=-1)[1], (operator.getitem, (ALL, slice(0, 6, 1), slice(5, 8, 1)))),
    (lambda x: x.unbind(1)[3], (operator.getitem, (ALL, slice(3, 4, 1), slice(0, 8, 1))), (torch.reshape, (-1, 8))),
    (lambda x: torch.concat([x, x], -1), (torch.cat, 2)),
    (lambda x: torch.stack([x, x], 1), (torch.reshape, (-1, 1, 6, 8)), (torch.reshape, (-1, 1, 6, 8)), (torch.cat, 1)),
    (lambda x: x.mean(-1), (torch.mean, (2,), False)),
    (lambda x: torch.sum(x, dim=(2, 1), keepdim=True), (torch.sum, (1, 2), True)),
    (lambda x: F.pad(x, (1, 2)), (F.pad, (1, 2), "constant", 0)),
    (lambda x: F.max_pool1d(x, 2), (F.max_pool1d, (2,), (2,), (0,), (1,), False)),
    (lambda x: F.avg_pool1d(x, 3, stride=1, padding=1), (F.avg_pool1d, (3,), (1,), (1,), False, True)),
    (lambda x: F.adaptive_avg_pool1d(x, 2), (F.avg_pool1d, (4,), (4,), (0,), False, True)),
]
TWO_D = [
    (lambda x: F.max_pool2d(x, 3, 2, 1), (F.max_pool2d, (3, 3), (2, 2), (1, 1), (1, 1), False)),
    (lambda x: F.avg_pool2d(x, (3, 2)), (F.avg_pool2d, (3, 2), (3, 2), (0, 0), False, True)),
    (lambda x: F.avg_pool2d(x, 2, divisor_override=3), (F.avg_pool2d, (2, 2), (2, 2), (0, 0), False, True), (operator.mul, 4 / 3)),
    (lambda x: F.adaptive_avg_pool2d(x, 1), (F.avg_pool2d, (6, 8), (6, 8), (0, 0), False, True)),
    (lambda x: F.adaptive_max_pool2d(x, (3, None)), (F.max_pool2d, (2, 1), (2, 1), (0, 0), (1, 1), False)),
    (lambda x: F.conv2d(x, W2, stride=2), (F.conv2d, None, (2, 2), (0, 0), (1, 1), 1)),
    (
        lambda x: F.conv2d(x, W2, padding="same"),
        (F.pad, (0, 1, 1, 1), "constant", 0),
        (F.conv2d, None, (1, 1), (0, 0), (1, 1), 1),
    ),
]


@pytest.mark.parametrize(("f", "expected"), [(f, e) for f, *e in ONE])
def test_spellings_of_one_operator(f: Callable[..., Any], expected: list[Any]) -> None:
    assert calls(build(f, X)) == expected


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("f", "expected"), [(f, e) for f, *e in TWO_D])
def test_spellings_on_maps(f: Callable[..., Any], expected: list[Any]) -> None:
    assert calls(build(f, MAP)) == expected


def test_alpha_becomes_a_factor() -> None:
    assert calls(build(lambda x, y: torch.sub(x, y, alpha=2), X, X * 3)) == [(operator.mul, 2), (operator.sub,)]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.clone(),
        lambda x: x.contiguous(),
        lambda x: x.to(torch.float32),
        lambda x: x.type(torch.float32),
        lambda x: x.to(x.device),
        lambda x: x.cpu(),
        lambda x: x.expand(-1, 6, 8),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.pad(x, (0, 0)),
        lambda x: nn.Identity()(x),
        lambda x: x.reshape(x.shape),
        lambda x: x.permute(0, 1, 2),
        lambda x: x[:],
    ],
)
def test_identities_go(f: Callable[..., Any]) -> None:
    assert calls(build(f, X)) == []


@pytest.mark.parametrize(
    ("f", "target"),
    [
        (lambda x: x.cumsum(1), T.cumsum),
        (lambda x: x.mean(), T.mean),
        (lambda x: torch.mean(x), T.mean),
        (lambda x: x.permute(1, 0, 2), T.permute),
        (lambda x: torch.cat([x, x]), torch.concat),
        (lambda x: x[0], T.__getitem__),
        (lambda x: F.pad(x, (1, 1), mode="reflect"), torch._C._nn.pad),
        (lambda x: F.pad(x, (1, 1), value=1.0), torch._C._nn.pad),
        (lambda x: x.reshape(-1, 8), T.reshape),
        (lambda x: torch.reshape(x, (-1, 8)), T.reshape),
        (lambda x: F.adaptive_avg_pool1d(x, 3), F.adaptive_avg_pool1d),
        (lambda x: x.detach(), T.detach),
        (lambda x: x.clamp(min=0.5), T.clamp),
        (lambda x: torch.clamp(x, 1.0, 0.0), torch.clamp),
        (lambda x: torch.softmax(x, 0), torch.softmax),
        (lambda x: F.softmax(x, 1, dtype=torch.float32), F.softmax),
        (lambda x: torch.amax(x), T.amax),
    ],
)
def test_what_has_no_canonical_form_stays_opaque(f: Callable[..., Any], target: Any) -> None:
    """Under a name that is not in the dialect's table, so that no target takes it for the canonical operator."""

    class Net(nn.Module):
        def forward(self, x):
            return f(x)

    gm = trace(Net(), {"x": X}).graph_module
    Pipeline((canonicalize,))(gm, (X,))
    assert [c[0] for c in calls(gm)] == [target]
    assert target not in OPS
    torch.testing.assert_close(gm(X), f(X))


def test_a_batch_that_equals_another_axis_is_not_mistaken() -> None:
    """8 samples of shape (8, 3): x.view(8, -1) has the batch on both axes, or on none."""

    class Net(nn.Module):
        def forward(self, x):
            return x.view(8, -1)

    gm = trace(Net(), {"x": torch.randn(8, 8, 3)}).graph_module
    Pipeline((canonicalize,))(gm)
    for n in (1, 2, 8):
        x = torch.randn(n, 8, 3)
        torch.testing.assert_close(gm(x), x.view(8, -1), rtol=0, atol=0)


def test_attention_heads_folded_into_the_batch_stay_right() -> None:
    def heads(x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        y = x.view(b, t, 2, c // 2).permute(0, 2, 1, 3).reshape(b * 2, t, c // 2)
        return torch.bmm(y, y.transpose(1, 2)).view(b, 2, t, t).sum(1)

    build(heads, X)


def test_graphs_of_torch_fx_itself_are_taken_too() -> None:
    class Net(nn.Module):
        def forward(self, x):
            return x.relu().cumsum(1) + F.relu(x, inplace=False)

    gm = symbolic_trace(Net())
    Pipeline((canonicalize,))(gm, (X,))
    verify(gm)
    assert [c[0] for c in calls(gm)] == [F.relu, T.cumsum, F.relu, operator.add]


def test_a_dropout_that_never_drops_goes_and_a_hooked_identity_stays() -> None:
    model = nn.Sequential(nn.Dropout(0.0), nn.Identity(), nn.Identity(), nn.Dropout(0.5))
    model[2].register_forward_hook(lambda m, i, o: o * 2)
    gm = trace(model, {"input": X}).graph_module
    Pipeline((canonicalize,))(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["2", "3"]
    torch.testing.assert_close(gm.eval()(X), X * 2)


def test_every_rule_leads_to_the_dialect() -> None:
    """No rule is registered for something that does not exist."""
    assert all(callable(f) for f in RULES)
    made = {lookup, exp_neg, inverse_sum, inverse_root, scaled_pool, scaled_sum, upsample, embed}  # by passes and rules only
    assert set(OPS) - made <= set(RULES)
