"""The frozen model: one set of bits in every engine, reports that tell, nothing that training could change."""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.lower import engines, integer_ops
from pquant_fx.lower.onnx.run import run_qonnx
from tests.models import MLP, Concat, ConvBN, MultiIO, ResidualDigits

SIXTEEN = {"quantization_parameters": {"default_data_bits": 16, "default_weight_bits": 16}}


def frozen(net, x, config="fixed8"):
    return pq.compile(net.eval(), config, x).freeze()


@pytest.mark.parametrize(("net", "shape"), [(MLP(), (16,)), (ConvBN(), (1, 8, 8)), (ResidualDigits(), (1, 8, 8)), (Concat(), (8,))])
@pytest.mark.parametrize("config", ["fixed8", SIXTEEN])
def test_engines_agree_on_real_saturating_tied_and_off_grid_samples(net, shape, config):
    torch.manual_seed(0)
    x = torch.randn(64, *shape)
    model = pq.compile(net.eval(), config, x)
    done = model.freeze()
    samples = torch.cat((x, 100 * x, (x * 64).round() / 64 + 2**-8, torch.zeros_like(x[:1])))
    report = done.verify(samples, targets=("integer", "onnx", "qonnx"))
    assert report.ok, report
    assert report.samples == len(samples)
    assert done.dtype == (torch.float64 if config is SIXTEEN else torch.float32)
    if done.dtype == torch.float32:
        assert torch.equal(model.eval()(samples), done(samples))


def test_integer_gives_codes_and_real_values_in_forwards_structure():
    x = (torch.randn(16, 6), torch.randn(16, 4))
    done = frozen(MultiIO(), x)
    out, real, codes = done(*x), done.integer(*x), done.integer(*x, codes=True)
    assert list(out) == list(real) == list(codes) == ["score", "energy"]
    for name in out:
        assert real[name].dtype == torch.float64
        assert codes[name].dtype == torch.int64
        assert torch.equal(out[name].double(), real[name])
        ratio = (real[name] / codes[name])[codes[name] != 0].unique()
        assert len(ratio) == 1
        assert float(torch.log2(ratio)).is_integer()
    assert torch.equal(done.integer(towers=x[1], tracks=x[0])["score"], real["score"])


class Pair(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class NamedOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.a(x))
        return Pair(self.b(h), h)


def test_named_tuples_stay_named_tuples():
    x = torch.randn(8, 8)
    done = frozen(NamedOutputs(), x)
    assert isinstance(done(x), Pair)
    assert isinstance(done.integer(x), Pair)
    assert done.verify(x, targets=("integer", "onnx", "qonnx")).ok


def test_wide_results_stay_wide_and_narrow_ones_come_back_in_the_inputs_type():
    x = torch.randn(64, 16)
    narrow = frozen(MLP(), x)
    assert narrow.dtype == torch.float32
    assert narrow(x).dtype == torch.float32
    assert narrow(x.double()).dtype == torch.float64
    assert torch.equal(narrow(x.double()), narrow(x).double())
    wide = frozen(MLP(), x, SIXTEEN)
    assert wide.dtype == torch.float64
    assert wide(x).dtype == torch.float64
    assert torch.equal(wide(x), wide.integer(x))


def test_a_frozen_model_is_for_evaluation_and_does_not_follow_the_compiled_one():
    x = torch.randn(16, 1, 8, 8)
    model = pq.compile(ConvBN(), "fixed8", x)
    done = model.freeze()
    before = done(x)
    assert not done.train().training
    assert not done(x).requires_grad
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    model.train()(x)
    assert torch.equal(done(x), before)
    assert torch.equal(copy.deepcopy(done)(x), before)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.freeze().to_onnx()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_zeros_of_the_mask_survive_to_the_exported_integers():
    from onnx import numpy_helper

    x = torch.randn(64, 16)
    config = {"preset": "fixed8", "pruning_parameters": {"sparsity": 0.5}, "training_parameters": {"epochs": 2}}
    model = pq.compile(MLP(), config, x)
    model.fit((x, torch.randint(5, (64,))))
    done = model.freeze(remove_dead_channels=False)  # every layer keeps its shape, and its zeros
    weights = [numpy_helper.to_array(t) for t in done.to_qonnx().graph.initializer if t.name.endswith(".weight.T")]
    assert len(weights) == 4
    for w in weights:
        assert np.count_nonzero(w == 0) >= w.size // 2


def test_a_difference_is_reported_with_its_node_and_line(monkeypatch):
    x = torch.randn(32, 16)
    done = frozen(MLP(), x)
    assert done.verify(x, targets=("integer",)).ok
    right = integer_ops.OPERATORS[F.relu]

    def wrong(a):
        made = right(a)
        made.codes[3] += 1
        return made

    monkeypatch.setitem(integer_ops.OPERATORS, F.relu, wrong)
    report = done.verify(x, targets=("integer", "onnx"))
    first = report.first_difference
    assert not report.ok
    assert [row.engine for row in report.rows if row.different] == ["integer"]
    assert report.rows[0].different == 1
    assert (first.engine, first.first_sample, first.samples) == ("integer", 3, 1)
    assert first.max_ulp >= 1
    node = next(n for n in done.graph_module.graph.nodes if n.target is F.relu)
    assert first.node == node.name
    assert "integer" in report.table
    assert f"'{node.name}'" in str(report)


def test_an_engine_that_can_not_run_makes_the_report_not_ok(monkeypatch):
    x = torch.randn(8, 16)
    done = frozen(MLP(), x)

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setitem(engines.ENGINES, "onnx", broken)
    report = done.verify(x, targets=("integer", "onnx"))
    assert not report.ok
    assert report.first_difference is None
    assert report.rows[1].different is None
    assert "no space left" in report.table
    assert "not run" in report.table


def test_qonnx_runs_in_float64_where_float32_is_too_small():
    x = torch.randn(16, 16)
    done = frozen(MLP(), x, SIXTEEN)
    report = done.verify(x, targets=("integer", "qonnx"))
    assert [(row.engine, row.different) for row in report.rows] == [("integer", 0), ("qonnx float64", 0)]
    rounded = run_qonnx(done.to_qonnx(), [x.numpy()])[0]
    assert not np.array_equal(rounded, done(x.double()).numpy())  # which is why


def test_strict_export_uses_standard_domains_only(tmp_path):
    done = frozen(ResidualDigits(), torch.randn(16, 1, 8, 8))
    model = done.to_qonnx(tmp_path / "net.onnx", strict=True)
    assert {o.domain for o in model.opset_import} == {"", "qonnx.custom_op.general"}
    assert {n.domain for n in model.graph.node} <= {"", "qonnx.custom_op.general"}
    assert (tmp_path / "net.onnx").read_bytes() == done.to_qonnx(strict=True).SerializeToString()
    plain = done.to_onnx(tmp_path / "plain.onnx")
    assert {n.domain for n in plain.graph.node} == {""}
