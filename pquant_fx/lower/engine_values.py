"""What each engine computes at every node of the graph, to find where it leaves torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.graph.analysis import FormatMap
from pquant_fx.lower.onnx.graph import Version

__all__ = ["ENGINE_VALUES", "QONNX_BATCH", "Graphed", "NodeValues", "Run", "arrays", "is_wide", "qonnx_run"]

Array = npt.NDArray[np.float64]
NodeValues = Mapping[str, Array]
Run = Callable[[list[Tensor]], NodeValues]
QONNX_BATCH = 128
"""qonnx keeps every intermediate value of a batch."""


class Graphed(Protocol):
    """What is needed of a frozen model."""

    graph_module: GraphModule
    formats: FormatMap


def arrays(inputs: list[Tensor]) -> list[npt.NDArray[np.float32]]:
    """The samples as the runtimes take them."""
    return [x.to(torch.float32).numpy(force=True) for x in inputs]


def is_wide(frozen: Graphed) -> bool:
    """Whether 24 bits do not hold every value, so that a float32 runtime may round."""
    from pquant_fx.lower.onnx.precision import float32_problems

    return bool(float32_problems(frozen.graph_module, frozen.formats))


def qonnx_run(frozen: Graphed) -> Callable[[Any, Any], list[npt.NDArray[Any]]]:
    """qonnx's execution of a file: in float64 where a value needs more than float32 has, which no QONNX file speaks of."""
    from pquant_fx.lower.onnx.double import in_double
    from pquant_fx.lower.onnx.run import run_qonnx

    return (lambda model, x: run_qonnx(in_double(model), x)) if is_wide(frozen) else run_qonnx


def _integer(frozen: Graphed, io_type: str, kept: ExitStack) -> Run:
    from pquant_fx.lower.integer import IntegerInterpreter

    interpreter = IntegerInterpreter(frozen.graph_module, frozen.formats)

    def run(inputs: list[Tensor]) -> NodeValues:
        values: NodeValues = interpreter.run(*(x.double().numpy(force=True) for x in inputs), trace=True)[1]
        return values

    return run


def _onnx(frozen: Graphed, io_type: str, kept: ExitStack) -> Run:
    from pquant_fx.lower.onnx.plain import plain_emission
    from pquant_fx.lower.onnx.run import run_onnxruntime
    from pquant_fx.lower.onnx.trace import traced

    model, values = traced(plain_emission(frozen.graph_module, formats=frozen.formats))
    return lambda inputs: values(run_onnxruntime(model, arrays(inputs)))


def _qcdq(frozen: Graphed, io_type: str, kept: ExitStack) -> Run:
    from pquant_fx.lower.onnx.qcdq import qcdq_emission
    from pquant_fx.lower.onnx.run import run_onnxruntime
    from pquant_fx.lower.onnx.trace import traced

    model, values = traced(qcdq_emission(frozen.graph_module, formats=frozen.formats, version=Version(opset=21)))
    return lambda inputs: values(run_onnxruntime(model, arrays(inputs)))


def _qonnx(frozen: Graphed, io_type: str, kept: ExitStack) -> Run:
    from pquant_fx.lower.onnx.qonnx import qonnx_emission
    from pquant_fx.lower.onnx.trace import traced

    made: dict[int, Any] = {}
    run = qonnx_run(frozen)

    def values(inputs: list[Tensor]) -> NodeValues:
        batch = min(len(inputs[0]), QONNX_BATCH)
        if batch not in made:
            made[batch] = traced(qonnx_emission(frozen.graph_module, batch, frozen.formats))
        model, named = made[batch]
        found: NodeValues = named(run(model, arrays(inputs)))
        return found

    return values


def _hls4ml(frozen: Graphed, io_type: str, kept: ExitStack) -> Run:
    """The network with every value as an output, built and compiled once."""
    from pquant_fx.lower.hls4ml.convert import to_hls4ml
    from pquant_fx.lower.onnx.qonnx import qonnx_emission
    from pquant_fx.lower.onnx.trace import traced

    model, values = traced(qonnx_emission(frozen.graph_module, formats=frozen.formats))
    folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="pquant_fx_"))
    project = to_hls4ml(model, Path(folder) / "project", io_type=io_type)

    def run(inputs: list[Tensor]) -> NodeValues:
        outputs: Any = project.predict(*arrays(inputs))
        return values(outputs if isinstance(outputs, list | tuple) else [outputs])

    return run


ENGINE_VALUES: dict[str, Callable[[Graphed, str, ExitStack], Run]] = {
    "integer": _integer,
    "onnx": _onnx,
    "qonnx": _qonnx,
    "hls4ml": _hls4ml,
    "qcdq": _qcdq,
}
"""Engine -> (frozen, io_type, what to close at the end) -> inputs -> values by node name."""
