"""Random networks with dead channels: removal changes no bit, leaves a legal graph, and leaves nothing for a second run."""

from __future__ import annotations

import copy

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule
from torch.nn import functional as F

from pquant_fx.graph.analysis import analyse
from pquant_fx.graph.constants import constant_values
from pquant_fx.graph.copies import copy_graph_module
from pquant_fx.graph.coupling import COUPLINGS
from pquant_fx.graph.dialect import OPS
from pquant_fx.graph.info import info
from pquant_fx.graph.removed_channels import removed_channels
from pquant_fx.graph.verify import verify
from pquant_fx.lower.integer import IntegerInterpreter, real
from pquant_fx.passes.remove_dead_channels import remove_dead_channels
from tests.dead_graphs import dead_networks, samples


def test_every_operator_has_a_row() -> None:
    assert COUPLINGS.keys() == OPS.keys()


def assert_weights_are_what_is_told(gm: GraphModule, small: GraphModule) -> None:
    """Every layer that stays is the old one without the rows and columns that the record names."""
    gone = {r.layer: r for r in removed_channels(small).layers}
    nodes = {n.name: n for n in gm.graph.nodes}
    for node in small.graph.nodes:
        if node.target in (F.linear, F.conv2d):
            before, after = (constant_values(m)[n.args[1]].numpy() for m, n in ((gm, nodes[node.name]), (small, node)))
            if node.name in gone:
                before = np.delete(before, gone[node.name].removed_outputs, axis=0)
                grouped = node.target is F.conv2d and nodes[node.name].args[6] > 1
                before = before if grouped else np.delete(before, gone[node.name].removed_inputs, axis=1)
            assert np.array_equal(before, after), node.name


@given(dead_networks(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_removal_changes_no_bit(gm: GraphModule, seed: int) -> None:
    x = samples(seed, 3, 4, 4).double()
    small = copy_graph_module(gm)
    changed = remove_dead_channels(small)
    verify(small)
    small.graph.lint()
    small.recompile()
    formats = analyse(small)
    formats.require()
    for a, b in zip(IntegerInterpreter(gm).run(x.numpy()), IntegerInterpreter(small).run(x.numpy()), strict=True):
        assert np.array_equal(real(*a), real(*b))
    with torch.no_grad():
        for got, expected in zip(copy.deepcopy(small).double()(x), copy.deepcopy(gm).double()(x), strict=True):
            assert torch.equal(got, expected)
    for node, interval in formats.intervals.items():
        if interval is not None and node not in formats.constants:
            assert interval.shape == tuple(info(node).shape or ())[1:], node.name
    told = removed_channels(small)
    assert changed or not told.layers
    assert_weights_are_what_is_told(gm, small)
    assert all(len(r.removed_outputs) < r.outputs and len(r.removed_inputs) < r.inputs for r in told.layers)
    assert not remove_dead_channels(small)
    assert removed_channels(small) == told
