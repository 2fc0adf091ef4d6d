"""The engines that `verify` compares, by name: each takes a frozen network and samples and returns float64 outputs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten

from pquant_fx.errors import ConfigError, Problem
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.values import output_of
from pquant_fx.lower.engine_values import ENGINE_VALUES, QONNX_BATCH, arrays, is_wide, qonnx_run
from pquant_fx.lower.hls4ml.options import require_options
from pquant_fx.lower.locate import differing_nodes, worst_input
from pquant_fx.lower.stress import input_formats, stress_samples
from pquant_fx.lower.verify import Values, VerifyReport, compare_engines

__all__ = ["ENGINES", "Frozen", "verify"]

Array = npt.NDArray[np.float64]


class Frozen(Protocol):
    """What an engine needs of a frozen model."""

    graph_module: GraphModule
    formats: FormatMap
    input_names: tuple[str, ...]
    _projects: dict[str, Any]

    def __call__(self, *inputs: Tensor) -> Any: ...
    def integer(self, *inputs: Tensor) -> Any: ...
    def to_onnx(self) -> Any: ...
    def to_hls4ml(self, output_dir: Path, *, io_type: str) -> Any: ...


def verify(frozen: Frozen, inputs: list[Tensor], targets: tuple[str, ...], io_type: str, stress: int = 0) -> VerifyReport:
    """Compare the outputs of `targets` with torch's on `inputs` (samples first) and on `stress` samples made of them.

    ConfigError (PQ405) for unknown names, or none.
    """
    if not targets:
        raise ConfigError(Problem("PQ405", "no engine was named", f"engines: {', '.join(ENGINES)}"))
    unknown = [t for t in targets if t not in ENGINES]
    if unknown:
        raise ConfigError([Problem("PQ405", f"there is no engine '{t}'", f"engines: {', '.join(ENGINES)}") for t in unknown])
    require_options(io_type)
    if stress and all(x.is_floating_point() for x in inputs):
        more = stress_samples(inputs, input_formats(frozen.graph_module), stress)
        inputs = [torch.cat([x, m.to(x)]) for x, m in zip(inputs, more)]
    else:
        stress = 0
    reference = _flat(frozen(*inputs))
    output = output_of(frozen.graph_module)
    nodes = output.all_input_nodes if len(output.all_input_nodes) == len(reference) else []
    lsbs = [i.f if (i := frozen.formats.intervals.get(n)) is not None else 0 for n in nodes] or [0] * len(reference)
    names = [n.name for n in nodes] or [f"output_{n}" for n in range(len(reference))]
    runs = {_label(t, io_type, frozen): _run(ENGINES[t], frozen, inputs, io_type) for t in targets}
    report = compare_engines(reference, lsbs, names, runs)
    return _located(replace(report, samples=report.samples - stress, stress=stress), frozen, inputs, io_type)


def _located(report: VerifyReport, frozen: Frozen, inputs: list[Tensor], io_type: str) -> VerifyReport:
    """Name the nodes at which the engine of the first difference leaves torch, and search the worst input of the first of them."""
    first = report.first_difference
    if first is None:
        return report
    try:
        with ExitStack() as kept:
            run = ENGINE_VALUES[first.engine.partition(" ")[0]](frozen, io_type, kept)
            nodes = differing_nodes(frozen, inputs, run(inputs), first.engine)
            if nodes:
                nodes[0] = worst_input(frozen, inputs, run, nodes[0])
    except Exception:  # with every value read once more the network may be beyond an engine; the difference itself is found
        return report
    if not nodes:
        return report
    return replace(report, first_difference=replace(first, node=nodes[0].node, line=nodes[0].line), nodes=tuple(nodes))


def _run(engine: Callable[[Frozen, list[Tensor], str], Values], frozen: Frozen, inputs: list[Tensor], io_type: str) -> Callable[[], Values]:
    return lambda: engine(frozen, inputs, io_type)


def _label(target: str, io_type: str, frozen: Frozen) -> str:
    if target == "qonnx" and is_wide(frozen):
        return "qonnx float64"
    return f"hls4ml {io_type}" if target == "hls4ml" else target


def _flat(outputs: Any) -> list[Array]:
    return [v.double().numpy(force=True) for v in tree_flatten(outputs)[0] if isinstance(v, Tensor)]


def _integer(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    return _flat(frozen.integer(*inputs))


def _onnx(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    from pquant_fx.lower.onnx.run import run_onnxruntime

    return [np.asarray(v, dtype=np.float64) for v in run_onnxruntime(frozen.to_onnx(), arrays(inputs))]


def _qcdq(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    from pquant_fx.lower.onnx.qcdq import to_qcdq
    from pquant_fx.lower.onnx.run import run_onnxruntime

    model = to_qcdq(frozen.graph_module, formats=frozen.formats, opset=21)
    return [np.asarray(v, dtype=np.float64) for v in run_onnxruntime(model, arrays(inputs))]


def _qonnx(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    from pquant_fx.lower.onnx.qonnx import to_qonnx

    model = to_qonnx(frozen.graph_module, batch=min(len(inputs[0]), QONNX_BATCH), formats=frozen.formats)
    return [np.asarray(v, dtype=np.float64) for v in qonnx_run(frozen)(model, arrays(inputs))]


def _hls4ml(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    project = frozen._projects.get(io_type)
    if project is None:
        folder = Path(tempfile.mkdtemp(prefix="pquant_fx_"))
        weakref.finalize(frozen, shutil.rmtree, folder, ignore_errors=True)  # kept for the next call, gone with the model
        project = frozen.to_hls4ml(folder / "project", io_type=io_type)
        project.compile()
        frozen._projects[io_type] = project
    outputs = project.predict(*arrays(inputs))
    return [np.asarray(v, dtype=np.float64) for v in (outputs if isinstance(outputs, list | tuple) else [outputs])]


ENGINES: dict[str, Callable[[Frozen, list[Tensor], str], Values]] = {
    "integer": _integer,
    "onnx": _onnx,
    "qonnx": _qonnx,
    "hls4ml": _hls4ml,
    "qcdq": _qcdq,
}
