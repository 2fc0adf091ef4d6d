"""What a table holds where several quantizers read it, and the bounds of what a lookup gives."""

from __future__ import annotations

import copy
import operator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.errors import ConfigError, LoweringError
from pquant_fx.formats import OVERFLOW_MODES, ROUNDING_MODES, evaluation_mode
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.interval_rules import RULES
from pquant_fx.graph.intervals import Inexact, Interval, constant
from pquant_fx.graph.support import unsupported
from pquant_fx.graph.tables import lookup
from pquant_fx.lower.integer import IntegerInterpreter, real
from pquant_fx.lower.onnx.plain import to_onnx
from pquant_fx.lower.onnx.run import run_onnxruntime
from pquant_fx.passes.bake_tables import bake_tables
from pquant_fx.quantize.quantizers import FixedQuantizer
from pquant_fx.quantize.table_entries import table_entries
from tests.frozen_graphs import FrozenNet


@st.composite
def quantizers(draw: Any) -> FixedQuantizer:
    """Any modes; one format, or one for each of three elements."""
    overflow = draw(st.sampled_from(OVERFLOW_MODES))
    k = 1 if overflow == "WRAP_SM" else draw(st.integers(0, 1))
    count = draw(st.sampled_from([1, 1, 3]))
    i, f = (torch.tensor(draw(st.lists(st.integers(-3, 4), min_size=count, max_size=count)), dtype=torch.float32) for _ in "if")
    shape = () if count == 1 else (1, 3)
    rounding = evaluation_mode(draw(st.sampled_from(ROUNDING_MODES)))
    return FixedQuantizer(torch.full(shape, float(k)), i.reshape(shape), f.reshape(shape), rounding, overflow).double().eval()


@given(st.lists(quantizers(), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_reader_makes_of_the_entry_what_it_would_make_of_the_number(readers: list[FixedQuantizer], seed: int) -> None:
    rng = np.random.default_rng(seed)
    ties = rng.integers(-300, 300, 40) * 2.0 ** -rng.integers(0, 7, 40)
    near = [np.nextafter(ties.astype(np.float32), np.float32(end)) for end in (-99, 99)]
    x = np.concatenate([ties, *near, [0.0, 1e4, -1e4]])
    entries, held = table_entries(x, readers)
    columns = torch.from_numpy(np.stack([x] * 3, 1)), torch.from_numpy(np.stack([entries] * 3, 1))
    for quantizer in readers:
        assert torch.equal(quantizer(columns[0]), quantizer(columns[1]))
    assert torch.equal(held.double()(columns[1]), columns[1]), "the entries have the format that the table declares"
    if len(readers) == 1 and readers[0].f.dim() == 0:
        assert torch.equal(readers[0](columns[1]), columns[1]), "one format: the entries are results already"


def test_numbers_that_no_table_can_hold() -> None:
    saturating, wrapping = FixedQuantizer(1, 3, 4), FixedQuantizer(1, 3, 4, "TRN", "WRAP")
    entries, _ = table_entries(np.array([np.inf, -np.inf, 1.0]), [saturating])
    assert entries.tolist() == [8 - 1 / 16, -8.0, 1.0]
    for values, quantizer in ((np.array([np.nan]), saturating), (np.array([np.inf]), wrapping)):
        with pytest.raises(Inexact) as caught:
            table_entries(values, [quantizer])
        assert caught.value.code == "PQ305"
    with pytest.raises(ConfigError) as error:
        table_entries(np.array([1.0, 2.0**40]), [wrapping, FixedQuantizer(1, 0, 20, "TRN", "WRAP")])
    assert error.value.code == "PQ306"


def shared_table(*formats: Any, moved: bool = False) -> GraphModule:
    """sigmoid of a value of five bits, read by several quantizers, the first perhaps behind a slice that takes all."""
    net = FrozenNet()
    gate = net.call(torch.sigmoid, net.quantize(net.input("x", 3), 1, 2, 2), path="gate")
    first = net.call(operator.getitem, gate, (slice(None), slice(None))) if moved else gate
    return net.done(tuple(net.quantize(gate if n else first, *kif, name=f"q{n}") for n, kif in enumerate(formats)))


@pytest.mark.parametrize(
    "formats",
    [
        [(0, 0, 4)],
        [(0, 0, 4, "RND_CONV", "SAT_SYM"), (0, 1, 7, "TRN", "WRAP")],
        [(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[2.0, 5.0, 0.0]]), "RND_ZERO"), (0, 0, 3, "TRN_ZERO")],
    ],
    ids=["one", "two", "elements"],
)
@pytest.mark.parametrize("moved", [False, True])
def test_one_table_serves_all_its_readers(formats: list[Any], moved: bool) -> None:
    gm = shared_table(*formats, moved=moved)
    codes = torch.arange(-16, 16).reshape(-1, 1).expand(-1, 3) / 4
    with torch.no_grad():
        exact = torch.sigmoid(codes.double()).float().double()
        expected = [copy.deepcopy(gm.get_submodule(f"pq.q{n}.quantizer")).double()(exact) for n in range(len(formats))]
    assert bake_tables(gm)
    gm.recompile()
    assert sum(n.target is lookup for n in gm.graph.nodes) == 1
    assert not unsupported(gm)
    found = gm(codes)
    interpreted = IntegerInterpreter(gm).run(codes.numpy())
    for wanted, computed, integer, onnx_value in zip(expected, found, interpreted, run_onnxruntime(to_onnx(gm), [codes.numpy()])):
        assert torch.equal(computed.double(), wanted)
        assert np.array_equal(real(*integer), wanted.numpy())
        assert np.array_equal(onnx_value, wanted.numpy())
    assert not bake_tables(gm)


def test_a_result_that_arithmetic_takes_unrounded_is_refused() -> None:
    net = FrozenNet()
    gate = net.call(torch.sigmoid, net.quantize(net.input("x", 3), 1, 2, 2), path="gate")
    gm = net.done((net.quantize(gate, 0, 0, 4, name="q"), net.call(operator.add, gate, 1.0, path="sum")))
    assert not bake_tables(gm)
    assert [(p.code, p.place.module) for p in unsupported(gm)] == [("PQ202", "sum")]


def test_a_table_over_unlike_formats_is_refused() -> None:
    net = FrozenNet()
    x = net.quantize(net.input("x", 2), 1, torch.tensor([[2.0, 9.0]]), torch.tensor([[9.0, -2.0]]))
    gm = net.done(net.quantize(net.call(torch.tanh, x, path="act"), 1, 0, 6, name="q"))
    with pytest.raises(LoweringError, match="19 bits") as caught:
        bake_tables(gm)
    assert (caught.value.code, caught.value.place.module) == ("PQ303", "act")
    assert "per_tensor" in caught.value.remedy


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bounds_of_a_lookup_are_the_extremes_of_what_it_can_meet(data: Any) -> None:
    entries = np.array(data.draw(st.lists(st.integers(-40, 40), min_size=1, max_size=33))) / 8
    f, low, fine = data.draw(st.integers(-2, 3)), data.draw(st.integers(-40, 10)), data.draw(st.integers(0, 2))
    ends = np.sort(data.draw(st.lists(st.tuples(*[st.integers(0, len(entries) - 1)] * 2), min_size=1, max_size=6)), axis=1)
    x = Interval(f + fine, (ends[:, 0] + low) << fine, (ends[:, 1] + low) << fine)
    value, sums = RULES[lookup](x, constant(entries), f, low)
    assert sums is None
    met = [entries[first : last + 1] for first, last in ends]
    assert np.ldexp(value.low, -value.f).tolist() == [part.min() for part in met]
    assert np.ldexp(value.high, -value.f).tolist() == [part.max() for part in met]
    assert value.contains(np.array([[part[0], part[-1]] for part in met]).T)
    with pytest.raises(Inexact, match="leave the table"):
        RULES[lookup](Interval(f, x.low >> fine, np.full_like(x.low, len(entries) + low)), constant(entries), f, low)


def test_a_lookup_has_the_interval_of_its_reachable_entries() -> None:
    net = FrozenNet()
    x = net.call(F.hardtanh, net.quantize(net.input("x", 2), 0, 3, 0), 2.0, 4.0)
    made = net.call(lookup, x, net.parameter("t", torch.tensor([9.0, 1, 5, -2, 3, 9, 9, 9])), 0, 0)
    interval = analyse(net.done(made))[made]
    assert (interval.minimum, interval.maximum) == (-2.0, 5.0)
