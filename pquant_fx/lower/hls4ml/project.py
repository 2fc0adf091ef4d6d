"""The hls4ml project of a plan: written, compiled with g++ for C simulation, run on numpy arrays in the file's layout."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pquant_fx.errors import ExtraMissingError, LoweringError, OutputError, Place, Problem
from pquant_fx.files import owned_directory
from pquant_fx.lower.hls4ml.builder import Plan, Stored
from pquant_fx.lower.hls4ml.casts import register_casts
from pquant_fx.lower.hls4ml.copies import register_copies
from pquant_fx.lower.hls4ml.net import Array

__all__ = ["HlsProject", "write_project"]

PROJECT = "net"
_TOOLS = {"Vitis": ("vitis-run", "vitis_hls"), "Vivado": ("vivado_hls",)}


class HlsProject:
    """An hls4ml project on disk. `path`: its directory; `model_graph`: hls4ml's own object."""

    def __init__(self, path: Path, model_graph: Any, plan: Plan, backend: str) -> None:
        self.path = path
        self.model_graph = model_graph
        self._plan = plan
        self._backend = backend
        self._library: ctypes.CDLL | None = None

    def compile(self, optimize: bool = False) -> HlsProject:
        """Build the C simulation with g++. The bits do not depend on `optimize` (-O3 instead of -O1): it compiles longer and runs faster.

        Raises ExtraMissingError (PQ503) without g++, LoweringError (PQ509) with the compiler's message when it refuses the project.
        """
        if shutil.which("g++") is None:
            what, remedy = "hls4ml's C simulation needs the compiler g++", "install it, for example: apt-get install g++"
            raise ExtraMissingError(Problem("PQ503", what, remedy))
        script = self.path / "build_lib.sh"
        text = _in_parallel(script.read_text(encoding="utf-8")).replace("-O3", "-O3" if optimize else "-O1")
        done = subprocess.run(["bash", "-c", text, str(script)], cwd=self.path, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise LoweringError(Problem("PQ509", f"g++ refuses the project: {' | '.join(lines[:3])}", f"look at {self.path} and report it"))
        stamp = self.model_graph.config.get_config_value("Stamp")
        self._library = ctypes.CDLL(str(self.path / "firmware" / f"{PROJECT}-{stamp}.so"))
        return self

    def predict(self, *x: npt.ArrayLike) -> Array | list[Array]:
        """Outputs of the C simulation, float64 and exact, for one array per input (n, *shape) in the file's layout (NCHW).

        One output comes as an array, several as a list in the file's order. Compiles first when needed.
        Raises LoweringError: PQ409 on a wrong number of inputs or a wrong shape, PQ305 on NaN.
        """
        arrays = self._arrive(x)
        library = self._library or self.compile()._library
        assert library is not None
        layers = list(dict.fromkeys(value.layer for _, value in self._plan.outputs))
        sizes = {value.layer: value.order.size for _, value in self._plan.outputs}
        results = {layer: np.zeros((len(arrays[0]), sizes[layer])) for layer in layers}
        run = library[f"{PROJECT}_double"]
        run.restype = None
        pointer = ctypes.POINTER(ctypes.c_double)
        with _inside(self.path):
            for n in range(len(arrays[0])):
                run(*(a[n].ctypes.data_as(pointer) for a in arrays), *(results[layer][n].ctypes.data_as(pointer) for layer in layers))
        outputs = [_restored(results[value.layer], value) for _, value in self._plan.outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def _arrive(self, x: tuple[npt.ArrayLike, ...]) -> list[Array]:
        """The inputs on their ports' grids, in stored order, one row per sample."""
        names = ", ".join(f"{name} (n, {', '.join(map(str, shape))})" for name, _, shape, _ in self._plan.inputs)
        given = [np.asarray(value, dtype=np.float64) for value in x]
        fits = len(given) == len(self._plan.inputs) and all(
            value.shape[1:] == shape and len(value) == len(given[0])
            for value, (_, _, shape, _) in zip(given, self._plan.inputs, strict=True)
        )
        if not fits:
            what = f"the inputs have the shapes {[value.shape for value in given]}"
            raise LoweringError(Problem("PQ409", what, f"pass one array per input, with the same number of samples: {names}"))
        rows = []
        for value, (name, layer, _, order) in zip(given, self._plan.inputs, strict=True):
            arrived = self._plan.ports[layer].arrive(value, name)
            rows.append(np.ascontiguousarray(arrived.reshape(len(value), -1)[:, order]))
        return rows

    def build(self, **options: Any) -> Any:
        """Synthesise with the vendor's tool; options as in hls4ml's `build` (csim, synth, cosim, ...). Returns hls4ml's report.

        Raises ExtraMissingError (PQ503) when the tool is not on PATH.
        """
        tools = _TOOLS.get(self._backend, ())
        if tools and not any(shutil.which(tool) for tool in tools):
            what = f"synthesis with the backend {self._backend} needs the vendor tool {' or '.join(tools)}, which is not on PATH"
            raise ExtraMissingError(Problem("PQ503", what, "source the tool's settings64.sh first; compile() and predict() need only g++"))
        with _inside(Path.cwd()):
            return self.model_graph.build(**options)


def _in_parallel(script: str) -> str:
    """hls4ml's build script with both of its files compiled at the same time."""
    first, second = "-o ${PROJECT}.o\n", "-o ${PROJECT}_bridge.o\n"
    if first not in script or second not in script:
        return script
    return script.replace(first, first.rstrip() + " & first=$!\n").replace(second, second + "wait $first\n")


def _restored(rows: Array, value: Stored) -> Array:
    made = np.empty_like(rows)
    made[:, value.order] = rows
    return made.reshape(len(rows), *value.shape)


@contextlib.contextmanager
def _inside(path: Path) -> Iterator[None]:
    """The working directory for the block; hls4ml and its code leave it elsewhere."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """hls4ml prints and warns about choices that are ours: nothing of it reaches the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write_project(
    plan: Plan, output_dir: str | os.PathLike[str], *, backend: str, io_type: str, part: str, clock_period: float, overwrite: bool
) -> HlsProject:
    """Hand the plan to hls4ml and write its project, whole or not at all.

    Raises OutputError (PQ505, PQ506), ExtraMissingError (PQ503) without hls4ml, LoweringError (PQ509) when hls4ml fails on the plan
    or changes one of its types.
    """
    target = Path(output_dir).absolute()
    with owned_directory(target, overwrite) as place, quiet():
        graph = _graph(plan, place, backend, io_type, part, clock_period)
        _check_types(graph, plan)
        try:
            graph.write()
        except OSError as error:
            raise OutputError(Problem("PQ505", f"can not write '{place}': {error}", "choose a writable place with free space")) from error
        config = place / "hls4ml_config.yml"
        config.write_text(config.read_text(encoding="utf-8").replace(str(place), str(target)), encoding="utf-8")
        graph.config.config["OutputDir"] = str(target)
    return HlsProject(target, graph, plan, backend)


def _graph(plan: Plan, place: Path, backend: str, io_type: str, part: str, clock_period: float) -> Any:
    try:
        import hls4ml
        from hls4ml.model.graph import ModelGraph
    except ImportError as error:
        raise ExtraMissingError(Problem("PQ503", "the package hls4ml is not installed", "pip install 'hls4ml>=1.3,<1.4'")) from error
    config = hls4ml.converters.create_config(
        output_dir=str(place), project_name=PROJECT, backend=backend, io_type=io_type, part=part, clock_period=clock_period
    )
    config["HLSConfig"] = {
        "Model": {
            "Precision": {"default": "fixed<16,6>"}, "ReuseFactor": 1, "Strategy": "Latency",
            "BitExact": False, "BramFactor": 10**9, "TraceOutput": False,
        },
        "LayerName": {name: {"Precision": dict(types)} for name, types in plan.types.items()},
    }  # fmt: skip
    config["InputData"] = config["OutputPredictions"] = None
    outputs = list(dict.fromkeys(value.layer for _, value in plan.outputs))
    register_casts()
    register_copies()
    try:
        return ModelGraph.from_layer_list(config, plan.layers, [layer for _, layer, _, _ in plan.inputs], outputs)
    except Exception as error:  # hls4ml raises bare Exceptions; whatever it is, the user gets one kind of error
        raise LoweringError(
            Problem("PQ509", f"hls4ml fails on the model: {type(error).__name__}: {error}", "report it with the QONNX file")
        ) from error


def _check_types(graph: Any, plan: Plan) -> None:
    """Every layer of the plan that is still there has the types that were asked for."""
    problems = []
    for layer in graph.graph.values():
        for what, asked in plan.types.get(layer.name, {}).items():
            found = layer.get_output_variable().type if what == "result" else layer.get_attr(f"{what}_t")
            if _plain(str(found.precision)) != _plain(asked):
                text = f"hls4ml changed the {what} type from {asked} to {found.precision}"
                problems.append(Problem("PQ509", text, "report it with the QONNX file", Place(node=layer.name)))
    if problems:
        raise LoweringError(problems)


def _plain(text: str) -> tuple[str, ...]:
    """(u)fixed<W,I,rounding,overflow> however it is written."""
    kind, _, rest = text.replace("ap_", "").replace("AP_", "").replace(" ", "").partition("<")
    return (kind, *rest.rstrip(">").split(",")[:4])
