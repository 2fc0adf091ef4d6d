"""Run an ONNX or a QONNX file on samples, in pieces of bounded memory, without a word on the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pquant_fx.errors import InputError, LoweringError, Problem
from pquant_fx.lower.extras import require

if TYPE_CHECKING:
    import onnx

__all__ = ["run_onnxruntime", "run_qonnx"]

Arrays = Sequence[npt.NDArray[Any]]
_CHUNK = 128
"""Samples at once where the file leaves the batch open."""
_DOUBLE = 11  # TensorProto.DOUBLE


def run_onnxruntime(model: onnx.ModelProto, inputs: Arrays) -> list[npt.NDArray[Any]]:
    """The outputs of a file of standard operators in their order; inputs in the file's order, samples first.

    Raises InputError (PQ409) for wrong inputs, LoweringError (PQ201) for operators of other domains,
    ExtraMissingError (PQ503) without onnxruntime.
    """
    require("onnxruntime")
    import onnxruntime

    foreign = sorted({n.domain for n in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise LoweringError(Problem("PQ201", f"onnxruntime knows no operators of {', '.join(foreign)}", "use to_onnx, or run_qonnx"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in _fed(model)]

    def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return list(session.run(None, feeds))

    return _in_chunks(model, names, inputs, run)


def run_qonnx(model: onnx.ModelProto, inputs: Arrays) -> list[npt.NDArray[Any]]:
    """The outputs of a QONNX file by qonnx's node-by-node execution; it is quickest when exported with batch = samples.

    Raises InputError (PQ409) for wrong inputs, ExtraMissingError (PQ503) without qonnx.
    """
    with _silence():
        require("qonnx.core.onnx_exec")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx

        wrapper = ModelWrapper(model, make_deepcopy=True)
        names, outputs = [i.name for i in _fed(model)], [o.name for o in model.graph.output]

        def run(feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
            found = execute_onnx(wrapper, feeds)
            return [np.asarray(found[name]) for name in outputs]

        return _in_chunks(model, names, inputs, run)


def _in_chunks(
    model: onnx.ModelProto, names: Sequence[str], inputs: Arrays, run: Callable[[dict[str, npt.NDArray[Any]]], list[npt.NDArray[Any]]]
) -> list[npt.NDArray[Any]]:
    """Feed the file's batch (or `_CHUNK` samples) at a time; a short last piece of a fixed batch is filled up with zeros."""
    dtype = np.float64 if any(i.type.tensor_type.elem_type == _DOUBLE for i in _fed(model)) else np.float32
    arrays = [np.ascontiguousarray(x, dtype=dtype) for x in inputs]
    _check(model, names, arrays)
    samples = len(arrays[0])
    fixed = int(_fed(model)[0].type.tensor_type.shape.dim[0].dim_value)
    chunk = fixed or _CHUNK
    pieces: list[list[npt.NDArray[Any]]] = []
    for start in range(0, samples, chunk):
        parts = [x[start : start + chunk] for x in arrays]
        here = len(parts[0])
        if fixed and here < fixed:
            parts = [np.concatenate([p, np.zeros((fixed - here, *p.shape[1:]), dtype=p.dtype)]) for p in parts]
        pieces.append([np.asarray(y)[:here] for y in run(dict(zip(names, parts)))])
    return [np.concatenate(column) for column in zip(*pieces)]


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What has to be given: the inputs, of which older files list their parameters as well."""
    held = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in held]


def _check(model: onnx.ModelProto, names: Sequence[str], arrays: Arrays) -> None:
    if len(arrays) != len(names):
        raise InputError(Problem("PQ409", f"{len(arrays)} inputs were given, the file has {len(names)}", f"give {', '.join(names)}"))
    for name, array, declared in zip(names, arrays, _fed(model)):
        wanted = tuple(int(d.dim_value) for d in declared.type.tensor_type.shape.dim)[1:]
        if array.shape[1:] != wanted or len(array) != len(arrays[0]) or not len(array):
            what = f"the input '{name}' has shape {array.shape}"
            remedy = f"give arrays of shape (samples, {', '.join(map(str, wanted))}), all with as many samples"
            raise InputError(Problem("PQ409", what, remedy))


@contextmanager
def _silence() -> Iterator[None]:
    """qonnx and the packages it loads announce their own deprecations; they are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
