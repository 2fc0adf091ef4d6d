"""EBOPs of compiled and frozen models: equal, signs, streamed layers, masks, reports, and what is refused."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import ConfigError, LoweringError
from pquant_fx.estimate import Ebops, EbopsPlan, exact_ebops
from pquant_fx.graph.analysis import analyse
from pquant_fx.prune.pruner import TRAINING
from pquant_fx.report.tables import graph_table
from tests.frozen_graphs import FrozenNet
from tests.frozen_operators import residual_net
from tests.models import MLP, Concat, ConvBN, Depthwise, MultiIO, OptionA, ResidualDigits, SharedLinear


class Attention(nn.Module):
    """Queries, keys and values of one head, with a softmax: (N, 4, 6) -> (N, 4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), dim=-1)
        return weights @ self.v(x)


class Multiplier(nn.Module):
    """What has a table, a slope, a transposed convolution: (N, 2, 4, 4) -> (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2, 2)
        self.slope = nn.PReLU(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.slope(self.up(x)))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (MLP, (16,)),
    "conv": (ConvBN, (1, 8, 8)),
    "residual": (ResidualDigits, (1, 8, 8)),
    "depthwise": (Depthwise, (4, 8, 8)),
    "concat": (Concat, (8,)),
    "shared": (SharedLinear, (8,)),
    "option A": (lambda: OptionA(4), (4, 8, 8)),
    "attention": (Attention, (4, 6)),
    "transposed": (Multiplier, (2, 4, 4)),
}
PRUNED = {"preset": "fixed8", "pruning_parameters": {"sparsity": 0.5}}


def compiled(name: str, config: Any = "fixed8") -> pq.CompiledModel:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return pq.compile(make(), config, torch.randn(16, *shape))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sign", ["weights_unsigned", "hgq2", "always"])
def test_compiled_and_frozen_models_cost_the_same(name: str, sign: str) -> None:
    model = compiled(name, {"preset": "fixed8", "quantization_parameters": {"ebops_sign": sign}})
    model.train()
    before = model.ebops()
    after = model.freeze().ebops()
    assert before.total == pytest.approx(after.total, rel=1e-12)
    assert before.total > 0
    assert (before.kind, before.sign) == ("exact", sign)
    assert model.training
    assert before.layers == pytest.approx(after.layers)


def test_a_model_of_several_inputs_and_outputs() -> None:
    x = {"tracks": torch.randn(32, 6), "towers": torch.randn(32, 4)}
    model = pq.compile(MultiIO(), "fixed8", x)
    assert model.ebops().total == pytest.approx(model.freeze().ebops().total)
    assert {row.op for row in model.ebops().rows} == {"linear", "add"}


def test_each_call_of_a_shared_layer_is_a_circuit_of_its_own() -> None:
    counted = compiled("shared").ebops()
    assert [row.module for row in counted.rows] == ["fc", "fc@2"]
    assert set(counted.layers) == {"fc", "fc@2"}


def test_removed_weights_cost_nothing_in_either_count() -> None:
    whole, half = compiled("mlp"), compiled("mlp", PRUNED)
    plan = half.ebops_plan()
    assert float(plan()) == pytest.approx(float(whole.ebops_plan()()))
    for mask in (m for m in half.graph_module.modules() if isinstance(m, pq.Mask)):
        mask.mask[:, ::2] = 0
        mask.enter(TRAINING)
    bias = sum(row.ebops for row in plan.by_node().rows) - float(plan())
    assert bias == pytest.approx(0, abs=1)
    products = 7 * 8 * (16 * 64 + 64 * 32 + 32 * 32 + 32 * 5)  # W - 1 = 7 bits of weights, 8 of data
    assert float(whole.ebops_plan()()) - float(plan()) == pytest.approx(products / 2)
    assert half.ebops().total < 0.6 * whole.ebops().total


# ---- signs
def signed_net(overflow: str) -> Any:
    """x: k = 1 and 3 magnitude bits; weights 101 and bias 11, signed formats; 4 products and 2 sums."""
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, 3, 0, "RND", overflow)
    w = net.parameter("w", torch.full((2, 2), 5.0), 1, 3, 0, "RND", overflow)
    b = net.parameter("b", torch.full((2,), 3.0), 1, 2, 0, "RND", overflow)
    return net.done(net.call(F.linear, x, w, b))


@pytest.mark.parametrize(
    ("sign", "overflow", "expected"),
    [
        ("weights_unsigned", "SAT", 4 * 4 * 3 + 2 * 2),
        ("weights_unsigned", "WRAP", 4 * 4 * 3 + 2 * 2),
        ("always", "SAT", 4 * 4 * 4 + 2 * 3),
        ("always", "WRAP", 4 * 4 * 4 + 2 * 3),
        ("hgq2", "SAT_SYM", 4 * 4 * 4 + 2 * 3),
        ("hgq2", "WRAP", 4 * 3 * 3 + 2 * 2),
    ],
)
def test_who_counts_a_sign_bit(sign: str, overflow: str, expected: int) -> None:
    gm = signed_net(overflow)
    exact, surrogate = exact_ebops(gm, sign=sign), EbopsPlan(gm, sign=sign)
    assert exact.total == float(surrogate()) == expected
    assert exact.sign == surrogate.by_node().sign == sign


def test_a_weight_of_zero_has_no_sign_either() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 0, 3, 0)
    gm = net.done(net.call(F.linear, x, net.parameter("w", torch.tensor([[5.0, 0.0]]), 1, 3, 0), None))
    assert exact_ebops(gm, sign="always").total == 3 * (3 + 1)


def test_a_value_behind_a_relu_has_no_sign() -> None:
    net = FrozenNet()
    x = net.call(F.relu, net.quantize(net.input("x", 2), 1, 3, 0))
    gm = net.done(net.call(operator.mul, x, x))
    assert exact_ebops(gm).total == float(EbopsPlan(gm)()) == 2 * 3 * 3


@pytest.mark.parametrize(
    ("kif", "overflow", "bits"), [((1, 0, 0), "SAT", 1), ((1, 0, 0), "SAT_SYM", 0), ((0, 2, -2), "SAT", 0), ((1, 1, -3), "SAT", 0)]
)
def test_formats_of_one_bit_and_of_none(kif: tuple[int, int, int], overflow: str, bits: int) -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 1), *kif, overflow=overflow)
    gm = net.done(net.call(operator.neg, x))
    assert exact_ebops(gm).total == float(EbopsPlan(gm)()) == bits


# ---- which format counts
@pytest.mark.parametrize("target", [F.max_pool1d, F.max_pool2d, torch.amax])
def test_the_largest_of_several_elements_has_the_union_of_their_formats(target: Any) -> None:
    """fixed 4.0 and 0.3 are both of few bits; what can be either needs 4 integer and 3 fraction bits."""
    net, shape = FrozenNet(), (1, 1, 2) if target is F.max_pool2d else (1, 2)
    x = net.quantize(net.input("x", *shape), 0, torch.tensor([4.0, 0.0]).expand(1, *shape), torch.tensor([0.0, 3.0]).expand(1, *shape))
    window = {F.max_pool1d: ((2,), (2,), (0,), (1,)), F.max_pool2d: ((1, 2), (1, 2), (0, 0), (1, 1))}
    arguments = ((2,), True) if target is torch.amax else (*window[target], False)
    gm = net.done(net.call(operator.neg, net.call(target, x, *arguments)))
    for counted in (exact_ebops(gm), EbopsPlan(gm).by_node()):
        assert counted.rows[-1].ebops == 7


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize(("sign", "expected"), [("weights_unsigned", (4, 8)), ("hgq2", (3, 8))])
def test_a_quantizer_that_changes_nothing_counts_where_it_stays(returned: bool, sign: str, expected: tuple[int, int]) -> None:
    """Freezing removes it, unless it declares the type of an output."""
    net = FrozenNet()
    narrow = net.quantize(net.input("x", 1), 1, 1, 2, overflow="WRAP", name="narrow")
    wide = net.quantize(narrow, 1, 3, 4, name="wide")
    gm = net.done((net.call(operator.neg, wide), *((wide,) if returned else ())))
    assert exact_ebops(gm, sign=sign).total == expected[returned]


# ---- streamed layers
def test_a_streamed_layer_counts_its_positions_in_parallel() -> None:
    gm = residual_net()
    whole, stream = exact_ebops(gm), exact_ebops(gm, parallel={"conv1": 1, "conv2": 16, "fc": 3})
    for name, part in (("conv1", 1 / 64), ("conv2", 16 / 64), ("fc", 1)):
        assert stream.layers[name] == pytest.approx(whole.layers[name] * part)
    assert stream.layers[""] == whole.layers[""]
    assert {row.module: (row.n_parallel, row.positions) for row in stream.rows if row.positions} == {"conv1": (1, 64), "conv2": (16, 64)}
    assert "streamed" in stream.summary
    assert "all positions in parallel" in whole.summary
    assert float(EbopsPlan(gm, parallel={"conv1": 1})()) < float(EbopsPlan(gm)())


def test_rows_of_a_dense_layer_are_positions_and_more_than_all_is_all() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 5, 2), 0, 3, 0)
    gm = net.done(net.call(F.linear, x, net.parameter("w", torch.full((2, 2), 5.0), 1, 3, 0), None, path="fc"))
    assert [exact_ebops(gm, parallel={"fc": n}).total for n in (1, 5, 50)] == [4 * 9, 5 * 4 * 9, 5 * 4 * 9]


def test_the_configuration_says_which_layers_are_streamed_and_whose_signs_count() -> None:
    config = {
        "preset": "fixed8",
        "quantization_parameters": {"ebops_sign": "always"},
        "layers": {"Conv2d": {"n_parallel": 4}, "block1.conv1": {"n_parallel": 1}},
    }
    model = compiled("residual", config)
    for counted in (model.ebops(), model.freeze().ebops(), model.ebops_plan().by_node()):
        found = {row.module: row.n_parallel for row in counted.rows if row.op == "conv2d"}
        assert found == {**dict.fromkeys(found, 4), "block1.conv1": 1}
        assert counted.sign == "always"


def test_what_can_not_be_asked() -> None:
    gm = residual_net()
    for options, code in (({"parallel": {"conv9": 1}}, "PQ405"), ({"parallel": {"conv1": 0}}, "PQ407"), ({"sign": "never"}, "PQ405")):
        for count in (exact_ebops, EbopsPlan):
            with pytest.raises(ConfigError) as caught:
                count(gm, **options)  # type: ignore[arg-type]
            assert caught.value.code == code


# ---- reports
def test_the_report_says_what_was_counted_and_how() -> None:
    counted = compiled("residual").ebops()
    text, page = counted.to_text(), counted.to_html()
    assert counted.total == pytest.approx(sum(row.ebops for row in counted.rows))
    assert sum(row.share for row in counted.rows) == pytest.approx(1)
    for row in counted.rows:
        assert row.node in text
        assert f"<td>{row.node}</td>" in page
    summary = " ".join(text.split())
    assert f"{counted.total:,.0f} EBOPs" in summary
    assert "exact" in summary
    assert "signs of data, not of parameters" in summary
    assert str(counted) == text == compiled("residual").ebops().to_text()


def test_the_table_of_a_graph_has_the_count_of_each_node() -> None:
    model = compiled("residual")
    gm = model.graph_module
    table, counted = graph_table(gm, analyse(gm)), model.ebops()
    assert {row.node: row.ebops for row in table.rows if row.ebops is not None} == {row.node: row.ebops for row in counted.rows}
    assert counted.summary in table.caption
    assert table.rows[-1].cells()[-1] == f"{counted.rows[-1].ebops:,.0f}"


# ---- what has no count
class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.fft.fft(self.fc(x)).real)


def test_what_has_no_bits_is_refused_or_named() -> None:
    model = pq.compile(Opaque(), "fixed8", torch.randn(8, 4))
    with pytest.raises(LoweringError) as caught:
        model.ebops()
    assert {p.code for p in caught.value.problems} <= {"PQ201", "PQ202"}
    partly = exact_ebops(model.graph_module, strict=False)
    assert partly.total > 0
    assert any("fft" in str(p) for p in partly.uncounted)
    assert "not counted" in partly.summary
    assert any("fft" in str(p) for p in model.ebops_plan().uncounted)
    assert float(model.ebops_plan()()) > 0


def test_a_network_without_quantizers_costs_nothing_that_can_be_said() -> None:
    model = pq.compile(MLP(), "float", torch.randn(8, 16))
    with pytest.raises(LoweringError):
        model.ebops()
    plan = model.ebops_plan()
    assert float(plan()) == 0
    assert len(plan.uncounted) > 0
    partly = exact_ebops(model.graph_module, strict=False)
    assert partly == Ebops((), "weights_unsigned", "exact", partly.uncounted)
    assert graph_table(model.graph_module, analyse(model.graph_module)).ebops == partly


def test_in_the_middle_of_a_training_with_tables_the_network_is_counted_as_it_stands() -> None:
    torch.manual_seed(0)
    config = {"preset": "hgq", "quantization_parameters": {"overflow_mode_data": "WRAP"}}
    model = pq.compile(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)), config, torch.randn(64, 8))
    frozen = model.ebops()
    for module in model.modules():
        if hasattr(module, "begin_learning"):
            module.begin_learning()
    model.train()(torch.randn(8, 8))
    with pytest.raises(LoweringError):
        model.freeze()
    assert model.ebops().total == pytest.approx(frozen.total, rel=0.05)
