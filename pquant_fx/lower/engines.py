"""The engines that `verify` compares, by name: each takes a frozen network and samples and returns float64 outputs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
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
from pquant_fx.graph.info import info
from pquant_fx.graph.values import output_of
from pquant_fx.lower.hls4ml.options import require_options
from pquant_fx.lower.locate import first_differing_node
from pquant_fx.lower.verify import Values, VerifyReport, compare_engines

__all__ = ["ENGINES", "Frozen", "verify"]

Array = npt.NDArray[np.float64]
NodeValues = Mapping[str, Array]
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
    require_options(io_type)
    reference = _flat(frozen(*inputs))
    output = output_of(frozen.graph_module)
    nodes = output.all_input_nodes if len(output.all_input_nodes) == len(reference) else []
    lsbs = [i.f if (i := frozen.formats.intervals.get(n)) is not None else 0 for n in nodes] or [0] * len(reference)
    names = [n.name for n in nodes] or [f"output_{n}" for n in range(len(reference))]
    runs = {_label(t, io_type, frozen): _run(ENGINES[t], frozen, inputs, io_type) for t in targets}
    return _located(compare_engines(reference, lsbs, names, runs), frozen, inputs, io_type)


def _located(report: VerifyReport, frozen: Frozen, inputs: list[Tensor], io_type: str) -> VerifyReport:
    """Name the node where the engine of the first difference leaves torch, if it is still there with every value as an output."""
    first = report.first_difference
    if first is None:
        return report
    try:
        values = _VALUES[first.engine.partition(" ")[0]](frozen, inputs, io_type)
    except Exception:  # with every value read once more the network may be beyond an engine; the difference itself is found
        return report
    node = first_differing_node(frozen.graph_module, inputs, values)
    if node is None:
        return report
    return replace(report, first_difference=replace(first, node=node.name, line=info(node).line))


def _run(engine: Callable[[Frozen, list[Tensor], str], Values], frozen: Frozen, inputs: list[Tensor], io_type: str) -> Callable[[], Values]:
    return lambda: engine(frozen, inputs, io_type)


def _label(target: str, io_type: str, frozen: Frozen) -> str:
    if target == "qonnx" and _is_wide(frozen):
        return "qonnx float64"
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
    from pquant_fx.lower.onnx.qonnx import to_qonnx

    model = to_qonnx(frozen.graph_module, batch=min(len(inputs[0]), _QONNX_BATCH), formats=frozen.formats)
    return [np.asarray(v, dtype=np.float64) for v in _qonnx_run(frozen)(model, _arrays(inputs))]


def _qonnx_run(frozen: Frozen) -> Callable[[Any, Any], list[npt.NDArray[Any]]]:
    """qonnx's execution of a file: in float64 where a value needs more than float32 has, which no QONNX file speaks of."""
    from pquant_fx.lower.onnx.double import in_double
    from pquant_fx.lower.onnx.run import run_qonnx

    return (lambda model, x: run_qonnx(in_double(model), x)) if _is_wide(frozen) else run_qonnx


def _is_wide(frozen: Frozen) -> bool:
    from pquant_fx.lower.onnx.precision import float32_problems

    return bool(float32_problems(frozen.graph_module, frozen.formats))


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


def _integer_values(frozen: Frozen, inputs: list[Tensor], io_type: str) -> NodeValues:
    from pquant_fx.lower.integer import IntegerInterpreter

    interpreter = IntegerInterpreter(frozen.graph_module, frozen.formats)
    values: NodeValues = interpreter.run(*(x.double().numpy(force=True) for x in inputs), trace=True)[1]
    return values


def _onnx_values(frozen: Frozen, inputs: list[Tensor], io_type: str) -> NodeValues:
    from pquant_fx.lower.onnx.plain import plain_emission
    from pquant_fx.lower.onnx.run import run_onnxruntime
    from pquant_fx.lower.onnx.trace import node_values

    return node_values(plain_emission(frozen.graph_module, formats=frozen.formats), run_onnxruntime, _arrays(inputs))


def _qonnx_values(frozen: Frozen, inputs: list[Tensor], io_type: str) -> NodeValues:
    from pquant_fx.lower.onnx.qonnx import qonnx_emission
    from pquant_fx.lower.onnx.trace import node_values

    batch = min(len(inputs[0]), _QONNX_BATCH)
    return node_values(qonnx_emission(frozen.graph_module, batch, frozen.formats), _qonnx_run(frozen), _arrays(inputs))


def _hls4ml_values(frozen: Frozen, inputs: list[Tensor], io_type: str) -> NodeValues:
    from pquant_fx.lower.hls4ml.convert import to_hls4ml
    from pquant_fx.lower.onnx.qonnx import qonnx_emission
    from pquant_fx.lower.onnx.trace import node_values

    def run(model: Any, arrays: Any) -> list[Array]:
        with tempfile.TemporaryDirectory(prefix="pquant_fx_") as folder:
            outputs = to_hls4ml(model, Path(folder) / "project", io_type=io_type).predict(*arrays)
        return outputs if isinstance(outputs, list) else [outputs]

    return node_values(qonnx_emission(frozen.graph_module, formats=frozen.formats), run, _arrays(inputs))


_VALUES: dict[str, Callable[[Frozen, list[Tensor], str], NodeValues]] = {
    "integer": _integer_values,
    "onnx": _onnx_values,
    "qonnx": _qonnx_values,
    "hls4ml": _hls4ml_values,
}
"""What each engine computes at every node of the graph, to find where it leaves torch."""
