"""Passes and pipelines: order, journal, exactness, observers, and what a stranger can rely on when writing one."""

import operator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from pquant_fx.errors import ConfigError, PassError
from pquant_fx.graph.observers import Diff, Dump, Timing
from pquant_fx.graph.passes import PASSES, Pipeline, rewrite
from pquant_fx.graph.rewriter import Rewriter
from pquant_fx.graph.text import fingerprint, text


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x):
        return F.relu(F.relu(self.bn(F.linear(x, self.weight, None))))


X = (torch.randn(5, 4),)


def targets(gm):
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


@rewrite(F.relu, exact=True)
def drop_double_relu(node, rw):
    """relu(relu(x)) -> relu(x)"""
    inner = node.args[0]
    return inner if inner.target is F.relu else None


@rewrite(F.relu)
def relu_to_leaky(node, rw):
    return rw.call(F.leaky_relu, node.args[0], 0.125)


def test_a_rule_rewrites_and_a_second_run_changes_nothing():
    gm = symbolic_trace(Net())
    before = gm(X[0])
    pipeline = Pipeline([drop_double_relu])
    assert pipeline(gm, X)
    assert targets(gm) == [F.linear, F.relu]
    assert torch.equal(gm.eval()(X[0]), gm(X[0]))
    assert before.shape == gm(X[0]).shape
    once = text(gm)
    assert not pipeline(gm, X)
    assert text(gm) == once


def test_new_nodes_inherit_the_provenance_of_what_they_replace():
    from pquant_fx.graph.info import NodeInfo, info, set_info

    gm = symbolic_trace(Net())
    old = next(n for n in gm.graph.nodes if n.target is F.relu)
    set_info(old, NodeInfo("head.act", 2, "net.py:7", (5, 3)))
    Pipeline([relu_to_leaky])(gm)
    new = next(n for n in gm.graph.nodes if n.target is F.leaky_relu)
    assert info(new) == NodeInfo("head.act", 2, "net.py:7", (5, 3))


def test_a_pass_that_claims_to_be_exact_and_is_not_is_named():
    @rewrite(F.relu, exact=True)
    def relu_to_tanh(node, rw):
        return rw.call(torch.tanh, node.args[0])

    with pytest.raises(PassError) as caught:
        Pipeline([relu_to_tanh])(symbolic_trace(Net()), X)
    assert caught.value.code == "PQ604"
    assert "'relu_to_tanh'" in str(caught.value)


def test_exactness_is_checked_in_train_as_well():
    @rewrite(nn.BatchNorm1d, exact=True)
    def use_running_statistics_only(node, rw):
        mean, var = rw.get_attr("bn.running_mean"), rw.get_attr("bn.running_var")
        scale = rw.call(torch.rsqrt, rw.call(operator.add, var, 1e-5))
        return rw.call(operator.mul, rw.call(operator.sub, node.args[0], mean), scale)

    with pytest.raises(PassError, match="in train mode"):
        Pipeline([use_running_statistics_only])(symbolic_trace(Net()), X)


@pytest.mark.parametrize("eps", [1e-5, 1e-4])
def test_a_pass_may_promise_evaluation_only(eps):
    @rewrite(nn.BatchNorm1d, exact="eval")
    def use_running_statistics(node, rw):
        mean, var = rw.get_attr("bn.running_mean"), rw.get_attr("bn.running_var")
        return rw.call(operator.mul, rw.call(operator.sub, node.args[0], mean), rw.call(torch.rsqrt, rw.call(operator.add, var, eps)))

    pipeline = Pipeline([use_running_statistics])
    if eps == 1e-5:
        assert pipeline(symbolic_trace(Net()), X)
    else:
        with pytest.raises(PassError, match="in eval mode"):
            pipeline(symbolic_trace(Net()), X)


def test_checks_do_not_touch_the_model():
    gm = symbolic_trace(Net())
    gm.bn.eval()
    state = {k: v.clone() for k, v in gm.state_dict().items()}
    Pipeline([drop_double_relu])(gm, X)
    assert all(torch.equal(v, state[k]) for k, v in gm.state_dict().items())
    assert gm.training
    assert not gm.bn.training


def test_an_edit_outside_the_rewriter_is_found():
    def sneaky(gm):
        for node in gm.graph.nodes:
            if node.target is F.relu:
                node.target = torch.sigmoid
        return True

    with pytest.raises(PassError) as caught:
        Pipeline([sneaky])(symbolic_trace(Net()))
    assert caught.value.code == "PQ603"
    assert "'sneaky'" in str(caught.value)
    assert caught.value.place.node == "relu"
    assert len(caught.value.problems) == 2


def test_a_rule_that_returns_no_node_is_named():
    @rewrite(F.relu)
    def careless(node, rw):
        return 3

    with pytest.raises(PassError, match="'careless' returned int") as caught:
        Pipeline([careless])(symbolic_trace(Net()))
    assert caught.value.code == "PQ601"
    assert "rw.call" in caught.value.remedy


def test_an_edit_by_another_pass_is_not_blamed_on_this_one():
    gm = symbolic_trace(Net())
    assert Pipeline([relu_to_leaky, drop_double_relu])(gm, X)
    assert targets(gm) == [F.linear, F.leaky_relu, F.leaky_relu]


def test_a_pass_that_breaks_the_dialect_is_stopped():
    def calls_a_method(gm):
        rw = Rewriter(gm)
        relu = next(n for n in gm.graph.nodes if n.target is F.relu)
        with gm.graph.inserting_before(relu):
            made = gm.graph.call_method("tanh", (relu.args[0],))
        rw._touch(made)
        rw.replace(relu, made)

    with pytest.raises(PassError) as caught:
        Pipeline([calls_a_method])(symbolic_trace(Net()))
    assert caught.value.code == "PQ601"
    assert "tanh" in str(caught.value)


def test_wrong_order_is_refused_when_the_pipeline_is_built():
    @dataclass(frozen=True)
    class NeedsCanonical:
        requires: ClassVar[tuple[str, ...]] = ("drop_double_relu",)

        def __call__(self, gm):
            return False

    with pytest.raises(PassError) as caught:
        Pipeline([NeedsCanonical(), drop_double_relu])
    assert caught.value.code == "PQ602"
    assert "insert it after 'drop_double_relu'" in caught.value.remedy
    assert Pipeline([drop_double_relu, NeedsCanonical()]).names == ("drop_double_relu", "needs_canonical")
    with pytest.raises(PassError, match="declares exact='train'"):
        Pipeline([rewrite(F.relu, exact="train")(lambda node, rw: None)])
    with pytest.raises(PassError, match="stands twice"):
        Pipeline([drop_double_relu, drop_double_relu])


def test_pipelines_are_edited_into_new_ones():
    pipeline = Pipeline([drop_double_relu])
    longer = pipeline.insert(relu_to_leaky, before="drop_double_relu")
    assert longer.names == ("relu_to_leaky", "drop_double_relu")
    assert pipeline.names == ("drop_double_relu",)
    assert longer.remove("relu_to_leaky").names == pipeline.names
    assert longer.swap("drop_double_relu", Pipeline(name="empty")).names == ("relu_to_leaky", "empty")
    with pytest.raises(PassError, match="has no pass 'nowhere'"):
        pipeline.insert(relu_to_leaky, after="nowhere")
    with pytest.raises(PassError, match="both"):
        pipeline.insert(relu_to_leaky, after="a", before="b")


def test_a_pipeline_is_a_pass_and_observers_see_inside(tmp_path):
    timing, changes = Timing(), Diff()
    gm = symbolic_trace(Net())
    inner = Pipeline([drop_double_relu], name="inner")
    Pipeline([inner, relu_to_leaky]).observe(timing, changes, Dump(tmp_path))(gm, X)
    assert [(name, changed) for name, changed, _ in timing.rows if name != "input"] == [("drop_double_relu", True), ("relu_to_leaky", True)]
    assert timing.total > 0
    assert "drop_double_relu" in str(timing)
    assert set(changes.changes) == {"drop_double_relu", "relu_to_leaky"}
    removed, added = (line for line in changes.changes["relu_to_leaky"].splitlines() if line[:1] in "-+" and line[:3] not in ("---", "+++"))
    assert removed.startswith("-relu ")
    assert "relu(bn" in removed
    assert "leaky_relu(bn, 0.125)" in added
    assert any(p.name.endswith("relu_to_leaky.txt") for p in tmp_path.iterdir())


def test_a_pass_of_an_installed_package_is_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "their_passes.py").write_text(
        "from pquant_fx.graph.passes import rewrite\nfrom torch.nn import functional as F\n\n"
        "@rewrite(F.relu)\n"
        "def relu_to_leaky_relu(node, rw):\n"
        "    return rw.call(F.leaky_relu, node.args[0], 0.25)\n"
    )
    info = tmp_path / "their_passes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-passes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pquant_fx.passes]\nrelu_to_leaky_relu = their_passes:relu_to_leaky_relu\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(PASSES, "_plugins_loaded", False)
    monkeypatch.setattr(PASSES, "_items", {})
    gm = symbolic_trace(Net())
    Pipeline().insert("relu_to_leaky_relu")(gm)
    assert targets(gm) == [F.linear, F.leaky_relu, F.leaky_relu]
    with pytest.raises(ConfigError, match="did you mean 'relu_to_leaky_relu'"):
        Pipeline().insert("relu_to_leaky_rely")


def test_fingerprints_are_equal_for_equal_graphs_only():
    one, two = symbolic_trace(Net()), symbolic_trace(Net())
    assert fingerprint(one) == fingerprint(two)
    Pipeline([relu_to_leaky])(two)
    assert fingerprint(one) != fingerprint(two)


def test_our_modules_live_under_the_reserved_child_at_free_names():
    gm = symbolic_trace(Net())
    rw = Rewriter(gm)
    assert rw.own("bn.scale", nn.Identity()) == "pq.bn.scale"
    assert rw.own("bn.scale", nn.Identity()) == "pq.bn.scale_2"
    with rw.before(next(iter(gm.graph.nodes)).next):
        node = rw.constant("head.0.table", torch.ones(2))
    assert node.target == "pq.head._0.table.value"
    assert torch.equal(rw.attribute(node), torch.ones(2))
