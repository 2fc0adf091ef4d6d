"""Who decides a value's format: the place that makes it, or a consumer that asks for another; what is noted, what is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.values import is_data_quantizer


class Net(nn.Module):
    """A forward given as a function of the module and x: (N, 8) -> anything."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call
        self.a, self.b, self.c, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def compiled(call: Any, layers: dict[str, Any], **sections: Any) -> Any:
    torch.manual_seed(0)
    return pq.compile(Net(call), {"preset": "fixed8", "layers": layers, **sections}, torch.randn(32, 8))


def source(model: Any, name: str, at: int = 0) -> Node:
    """What the node `name` takes as argument `at`."""
    (node,) = (n for n in model.graph_module.graph.nodes if n.name == name)
    found = node.args[at]
    assert isinstance(found, Node)
    return found


def width(model: Any, node: Node) -> int:
    k, i, f = (t.reshape(-1)[0] for t in model.get_submodule(str(node.target)).kif())
    return int(k + i + f)


def notes(model: Any) -> list[str]:
    return [p.what for p in model.notes if p.code == "PQ606"]


def exact(model: Any) -> bool:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    frozen = model.freeze()
    return torch.equal(frozen(x), model.eval()(x)) and torch.equal(frozen.integer(x).float(), model(x))


def test_the_only_consumer_defines_the_quantizer_of_the_value() -> None:
    model = compiled(lambda m, x: m.b(m.act(m.a(x))), {"b": {"input_bits": 5}})
    taken = source(model, "b")
    assert (str(taken.target), width(model, taken)) == ("pq.b.input_quantizer", 5)
    assert taken.args[0].name == "act"
    assert not hasattr(model.pq, "act")
    assert notes(model) == ["'b' asks for 5 bits of 'act', whose own setting is 8 bits: the consumer's request wins"]
    assert exact(model)


def test_a_consumer_that_wants_another_format_gets_its_own_quantizer_on_the_unrounded_value() -> None:
    model = compiled(lambda m, x: m.b(y := m.act(m.a(x))) + m.c(y), {"c": {"input_format": "ufixed<4,2>"}})
    shared, own = source(model, "b"), source(model, "c")
    assert (str(shared.target), str(own.target)) == ("pq.act.quantizer", "pq.c.input_quantizer")
    assert shared.args[0] is own.args[0]
    assert own.args[0].name == "act"
    assert [int(v) for v in model.get_submodule("pq.c.input_quantizer").kif()] == [0, 2, 2]
    assert len(notes(model)) == 1
    assert exact(model)


def test_consumers_that_agree_share_one_quantizer() -> None:
    model = compiled(lambda m, x: m.b(y := m.act(m.a(x))) + m.c(y), {"b": {"input_bits": 5}, "c": {"input_bits": 5}})
    assert source(model, "b") is source(model, "c")
    assert len([n for n in model.graph_module.graph.nodes if is_data_quantizer(n)]) == 2
    assert exact(model)


def test_a_request_for_what_the_value_has_anyway_is_no_disagreement() -> None:
    assert notes(compiled(lambda m, x: m.b(m.act(m.a(x))), {"b": {"input_bits": 8}})) == []
    same = {"act": {"data_format": "ufixed<6,2>"}, "b": {"input_format": "ufixed<6,2>"}}
    assert notes(compiled(lambda m, x: m.b(m.act(m.a(x))), same)) == []


def test_modes_of_the_request_are_those_of_the_consumer() -> None:
    model = compiled(lambda m, x: m.b(m.act(m.a(x))), {"b": {"input_bits": 5, "data_rounding": "TRN", "data_overflow": "WRAP"}})
    found = model.get_submodule("pq.b.input_quantizer")
    assert (found.rounding, found.overflow, found.non_negative) == ("TRN", "WRAP", True)


def test_what_moves_values_is_repeated_for_the_request() -> None:
    """The value is rounded once on each way, although a reshape stands between it and the consumer that asks."""
    model = compiled(lambda m, x: m.b((y := m.act(m.a(x)).reshape(-1, 2, 4)).reshape(-1, 8)) + m.c(y.flatten(1)), {"c": {"input_bits": 4}})
    ways = {}
    for name in ("b", "c"):
        node, passed = source(model, name), 0
        while not is_data_quantizer(node):
            node, passed = node.args[0], passed + 1
        ways[name] = (node, passed)
    assert {name: passed for name, (_, passed) in ways.items()} == {"b": 2, "c": 2}
    assert ways["b"][0] is not ways["c"][0]
    assert ways["b"][0].args[0] is ways["c"][0].args[0]
    assert exact(model)


def test_a_concat_asks_all_its_branches() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))

    model = pq.compile(Joined(), {"preset": "fixed8", "layers": {"out": {"input_bits": 6}}}, torch.randn(16, 8))
    joined = source(model, "out")
    assert (joined.name, [width(model, n) for n in joined.all_input_nodes]) == ("cat", [6, 6])
    assert len({str(n.target) for n in joined.all_input_nodes}) == 2


def test_sums_that_something_multiplies_keep_their_quantizer_for_the_others() -> None:
    model = compiled(lambda m, x: m.b(s := m.a(x) + x) + s, {"b": {"input_bits": 5}})
    assert str(source(model, "b").target) == "pq.b.input_quantizer"
    assert source(model, "b").args[0].name == "add"
    assert exact(model)


# ---- interfaces
def test_an_input_whose_consumers_agree_arrives_as_they_ask() -> None:
    model = compiled(lambda m, x: m.b(x) + m.c(x), {"b": {"input_bits": 6}, "c": {"input_bits": 6}})
    assert source(model, "b") is source(model, "c")
    assert source(model, "b").args[0].op == "placeholder"


@pytest.mark.parametrize("sections", [{}, {"inputs": {"x": {"format": "fixed<10,4>"}}}])
def test_an_input_has_one_format_of_which_others_are_casts(sections: dict[str, Any]) -> None:
    layers = {"c": {"input_bits": 6}} if not sections else {"b": {"input_bits": 6}, "c": {"input_bits": 6}}
    model = compiled(lambda m, x: m.b(x) + m.c(x), layers, **sections)
    (x,) = (n for n in model.graph_module.graph.nodes if n.op == "placeholder")
    assert [str(u.target) for u in x.users] == ["pq.x.quantizer"]
    cast = source(model, "c")
    assert (width(model, cast), str(cast.args[0].target)) == (6, "pq.x.quantizer")
    assert exact(model)


def test_a_declared_output_rounds_the_value_once_beside_its_other_users() -> None:
    model = compiled(lambda m, x: (y := m.act(m.a(x)), m.b(y)), {}, outputs={"0": {"format": "ufixed<6,3>"}})
    (act,) = (n for n in model.graph_module.graph.nodes if n.name == "act")
    assert sorted(str(u.target) for u in act.users) == ["pq.act.output_quantizer", "pq.act.quantizer"]


# ---- switches
def test_quantize_output_gives_a_result_a_format_that_nothing_multiplies() -> None:
    model = compiled(lambda m, x: m.a(x) + x, {"a": {"quantize_output": True, "data_bits": 7}})
    assert str(source(model, "add").target) == "pq.a.quantizer"
    assert width(model, source(model, "add")) == 7
    assert exact(model)


def test_quantize_output_rounds_behind_the_batch_statistics() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = pq.compile(net, {"preset": "fixed8", "layers": {"0": {"quantize_output": True}}}, torch.randn(16, 8))
    (quantizer,) = (n for n in model.graph_module.graph.nodes if str(n.target) == "pq.1.quantizer" or str(n.target) == "pq._1.quantizer")
    assert type(model.get_submodule(str(quantizer.args[0].target))).__name__ == "BatchCorrection"


def test_quantize_input_false_leaves_the_operands_alone_and_freezing_says_so() -> None:
    model = compiled(lambda m, x: m.b(m.a(x)), {"b": {"quantize_input": False}})
    assert source(model, "b").name == "a"
    model = compiled(lambda m, x: m.b(x), {}, quantization_parameters={"quantize_input": False})
    with pytest.raises(pq.LoweringError) as caught:
        model.freeze()
    assert {(p.code, p.place.node) for p in caught.value.problems} == {("PQ202", "b")}


def test_a_declared_input_format_holds_whatever_the_switch_says() -> None:
    model = compiled(lambda m, x: m.b(x), {}, quantization_parameters={"quantize_input": False}, inputs={"x": {"format": "fixed<10,4>"}})
    assert str(source(model, "b").target) == "pq.x.quantizer"


def test_every_format_of_an_activation_between_many_consumers_is_reported() -> None:
    model = compiled(lambda m, x: m.a(y := m.act(x)) + m.b(y) + m.c(y), {"a": {"input_bits": 4}, "b": {"input_bits": 6}})
    assert [text.split(" of ")[0] for text in notes(model)] == ["'a' asks for 4 bits", "'b' asks for 6 bits"]
    assert [width(model, source(model, n)) for n in "abc"] == [4, 6, 8]
    assert all(p.severity == "info" and p.place.module in ("a", "b") for p in model.notes)
    assert exact(model)
