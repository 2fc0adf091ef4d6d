"""The engines that `verify` compares, by name: each takes a frozen network and samples and returns float64 outputs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten

from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.info import info
from pquant_fx.graph.values import output_of
from pquant_fx.lower.locate import first_differing_node
from pquant_fx.lower.verify import Values, VerifyReport, compare_engines

__all__ = ["ENGINES", "Frozen", "verify"]

IO_TYPES = ("io_parallel", "io_stream")
Array = npt.NDArray[np.float64]
_QONNX_BATCH = 128  # qonnx keeps every intermediate value of a batch


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


def verify(frozen: Frozen, inputs: list[Tensor], targets: tuple[str, ...], io_type: str) -> VerifyReport:
    """Compare the outputs of `targets` with torch's on `inputs` (samples first). ConfigError (PQ405) for unknown names, or none."""
    if not targets:
        raise ConfigError(Problem("PQ405", "no engine was named", f"engines: {', '.join(ENGINES)}"))
    unknown = [t for t in targets if t not in ENGINES]
    if unknown:
        raise ConfigError([Problem("PQ405", f"there is no engine '{t}'", f"engines: {', '.join(ENGINES)}") for t in unknown])
    if io_type not in IO_TYPES:
        raise ConfigError(Problem("PQ405", f"there is no io type '{io_type}'", f"io types: {', '.join(IO_TYPES)}"))
    reference = _flat(frozen(*inputs))
    output = output_of(frozen.graph_module)
    nodes = output.all_input_nodes if len(output.all_input_nodes) == len(reference) else []
    lsbs = [i.f if (i := frozen.formats.intervals.get(n)) is not None else 0 for n in nodes] or [0] * len(reference)
    names = [n.name for n in nodes] or [f"output_{n}" for n in range(len(reference))]
    runs = {_label(t, io_type): _run(ENGINES[t], frozen, inputs, io_type) for t in targets}
    return _located(compare_engines(reference, lsbs, names, runs), frozen, inputs)


def _located(report: VerifyReport, frozen: Frozen, inputs: list[Tensor]) -> VerifyReport:
    """Name the node where the integer interpreter leaves torch, if that is the first difference."""
    first = report.first_difference
    if first is None or first.engine != "integer":
        return report
    node = first_differing_node(frozen.graph_module, frozen.formats, inputs)
    if node is None:
        return report
    return replace(report, first_difference=replace(first, node=node.name, line=info(node).line))


def _run(engine: Callable[[Frozen, list[Tensor], str], Values], frozen: Frozen, inputs: list[Tensor], io_type: str) -> Callable[[], Values]:
    return lambda: engine(frozen, inputs, io_type)


def _label(target: str, io_type: str) -> str:
    return f"hls4ml {io_type}" if target == "hls4ml" else target


def _flat(outputs: Any) -> list[Array]:
    return [v.double().numpy(force=True) for v in tree_flatten(outputs)[0] if isinstance(v, Tensor)]


def _arrays(inputs: list[Tensor]) -> list[npt.NDArray[np.float32]]:
    return [x.to(torch.float32).numpy(force=True) for x in inputs]


def _integer(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    return _flat(frozen.integer(*inputs))


def _onnx(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    from pquant_fx.lower.onnx.run import run_onnxruntime

    return [np.asarray(v, dtype=np.float64) for v in run_onnxruntime(frozen.to_onnx(), _arrays(inputs))]


def _qonnx(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    from pquant_fx.lower.onnx.qonnx import float32_problems, to_qonnx
    from pquant_fx.lower.onnx.run import run_qonnx

    problems = float32_problems(frozen.graph_module, frozen.formats)
    if problems:
        raise LoweringError(problems)
    model = to_qonnx(frozen.graph_module, batch=min(len(inputs[0]), _QONNX_BATCH), formats=frozen.formats)
    return [np.asarray(v, dtype=np.float64) for v in run_qonnx(model, _arrays(inputs))]


def _hls4ml(frozen: Frozen, inputs: list[Tensor], io_type: str) -> Values:
    project = frozen._projects.get(io_type)
    if project is None:
        folder = Path(tempfile.mkdtemp(prefix="pquant_fx_"))
        weakref.finalize(frozen, shutil.rmtree, folder, ignore_errors=True)  # kept for the next call, gone with the model
        project = frozen.to_hls4ml(folder / "project", io_type=io_type)
        project.compile()
        frozen._projects[io_type] = project
    outputs = project.predict(*_arrays(inputs))
    return [np.asarray(v, dtype=np.float64) for v in (outputs if isinstance(outputs, list | tuple) else [outputs])]


ENGINES: dict[str, Callable[[Frozen, list[Tensor], str], Values]] = {
    "integer": _integer,
    "onnx": _onnx,
    "qonnx": _qonnx,
    "hls4ml": _hls4ml,
}
