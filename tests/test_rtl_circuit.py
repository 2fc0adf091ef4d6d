"""Frozen graphs as alkaid's circuits: the integer interpreter's bits, or a refusal that names everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.errors import ExtraMissingError, LoweringError
from pquant_fx.lower.integer import IntegerInterpreter
from pquant_fx.lower.rtl import adapter, quantizing
from pquant_fx.lower.rtl.circuit import build_circuit, flattened
from pquant_fx.lower.rtl.layers import build_layers
from pquant_fx.lower.rtl.trust import probes, require_trust
from tests.rtl_networks import Everything, frozen, mlp, small_bits
from tests.structures import load_all
from tests.structures_fixed import FIXED, names

pytest.importorskip("alkaid")


BUILD = {"flat": build_circuit, "layers": build_layers}
LARGE = 15_000  # EBOPs: what takes longer than a second or two is left to the larger structures of other engines


def structures():
    assert names("structures_fixed_maps")
    return {**FIXED, **load_all()}


NO_RTL = {"embedding": "embed has no form in RTL"}
CONSTANT = "every output is a constant"  # what few bits may leave of an untrained network


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("structure", BUILD)
def test_ordinary_structures_have_the_bits_of_the_interpreter(structure, part):
    count, refused = 0, {}
    for name, case in list(structures().items())[part::4]:
        torch.manual_seed(0)
        try:
            model = pq.compile(case.model(), small_bits(), case.inputs(32)).freeze()
        except pq.PQuantError:
            continue
        if model.ebops().total > LARGE:
            continue
        x = [v.double().numpy() for v in case.inputs(16).values()]
        try:
            design = BUILD[structure](model.graph_module, model.formats)
        except pq.LoweringError as error:
            refused[name] = str(error)
            continue
        assert require_trust(design, x) > 1000, name
        count += 1
    assert count >= 8
    assert all(NO_RTL.get(name, CONSTANT) in what for name, what in refused.items()), refused


@pytest.mark.parametrize("structure", BUILD)
def test_many_operators_at_once(structure):
    torch.manual_seed(0)
    x = torch.randn(40, 1, 4, 4)
    model = frozen(Everything(), x)
    design = BUILD[structure](model.graph_module, model.formats)
    assert require_trust(design, [x.double().numpy() * 2]) > 1000
    assert [p.shape for p in design.outputs] == [(2,), (2,)]


def test_positions_of_a_convolution_share_one_module():
    x = torch.randn(20, 1, 5, 5)
    model = frozen(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(18, 2)), x)
    design = build_layers(model.graph_module, model.formats)
    assert [len(layer.instances) for layer in design.layers] == [25, 9, 1]
    assert len(design.modules) == 3
    border = design.layers[0].instances[0]
    assert sum(source is None for source in border.inputs) >= 4  # zeros come from outside of the map


class Moved(nn.Module):
    """Inputs are cut, joined and padded before anything rounds them; one of them is rounded twice."""

    def forward(self, x, y):
        joined = F.pad(torch.cat([x[:, 1:], y], 1), (1, 1))
        return joined + pq.fixed_point(x, 1, 1, 2).sum(1, keepdim=True), y * 3


def test_inputs_may_be_moved_about_before_their_quantizers():
    x, y = torch.randn(30, 4), torch.randn(30, 3)
    model = frozen(Moved(), (x, y))
    design = build_circuit(model.graph_module, model.formats)
    assert require_trust(design, [x.double().numpy(), y.double().numpy()]) > 1000


def test_probes_reach_the_ends_of_every_format_ties_and_far_beyond():
    model, _ = mlp()
    design = build_circuit(model.graph_module, model.formats)
    x = probes(design)[0]
    port = design.inputs[0]
    entered = flattened(design.inputs, IntegerInterpreter(model.graph_module, model.formats).run(x, trace=True)[1])
    k, i, f = (a.ravel() for a in port.kif)
    assert (entered.min(0) == -k * 2.0**i).all()
    assert (entered.max(0) == 2.0**i - 2.0**-f).all()
    assert (np.abs(x).max(0) > 2.0**i * 10).all()
    assert (np.mod(x * 2.0**f, 1) == 0.5).any(0).all()


def test_what_alkaid_computes_wrongly_is_refused_with_the_node(monkeypatch):
    """relu(-2a - b) in a format of negative f, taken from alkaid's own bits as it scales them, is wrong in alkaid 0.8.2."""

    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer, self.result = pq.FixedQuantizer(1, 3, 2), pq.FixedQuantizer(0, 4, -2, rounding="RND_CONV", overflow="WRAP")

        def forward(self, a, b):
            return self.result(torch.relu(-2 * self.quantizer(a) - 3 * self.quantizer(b)))

    a, b = torch.randn(40, 3) * 4, torch.randn(40, 3) * 4
    model = frozen(Known(), (a, b), "fixed8")
    assert require_trust(build_circuit(model.graph_module, model.formats)) > 1000
    monkeypatch.setattr(quantizing, "field", lambda x, k, i, f: x.quantize(k, i, f, "WRAP", "RND"))  # rounds what was rounded
    monkeypatch.setattr(quantizing, "bit", lambda x, power: adapter.constant(0.0))
    with pytest.raises(LoweringError) as caught:
        require_trust(build_circuit(model.graph_module, model.formats))
    assert caught.value.code == "PQ511"
    assert caught.value.place.node is not None
    assert "result" in str(caught.value.place.module)
    assert caught.value.place.line is not None
    assert "instead of" in str(caught.value)


def test_constants_that_alkaid_can_not_hold_are_refused_together():
    """alkaid's weights are float32: 2^0 and 2^-28 in one matrix span more bits."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            return self.one(x), self.two(x)

    net = Wide()
    with torch.no_grad():
        for layer in (net.one, net.two):
            layer.weight[0, 0], layer.weight[0, 1] = 1.0, 2.0**-28
    static = {"default_data_integer_bits": 2, "default_data_fractional_bits": 2}
    wide = {"default_weight_integer_bits": 1, "default_weight_fractional_bits": 28}
    model = frozen(net.double(), torch.randn(30, 3).double(), {"quantization_parameters": static | wide})
    for build in BUILD.values():
        with pytest.raises(LoweringError) as caught:
            build(model.graph_module, model.formats)
        assert [(p.code, p.place.module) for p in caught.value.problems] == [("PQ303", "one"), ("PQ303", "two")]
        assert all(p.remedy and p.place.line for p in caught.value.problems)


def test_a_network_of_constants_is_refused():
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight)
    model = pq.compile(net, small_bits(), torch.randn(20, 3)).freeze(remove_dead_channels=False)
    with pytest.raises(LoweringError) as caught:
        build_circuit(model.graph_module, model.formats)
    assert caught.value.code == "PQ202"


def test_without_alkaid_one_line_names_the_extra(monkeypatch):
    model, _ = mlp()
    monkeypatch.setattr(adapter, "alkaid_version", lambda: "0.7.1")
    with pytest.raises(ExtraMissingError, match=r"0\.7\.1") as caught:
        model.to_rtl("build/never")
    assert caught.value.code == "PQ503"
    monkeypatch.setitem(__import__("sys").modules, "alkaid", None)
    with pytest.raises(ExtraMissingError, match=r"pquant_fx\[rtl\]"):
        model.to_rtl("build/never")
