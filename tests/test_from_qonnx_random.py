"""Random networks through a QONNX file and back: every mode, formats per element, joins, tables."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

import pquant_fx as pq
from pquant_fx.graph.analysis import analyse
from pquant_fx.lower.onnx.qonnx import to_qonnx
from tests.frozen_graphs import double_reference
from tests.test_exact_random import networks


@given(networks(), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_a_random_network_comes_back_with_the_same_bits(gm: GraphModule, seed: int) -> None:
    formats = analyse(gm)
    if formats.problems or max(formats.bits(n) or 0 for n in gm.graph.nodes) > 53:
        return
    file = to_qonnx(gm, formats=formats)
    read = pq.from_qonnx(file)
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(12, 2, 3, 3)) * 8, rng.choice([-100.0, 100.0, 0.0, 0.40625], (12, 2, 3, 3))])
    for a, b in zip(double_reference(gm, x), double_reference(read.graph_module, x), strict=True):
        assert np.array_equal(a, b)
    again = to_qonnx(read.graph_module)
    assert again.SerializeToString(deterministic=True) == to_qonnx(pq.from_qonnx(again).graph_module).SerializeToString(deterministic=True)
