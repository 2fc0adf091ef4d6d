"""Attention: hand-written, functional, as torch's layers; masks that are constants; refusals of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from tests.written_out import assert_written_out, called, gradients_differ, opaque

TRIANGLE = torch.ones(4, 4).tril()


class Heads(nn.Module):
    """Two heads of three features around a function of q, k, v (N, 2, 4, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.view(x.size(0), 4, 2, 3).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(x.size(0), 4, 6))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Written(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) / 3**0.5, -1) @ v


class Filled(Heads):
    """As nanoGPT writes it: a buffer says what is filled with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.eye(4).roll(1, 0) + TRIANGLE)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-2, -1) * 0.5).masked_fill(self.seen == 0, float("-inf"))
        return F.dropout(F.softmax(scores, dim=-1), 0.1, self.training) @ v


class Added(Heads):
    """-inf added, from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(4, 4).masked_fill(TRIANGLE == 0, float("-inf")))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT / 2 + self.mask, -1) @ v


class Functional(Heads):
    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.options = options

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rate = 0.1 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, dropout_p=rate, **self.options)


class Learned(Heads):
    """Scores plus a trained table of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 4, 4))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.table)


class Multihead(nn.Module):
    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, attn_mask=self.mask)


class Cross(nn.Module):
    """Queries of two tokens, keys and values of other sizes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention, self.keys = nn.MultiheadAttention(6, 3, batch_first=True, **options), nn.Linear(6, options.get("kdim", 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, :2], self.keys(x), self.keys(x), need_weights=False)[0]


def encoder(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options))


CASES: dict[str, Any] = {
    "written by hand": Written,
    "filled with -inf": Filled,
    "-inf added": Added,
    "functional": Functional,
    "causal": lambda: Functional(is_causal=True),
    "own scale": lambda: Functional(scale=0.3),
    "mask of True and False": lambda: Functional(TRIANGLE.flip(1) == 1),
    "mask of numbers": lambda: Functional((1 - TRIANGLE) * -1e9 + torch.arange(4.0) / 4),
    "learned mask": Learned,
    "multihead": Multihead,
    "multihead, causal": lambda: Multihead(TRIANGLE == 0),
    "multihead, mask of numbers": lambda: Multihead(torch.zeros(4, 4).masked_fill(TRIANGLE == 0, float("-inf"))),
    "multihead without bias": lambda: Multihead(bias=False),
    "cross": Cross,
    "cross of other sizes": lambda: Cross(kdim=4, vdim=4),
    "encoder layer": encoder,
    "encoder layer by itself": lambda: encoder()[0],
    "encoder layer, norm first": lambda: encoder(norm_first=True, activation="gelu"),
    "encoder": lambda: nn.Sequential(nn.TransformerEncoder(encoder()[0], 2, norm=nn.LayerNorm(6), enable_nested_tensor=False)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_the_float_model_and_one_meaning(name: str) -> None:
    assert_written_out(CASES[name], 4, 6, rough=0.08)


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_it_stays_whole(name: str) -> None:
    torch.manual_seed(0)
    model = pq.compile(CASES[name](), "fixed8", torch.randn(16, 4, 6))
    assert opaque(model) == []
    assert "softmax" not in called(model)
    assert sum(f == "matmul" for f in called(model)) == (4 if name == "encoder" else 2)


@pytest.mark.parametrize("build", [Functional, lambda: Functional(is_causal=True), Multihead, lambda: Cross(kdim=4, vdim=4), encoder])
def test_gradients_are_those_of_the_float_model(build: Any) -> None:
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(net, "options"):
        net.options["dropout_p"] = 0.0
        net.attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **net.options)
    for module in net.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    assert gradients_differ(net, torch.randn(64, 4, 6)) < 0.02


def test_dropout_stays_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 4, 6)
    for build in (Functional, lambda: Multihead(dropout=0.3), encoder):
        model = pq.compile(build(), "fixed8", x)
        first = [t if isinstance(t, Tensor) else t[0] for t in (model.train()(x), model(x))]
        assert not torch.equal(*first)
        again = [t if isinstance(t, Tensor) else t[0] for t in (model.eval()(x), model(x))]
        assert torch.equal(*again)


@pytest.mark.parametrize("build", [lambda: Functional(is_causal=True), lambda: Functional(TRIANGLE == 1), lambda: Multihead(TRIANGLE == 0)])
def test_what_a_mask_excludes_has_no_influence(build: Any) -> None:
    """Not a bit: no share is small instead of 0, and the largest score is one that counts."""
    torch.manual_seed(0)
    x = torch.randn(200, 4, 6)
    frozen = pq.compile(build(), "fixed8", x).freeze()
    other = torch.cat([x[:, :2], 40 * torch.randn(200, 2, 6)], 1)
    first, second = ((y if isinstance(y, Tensor) else y[0])[:, :2] for y in (frozen(x), frozen(other)))
    assert torch.equal(first, second)


def test_weights_of_all_heads_or_their_mean() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.m(x, x, x)[1], self.m(x, x, x, average_attn_weights=False)[1]

    torch.manual_seed(0)
    net, x = Both().eval(), torch.randn(64, 4, 6)
    for expected, found in zip(net(x), pq.compile(net, "fixed8", x).freeze()(x), strict=True):
        assert expected.shape == found.shape
        assert float((expected - found).detach().abs().max()) < 0.02


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=x[:, :, 0] > 2)[0]


class FromData(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=q @ k.transpose(-2, -1) > 0)


REFUSED: dict[str, tuple[Any, str, str]] = {
    "padding": (Padded, "padding mask comes with the data", "one length"),
    "a mask from data": (FromData, "computed from data", "constant mask"),
    "nothing left": (lambda: Functional(TRIANGLE.tril(-1) == 1), "leaves nothing of a row", "at least"),
    "always dropping": (lambda: Dropping(), "in evaluation too", "self.training"),
    "batch second": (lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8)), "batch is not the first axis", "batch_first=True"),
    "a key of its own": (lambda: Multihead(add_zero_attn=True), "a key of its own", "add_zero_attn"),
    "its activation": (lambda: encoder(activation=F.silu), "its activation is silu", "'relu' or 'gelu'"),
}


class Dropping(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_meaning_is_refused_before_training(name: str) -> None:
    build, what, remedy = REFUSED[name]
    report = pq.check(build(), torch.randn(8, 4, 6), target="integer")
    assert not report.ok
    assert [p.code for p in report.problems if what in p.what and remedy in p.remedy] == ["PQ201"], str(report)


def test_streams_refuse_products_of_matrices() -> None:
    from pquant_fx.lower.hls4ml.convert import check

    torch.manual_seed(0)
    model = pq.compile(Multihead(), "fixed8", torch.randn(16, 4, 6)).freeze().to_qonnx()
    assert check(model, "io_parallel") == []
    assert {p.code for p in check(model, "io_stream")} == {"PQ202"}
