"""Estimates before any tool has run: against alkaid's own count, against our syntheses, each under the coefficients of the others."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pquant_fx.errors import ConfigError
from pquant_fx.estimate.fabric import _digits, demand, stored_bits, terms_of
from pquant_fx.estimate.synthesis_fit import cycles_of, fitted, leave_one_out, runs
from tests.rtl_networks import Everything, frozen, mlp, small_bits


@given(st.integers(-5000, 5000))
def test_signed_digits_are_counted_as_by_hand(n):
    """The canonical form has no two digits side by side: take the odd part down by one or up by one, whichever leaves 4 dividing it."""
    count, rest = 0, abs(n)
    while rest:
        if rest % 2:
            count += 1
            rest -= 2 - rest % 4
        rest //= 2
    scale = max(n & -n, 1)  # the codes are those of the coarsest grid
    assert _digits(np.array([float(n)]))[0] == count, scale


def test_terms_of_a_convolution_are_counted_by_brute_force():
    torch.manual_seed(0)
    model = frozen(nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(30, 2, 4, 4))
    node = next(n for n in model.graph_module.graph.nodes if n.name == "conv2d" or "conv2d" in str(n.target))
    found = terms_of(node, model.formats)
    digits = _digits(model.formats.constants[node.args[1]].double().numpy())
    bits = stored_bits(model.formats[node.args[0]])
    for o, y, x in np.ndindex(*found.count.shape[1:]):
        count = total = 0.0
        for c, a, b in np.ndindex(2, 3, 3):
            h, w = 2 * y + a - 1, 2 * x + b - 1
            if 0 <= h < 4 and 0 <= w < 4:
                count += digits[o, c, a, b]
                total += digits[o, c, a, b] * bits[c, h, w]
        assert found.count[0, o, y, x] == count
        assert float(found.bits[0, o, y, x]) == pytest.approx(total / max(count, 1))


def test_the_runs_that_it_is_fitted_on_are_ours_and_labelled():
    known, source = runs()
    assert len(known) >= 8
    assert len({run.name for run in known}) == len(known)
    assert max(run.lut for run in known) > 5 * min(run.lut for run in known)
    for word in ("yosys", "alkaid", "xcup", "ternary", "cutoff"):
        assert word in source


def test_left_out_designs_are_estimated_within_15_percent_in_the_median():
    assert fitted("lut").median < 0.15
    assert fitted("lut_of_cost").median < 0.08
    assert fitted("ff").median < 0.15
    assert fitted("delay").median < 0.10


def test_a_left_out_run_has_no_part_in_its_estimate():
    known = list(runs()[0])
    other = [run if n else type(run)(**{**vars(run), "lut": 10 * run.lut}) for n, run in enumerate(known)]
    before, after = leave_one_out("lut", known), leave_one_out("lut", other)
    estimates = [(e + 1) * run.lut for e, run in zip(before.errors, known)], [(e + 1) * run.lut for e, run in zip(after.errors, other)]
    assert estimates[1][0] == pytest.approx(estimates[0][0])
    assert estimates[1][1] > estimates[0][1]


def test_the_closed_form_is_close_to_alkaid_s_count():
    pytest.importorskip("alkaid")
    from pquant_fx.lower.rtl.circuit import build_circuit

    torch.manual_seed(1)
    for sizes in ((8, 6, 3), (16, 24, 10), (12, 12, 12, 4)):
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
        model = frozen(nn.Sequential(*layers), torch.randn(50, sizes[0]))
        cost = build_circuit(model.graph_module, model.formats).program.cost
        assert demand(model.graph_module, model.formats).adders == pytest.approx(cost, rel=0.25)


def test_an_estimate_says_where_every_figure_is_from():
    model, _ = mlp()
    found = model.estimate()
    assert [row.resource for row in found.rows] == ["EBOPs", "LUT", "FF", "DSP", "BRAM", "cycles"]
    assert all(row.low <= row.value <= row.high and row.source for row in found.rows)
    assert found["EBOPs"].value == model.ebops().total
    assert "fitted on" in found["LUT"].source
    assert found["LUT"].low < found.lut < found["LUT"].high
    assert json.loads(found.to_json())["labels"]["latency_cutoff_ns"] == 5
    assert "yosys" in str(found)
    assert "<td>LUT</td>" in found.to_html()


def test_alkaid_s_circuit_counts_registers_and_cycles(tmp_path):
    pytest.importorskip("alkaid")
    model, _ = mlp()
    for cutoff in (None, 2.0, 0.0):
        found, project = model.estimate(5, cutoff, circuit=True), model.to_rtl(tmp_path / "rtl", latency_cutoff=cutoff, overwrite=True)
        assert found.ff == project.register_bits
        assert found.cycles == project.cycles
        assert found["FF"].low == found["FF"].high
        assert "alkaid" in found["LUT"].source


def test_shorter_stages_cost_more_registers_and_cycles():
    model, _ = mlp()
    slow, fast, none = model.estimate(10), model.estimate(2), model.estimate(5, latency_cutoff=0)
    assert fast.cycles > slow.cycles > none.cycles == 0
    assert fast.ff > slow.ff > none.ff == 0
    assert fast.lut == slow.lut == none.lut
    assert cycles_of(23.0, 5.0) == 6
    with pytest.raises(ConfigError):
        model.estimate(-1)


def test_products_of_values_may_take_dsps_and_tables_take_luts():
    torch.manual_seed(0)
    model = frozen(Everything(), torch.randn(30, 1, 4, 4), small_bits(6))
    asked = demand(model.graph_module, model.formats)
    assert asked.dsps == 2
    assert asked.tables > 0
    assert asked.compares > 0
    assert asked.inputs == stored_bits(model.formats[next(n for n in model.graph_module.graph.nodes if n.op == "call_module")]).sum()
