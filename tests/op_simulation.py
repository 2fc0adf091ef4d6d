"""Many cases in one hls4ml project: their QONNX files side by side, so that g++ runs a few times and not once for each operator."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import compose, helper
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pquant_fx.lower.hls4ml.convert import to_hls4ml
from tests.op_cases import frozen, load_cases

__all__ = ["GROUP", "groups", "side_by_side", "wrong_in_simulation"]

GROUP = 32
"""Cases in one project."""


def groups(engine: str) -> list[list[str]]:
    """The names of the cases that this io type computes, in groups."""
    names = [name for name, case in load_cases().items() if case.expected(engine) == "exact"]
    return [names[start : start + GROUP] for start in range(0, len(names), GROUP)]


def side_by_side(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One file with the nodes of all; names get the number of their file."""
    parts = [compose.add_prefix(model, f"case{n}_") for n, model in enumerate(models)]
    joined = {
        field: [entry for part in parts for entry in getattr(part.graph, field)]
        for field in ("node", "input", "output", "initializer", "value_info")
    }
    graph = helper.make_graph(
        joined["node"], "cases", joined["input"], joined["output"], joined["initializer"], value_info=joined["value_info"]
    )
    domains = {entry.domain: entry for part in parts for entry in part.opset_import}
    return helper.make_model(graph, opset_imports=list(domains.values()), ir_version=parts[0].ir_version)


def wrong_in_simulation(names: Sequence[str], io_type: str) -> dict[str, int]:
    """How many samples of each case differ from torch in the C simulation; only cases where some do."""
    cases = [load_cases()[name] for name in names]
    inputs = [x for case in cases for x in case.inputs()]
    with tempfile.TemporaryDirectory() as folder:
        project = to_hls4ml(side_by_side([frozen(name).to_qonnx() for name in names]), Path(folder) / "project", io_type=io_type)
        made = project.predict(*(x.float().numpy() for x in inputs))
    outputs = iter(made if isinstance(made, list) else [made])
    found = {}
    for case in cases:
        expected = [_array(v) for v in tree_leaves(frozen(case.name)(*case.inputs()))]
        wrong = np.zeros(len(expected[0]), dtype=bool)
        for want in expected:
            got = next(outputs)
            assert got.shape == want.shape, f"{case.name}: {got.shape} instead of {want.shape}"
            wrong |= (got != want).reshape(len(want), -1).any(axis=1)
        found[case.name] = int(wrong.sum())
    assert next(outputs, None) is None
    return {name: count for name, count in found.items() if count}


def _array(value: Tensor) -> npt.NDArray[np.float64]:
    return value.double().numpy()
