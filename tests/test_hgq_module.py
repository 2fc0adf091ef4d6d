"""HGQ quantizers as modules: copies, states, torch.compile, vmap, refusals."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pquant_fx.errors import ConfigError
from pquant_fx.quantize import HGQData, HGQWeight, make_learned
from tests.learned_quantizers import KINDS, OVERFLOWS, W, X, calibrated, data, weight

each = pytest.mark.parametrize(("overflow", "parametrization"), list(itertools.product(OVERFLOWS, KINDS)))


@each
def test_copies_pickles_and_states(overflow: str, parametrization: Any) -> None:
    for q, x in (
        (weight(overflow=overflow, parametrization=parametrization), W),
        (data(overflow=overflow, parametrization=parametrization), X),
    ):
        blank = type(q)(q.shape, 8, overflow=overflow, parametrization=parametrization)  # type: ignore[arg-type]
        q.begin_learning()
        with torch.no_grad():
            for p in q.parameters():
                p.sub_(1.4)
        buffer = io.BytesIO()
        torch.save(q.state_dict(), buffer)
        buffer.seek(0)
        blank.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q)), blank):
            assert torch.equal(other.eval()(x), q.eval()(x))
            assert other.is_learning
            assert other.calibrated
        restore = q.snapshot()
        with torch.no_grad():
            for p in q.parameters():
                p.add_(3.0)
        restore()
        assert torch.equal(q(x), blank(x))
        assert str(q).startswith("HGQ")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("overflow", ["SAT", "WRAP"])
def test_one_graph_under_torch_compile(overflow: str) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(W.clone())
            self.wq, self.xq = weight(overflow=overflow), data(overflow=overflow)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(self.xq(x), self.wq(self.weight)) + self.xq.magnitude_bits().sum()

    layer = Layer()
    fast = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for model in (layer, fast):
        layer.zero_grad()
        y = model(X)
        y.square().sum().backward()
        results.append((y.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert len(results[0]) == (6 if overflow == "SAT" else 4)


def test_several_models_at_once() -> None:
    """vmap over stacked parameters, with gradients, equals one model after another."""
    q = weight(overflow="SAT")

    def loss(parameters: dict[str, Tensor], w: Tensor) -> Tensor:
        return torch.func.functional_call(q, parameters, w).square().sum()

    stacked = {name: torch.stack([p.detach() - n for n in range(3)]) for name, p in q.named_parameters()}
    together = torch.vmap(torch.func.grad(loss), (0, None))(stacked, W)
    for n in range(3):
        alone = torch.func.grad(loss)({name: p[n] for name, p in stacked.items()}, W)
        for name, found in alone.items():
            torch.testing.assert_close(together[name][n], found)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: HGQData((), 8, overflow="SAT_ZERO"), "PQ306"),
        (lambda: HGQData((), 8, overflow="WRAP_SM"), "PQ306"),
        (lambda: HGQWeight((), 8, overflow="WRAP_SM"), "PQ306"),
        (lambda: HGQWeight((), 0), "PQ306"),
        (lambda: HGQWeight((), 8, rounding="UP"), "PQ306"),
        (lambda: HGQWeight((), 8, parametrization="bki"), "PQ405"),  # type: ignore[arg-type]
        (lambda: HGQData((), 8, method="median"), "PQ405"),
        (lambda: weight().start(W * 2.0**40), "PQ306"),
        (lambda: calibrated(HGQData((), 8), X * 2.0**-40), "PQ306"),
        (lambda: make_learned("pact", "weight", (), 8), "PQ405"),
        (lambda: make_learned("huffman", "data", (), 8), "PQ405"),  # type: ignore[arg-type]
    ],
)
def test_refusals(make: Any, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == code
    assert caught.value.remedy
