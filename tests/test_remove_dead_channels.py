"""Dead channels leave the graph for real: the counts of the masks, the bits of the masked network, in every target."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant_fx as pq
from pquant_fx.graph.text import text
from pquant_fx.passes.remove_dead_channels import remove_dead_channels
from tests.dead_models import CONFIGS, Constant, Grouped, Heads, Stream, counts, pair, told, zero
from tests.models import MLP, Concat, Depthwise, MultiIO, ResidualDigits, SharedLinear


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_and_macs_are_those_of_the_masks(config):
    torch.manual_seed(0)
    net = ResidualDigits(channels=5)
    dead = {"block1": [0, 3], "block2": [1, 2, 7, 9], "block3": [4, 5, 6, 7, 8, 19, 11, 0]}
    for name, units in dead.items():
        block = net.get_submodule(name)
        zero(block.conv1.weight, block.bn1.weight, block.bn1.bias, units=units)
    before, after = (counts(f) for f in pair(net, (1, 8, 8), config=CONFIGS[config])[:2])
    side = {"block1": 8, "block2": 4, "block3": 2}
    expected = dict(before)
    for name, units in dead.items():
        block, gone, area = net.get_submodule(name), len(units), side[name] ** 2
        rows, columns = gone * block.conv1.weight[0].numel(), gone * block.conv2.weight[:, 0].numel()
        for layer, weights, biases in ((f"{name}.conv1", rows, gone), (f"{name}.conv2", columns, 0)):
            parameters, macs = before[layer]
            expected[layer] = (parameters - weights - biases, macs - weights * area)
    assert after == expected


def test_what_is_gone_is_told_layer_by_layer_and_by_text():
    torch.manual_seed(0)
    net = MLP(8, 3)
    zero(net[0].weight, net[0].bias, units=range(10))
    zero(net[2].weight, net[2].bias, units=[31])
    _, small, _ = pair(net, (8,))
    rows = [(r.layer, r.outputs, r.removed_outputs, r.inputs, r.removed_inputs) for r in small.removed.layers]
    assert rows == [("0", 64, tuple(range(10)), 8, ()), ("2", 32, (31,), 64, tuple(range(10))), ("4", 32, (), 32, (31,))]
    assert small.removed.held == ()
    assert "64 -> 54" in str(small.removed)
    untouched, _, _ = pair(MLP(8, 3), (8,))
    assert str(untouched.removed) == "no dead channels"


def test_weights_that_nobody_reads_take_their_producers_along():
    torch.manual_seed(0)
    net = MLP(8, 3)
    with torch.no_grad():
        net[6].weight[:, 5:] = 0  # so all but 5 outputs of layer 4 are dead, and with them nothing of layer 2
        net[4].weight[:5, 20:] = 0  # what layer 4 still has reads 20 outputs of layer 2
    _, small, _ = pair(net, (8,))
    assert counts(small)["4"] == (5 * 20 + 5, 5 * 20)
    assert counts(small)["2"] == (20 * 64 + 20, 20 * 64)


def test_a_channel_of_the_stream_goes_where_all_branches_agree():
    torch.manual_seed(0)
    net = Stream()
    for conv, bn in ((net.stem, net.bn), (net.same.conv2, net.same.bn2)):
        zero(conv.weight, bn.weight, bn.bias, units=[1, 4])
    for conv, bn in ((net.wide.conv2, net.wide.bn2), (net.wide.shortcut[0], net.wide.shortcut[1])):
        zero(conv.weight, bn.weight, bn.bias, units=[2])
    zero(net.down.conv2.weight, net.down.bn2.weight, net.down.bn2.bias, units=[0, 6, 15])  # 6 is what 2 becomes behind the pads
    _, small, _ = pair(net, (2, 8, 8))
    after = told(small)
    first = {"stem": (2, 0), "same.conv1": (0, 2), "same.conv2": (2, 0), "wide.conv1": (0, 2), "wide.conv2": (1, 0)}
    assert after == first | {"wide.shortcut.0": (1, 2), "down.conv1": (0, 1), "down.conv2": (3, 0), "head": (0, 3)}
    pad = next(n for n in small.graph_module.graph.nodes if n.target is F.pad)
    assert pad.args[1] == (0, 0, 0, 0, 3, 3)


def test_a_channel_that_one_branch_needs_stays_and_the_chain_is_told():
    torch.manual_seed(0)
    net = Stream()
    zero(net.same.conv2.weight, net.same.bn2.weight, net.same.bn2.bias, units=[1, 4])
    _, small, _ = pair(net, (2, 8, 8))
    assert not small.removed
    (held,) = small.removed.held
    assert (held.layer, held.units) == ("same.conv2", (1, 4))
    assert held.chain[0] == "same.conv2"
    assert "add" in held.chain
    assert "same.conv2 [1, 4]: same.conv2 -> " in str(small.removed)
    assert "met live values" in held.why


def test_concatenation_slices_and_two_inputs_are_followed_by_offset():
    torch.manual_seed(0)
    net = Concat()
    zero(net.left.weight, net.left.bias, units=[0, 5])
    zero(net.right.weight, net.right.bias, units=[3])
    _, small, _ = pair(net, (8,))
    assert counts(small) == {"left": (36, 32), "right": (27, 24), "head": (24, 21)}
    both = MultiIO()
    zero(both.track.weight, both.track.bias, units=[1, 2, 3])
    zero(both.tower.weight, both.tower.bias, units=[2, 3, 4])
    _, small, _ = pair(both, (6,), (4,))
    assert told(small) == {"track": (2, 0), "tower": (2, 0), "score": (0, 2), "energy": (0, 2)}


@pytest.mark.parametrize("config", ["fixed8", "per weight"])
def test_depthwise_grouped_transposed_and_flattened_layers(config):
    torch.manual_seed(0)
    net = Grouped()
    zero(net.depth.weight, net.depth.bias, units=[2, 3, 4])  # 2 and 3 are group 1, 4 shares group 2 with a live one
    zero(net.group.weight, net.group.bias, units=[3, 4, 5, 6])
    with torch.no_grad():
        net.up.weight[:, 1], net.up.bias[1] = 0, 0
    _, small, _ = pair(net, (3, 8, 8), config=CONFIGS[config])
    rows = told(small)
    assert rows == {"stem": (2, 0), "depth": (2, 2), "group": (3, 2), "up": (1, 3), "head": (0, 36)}
    groups = [n.args[6] for n in small.graph_module.graph.nodes if n.target is F.conv2d]
    assert groups == [1, 6, 3]


def test_constants_move_into_biases_but_not_through_padded_borders():
    torch.manual_seed(0)
    net = Constant(padding=0)
    zero(net.a.weight, net.a.bias, units=[0, 2])
    net.a.bias.data[2] = 1.5
    _, small, _ = pair(net, (2, 10, 10))
    assert counts(small)["b"][0] == 4 * 3 * 9 + 4
    padded = Constant(padding=1)
    padded.load_state_dict(net.state_dict())
    _, small, _ = pair(padded, (2, 8, 8))
    assert not small.removed
    assert [(h.layer, h.units, h.chain[-1]) for h in small.removed.held] == [("a", (0, 2), "b")]
    assert "constant" in small.removed.held[0].why


def test_a_layer_called_twice_shrinks_only_where_all_calls_agree():
    class Twice(SharedLinear):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.act(self.fc(self.act(self.fc(self.act(self.first(x)))))))

        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(4, 8), nn.Linear(8, 3)

    torch.manual_seed(0)
    net = Twice()
    zero(net.fc.weight, net.fc.bias, units=[2, 6])
    _, held, _ = pair(net, (4,))
    assert not held.removed  # the first call reads channels of `first` that live
    zero(net.first.weight, net.first.bias, units=[2])
    _, small, _ = pair(net, (4,))
    rows = told(small)
    assert rows == {"first": (1, 0), "fc": (1, 1), "fc@2": (1, 1), "out": (0, 1)}


def test_an_attention_head_goes_as_a_whole():
    torch.manual_seed(0)
    net = Heads()
    zero(net.v.weight, net.v.bias, units=range(4, 8))
    _, small, _ = pair(net, (5, 6))
    rows = told(small)
    assert rows == {"q": (4, 0), "k": (4, 0), "v": (4, 0), "out": (0, 4)}


def test_the_last_channel_and_the_interface_stay():
    torch.manual_seed(0)
    net = MLP(8, 3)
    for layer in (net[0], net[2], net[4], net[6]):
        zero(layer.weight, layer.bias, units=slice(None))
    _, small, x = pair(net, (8,))
    assert small(*x).shape == (72, 3)
    assert {k: v[0] for k, v in counts(small).items()} == {"0": 9, "2": 2, "4": 2, "6": 6}
    reasons = {h.layer: h.why for h in small.removed.held}
    assert "no channel left" in reasons["0"]
    assert "outputs keep their shape" in reasons["6"]


@pytest.mark.parametrize("granularity", ["per_channel", "per_element"])
def test_channels_of_zero_bits_are_gone_with_their_producers(granularity):
    torch.manual_seed(0)
    x = torch.randn(16, 4, 8, 8)
    model = pq.compile(Depthwise(), {"preset": "hgq", "layers": {"*": {"data_granularity": granularity}}}, x).calibrate(x)
    with torch.no_grad():
        model.get_submodule("pq.relu_1.quantizer").f[:, [1, 4]] = -20.0
    masked, small = model.freeze(remove_dead_channels=False), model.freeze()
    assert torch.equal(small.integer(9 * x), masked.integer(9 * x))
    assert told(small) == {"point": (2, 0), "head": (0, 2)}
    assert small.verify(9 * x, targets=("integer", "onnx", "qonnx")).ok


def test_a_second_run_changes_nothing_and_two_runs_agree():
    torch.manual_seed(0)
    net = ResidualDigits()
    zero(net.block1.conv1.weight, net.block1.bn1.weight, net.block1.bn1.bias, units=[0, 3])
    _, small, _ = pair(net, (1, 8, 8))
    _, again, _ = pair(copy.deepcopy(net), (1, 8, 8))
    assert small.text() == again.text()
    assert small.removed == again.removed
    before = text(small.graph_module), counts(small)
    assert not remove_dead_channels(small.graph_module)
    assert (text(small.graph_module), counts(small)) == before


def test_a_graph_that_is_not_frozen_stays_as_it_is():
    torch.manual_seed(0)
    net = MLP()
    zero(net[0].weight, net[0].bias, units=[1])
    model = pq.compile(net, "fixed8", torch.randn(8, 16))
    before = model.text()
    assert not remove_dead_channels(model.graph_module)
    assert model.text() == before
    with pytest.raises(pq.PassError, match="bake_weights"):
        pq.default_pipeline("fixed8").insert(remove_dead_channels)
