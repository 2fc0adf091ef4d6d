"""The table of nodes tells formats, zeros and accumulators as they are; text, page and bundle are reproducible and whole."""

from __future__ import annotations

import html.parser
import operator

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import InputError, OutputError
from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.info import NodeInfo, set_info
from pquant_fx.quantize.static import FixedQuantizer
from pquant_fx.report.bundle import bundle
from pquant_fx.report.page import Report, Section
from pquant_fx.report.tables import graph_table
from tests.models import MLP, MultiIO


def small() -> GraphModule:
    """x (N, 2) -> ufixed<4,2> -> Linear with codes [[3, 0], [-4, 0], [0, 1]] / 4 and bias [0, 1, 0] / 4 -> relu -> + itself."""
    root = nn.Module()
    root.register_buffer("w", torch.tensor([[3.0, 0.0], [-4.0, 0.0], [0.0, 1.0]]) / 4)
    root.register_buffer("b", torch.tensor([0.0, 1.0, 0.0]) / 4)
    root.qx = FixedQuantizer(0, 2, 2)
    root.qw = FixedQuantizer(1, torch.tensor([[0.0], [0.0], [-1.0]]), torch.tensor([[2.0], [2.0], [3.0]]))
    root.qb = FixedQuantizer(1, 1, 2)
    graph = Graph()
    x = graph.placeholder("x")
    xq = graph.call_module("qx", (x,))
    w = graph.call_module("qw", (graph.get_attr("w"),))
    b = graph.call_module("qb", (graph.get_attr("b"),))
    y = graph.call_function(F.linear, (xq, w, b))
    r = graph.call_function(F.relu, (y,))
    total = graph.call_function(operator.add, (r, r))
    graph.output(total)
    for node, path, shape, site in (
        (x, "", (2, 2), 1),
        (xq, "", (2, 2), 1),
        (w, "fc", (3, 2), 1),
        (b, "fc", (3,), 1),
        (y, "fc", (2, 3), 1),
    ):
        set_info(node, NodeInfo(path, site, "net.py:3", shape))
    set_info(r, NodeInfo("act", 2, "net.py:4", (2, 3)))
    set_info(total, NodeInfo("", 1, "net.py:5", (2, 3)))
    return GraphModule(root, graph)


@pytest.fixture(scope="module")
def table():
    gm = small()
    return graph_table(gm, analyse(gm), "tiny <net>")


def test_each_value_has_one_row_with_its_exact_format(table):
    rows = [(r.module, r.op, r.shape, r.format, r.accumulator) for r in table.rows]
    # bounds by hand: x in [0, 15/4]; outputs 3/4 x0 in [0, 45/16], -x0 + 1/4 in [-14/4, 1/4], x1 / 4 in [0, 15/16]
    assert rows[0] == ("", "input", (2,), "", "")
    assert rows[1] == ("", "quantize", (2,), "ufixed<4,2>", "")
    assert rows[2] == ("fc", "weight", (3, 2), "fixed<3,0..1>", "")
    assert rows[3] == ("fc", "bias", (3,), "fixed<4,2>", "")
    assert rows[4][:4] == ("fc", "linear", (3,), "fixed<7,3>")
    assert rows[5] == ("act@2", "relu", (3,), "ufixed<6,2>", "")
    assert rows[6][:4] == ("", "add", (3,), "ufixed<7,3>")  # 2 x 45/16: the code 90 needs 7 bits
    assert len(rows) == 7


def test_the_accumulator_holds_every_partial_sum(table):
    # row 1 of the product: weight -1 times x up to 15/4 gives down to -60/16, before the bias 4/16 comes in
    assert table.rows[4].accumulator == "fixed<7,3>"


def test_sparsity_counts_zero_codes_of_weights_only(table):
    weight, bias = table.rows[2], table.rows[3]
    assert (weight.weights, weight.zeros, weight.sparsity) == (6, 3, 0.5)
    assert bias.sparsity == pytest.approx(2 / 3)
    assert table.rows[4].sparsity is None
    assert (table.weights, table.sparsity) == (6, 0.5)
    assert table.summary == "6 weights, 50.0% of them zero"


def test_text_and_html_are_the_same_each_time_and_escape_what_they_show(table):
    gm = small()
    again = graph_table(gm, analyse(gm), "tiny <net>")
    assert again.to_text() == table.to_text()
    assert again.to_html() == table.to_html()
    lines = table.to_text().splitlines()
    assert sum("fixed<" in line for line in lines) == 6
    assert not any(line.endswith(" ") for line in lines)
    page = table.to_html()
    assert "tiny &lt;net&gt;" in page
    assert "<td>ufixed&lt;4,2&gt;</td>" in page


def test_the_page_is_well_formed(table):
    class Balance(html.parser.HTMLParser):
        open: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    report = Report("a & b", [Section("Nodes", table), Section("Log", "1 < 2\n")])
    parser = Balance()
    parser.feed(report.to_html())
    assert parser.open == []
    assert "1 &lt; 2" in report.to_html()
    assert report.to_text().startswith("a & b\n=====\n")


@pytest.fixture(scope="module")
def frozen():
    torch.manual_seed(0)
    return pq.compile(MLP(), "fixed8", torch.randn(64, 16)).freeze()


def test_a_bundle_is_whole_and_its_golden_vectors_are_the_networks_bits(frozen, tmp_path):
    x = torch.randn(8, 16)
    made = bundle(frozen, tmp_path / "out", x, hls4ml=False)
    assert {p.name for p in made.iterdir() if not p.name.startswith(".")} == {
        "qonnx.onnx",
        "plain.onnx",
        "golden.npz",
        "report.txt",
        "report.html",
        "certificate.json",
    }
    golden = np.load(made / "golden.npz")
    assert np.array_equal(golden["input_input"], x.double().numpy())
    assert golden["output_0"].dtype == np.int64
    assert np.array_equal(golden["output_0"] * 2.0 ** -float(golden["output_0_f"]), frozen(x).double().numpy())
    again = bundle(frozen, tmp_path / "again", x, hls4ml=False)
    assert (again / "golden.npz").read_bytes() == (made / "golden.npz").read_bytes()
    assert (again / "report.html").read_bytes() == (made / "report.html").read_bytes()


def test_a_bundle_holds_every_output_of_a_nested_result(tmp_path):
    torch.manual_seed(0)
    x = {"tracks": torch.randn(32, 6), "towers": torch.randn(32, 4)}
    frozen = pq.compile(MultiIO(), "fixed8", x).freeze()
    golden = np.load(bundle(frozen, tmp_path / "out", x, hls4ml=False) / "golden.npz")
    expected = frozen(**x)
    values = [golden[f"output_{n}"] * 2.0 ** -float(golden[f"output_{n}_f"]) for n in range(2)]
    for value, key in zip(values, torch.utils._pytree.tree_leaves({k: k for k in expected})):
        assert np.array_equal(value, expected[key].double().numpy())


def test_a_network_that_standard_quant_nodes_can_not_hold_gets_its_bundle_too(tmp_path):
    config = {"preset": "fixed8", "quantization_parameters": {"overflow_mode_data": "WRAP"}}
    x = torch.randn(32, 16)
    wraps = pq.compile(MLP(), config, x).freeze()
    with pytest.raises(pq.LoweringError):
        wraps.to_qonnx(strict=True)
    made = bundle(wraps, tmp_path / "out", 10 * x, hls4ml=False)
    assert (made / "qonnx.onnx").exists()
    assert wraps.verify(10 * x, targets=("integer", "onnx", "qonnx")).ok


def test_a_bundle_never_replaces_what_is_not_ours_and_leaves_nothing_half_written(frozen, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError) as caught:
        bundle(frozen, theirs, torch.randn(2, 16), overwrite=True, hls4ml=False)
    assert caught.value.code == "PQ506"
    assert [p.name for p in theirs.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError) as wrong:
        bundle(frozen, tmp_path / "out", {"y": torch.randn(2, 16)}, hls4ml=False)
    assert wrong.value.code == "PQ409"
    with pytest.raises(InputError):
        bundle(frozen, tmp_path / "out", torch.randn(2, 15), hls4ml=False)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]
