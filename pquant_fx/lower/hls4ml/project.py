"""The hls4ml project of a plan: written, compiled with g++ for C simulation, run on numpy arrays in the file's layout."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pquant_fx.errors import ExtraMissingError, LoweringError, OutputError, Problem
from pquant_fx.files import owned_directory
from pquant_fx.lower.hls4ml.backends import OPEN_HEADERS
from pquant_fx.lower.hls4ml.builder import Plan, Stored
from pquant_fx.lower.hls4ml.model_graph import PROJECT, check_kept, model_graph
from pquant_fx.lower.hls4ml.net import Array
from pquant_fx.lower.hls4ml.options import LayerOptions, Options
from pquant_fx.lower.hls4ml.reports import SynthesisReports, read_reports
from pquant_fx.lower.hls4ml.strategies import plan_strategies, require_distributed_arithmetic
from pquant_fx.lower.hls4ml.stream_layers import set_fifo_depths

__all__ = ["HlsProject", "settle", "write_project"]

_TOOLS = {
    "Vitis": ("vitis-run", "vitis_hls"), "Vivado": ("vivado_hls",), "Catapult": ("catapult",), "oneAPI": ("icpx",), "Quartus": ("i++",),
}  # fmt: skip


class HlsProject:
    """An hls4ml project on disk. `path`: its directory; `model_graph`: hls4ml's own object.

    layers: layer with weights -> strategy and reuse factor; notes: where a general setting was adapted to a layer;
    fifo_depths: stream -> depth that was computed, empty where hls4ml's own stand (io_parallel, or a backend without).
    """

    def __init__(
        self,
        path: Path,
        model_graph: Any,
        plan: Plan,
        options: Options,
        layers: Mapping[str, LayerOptions],
        notes: tuple[Problem, ...],
        fifo_depths: Mapping[str, int],
    ) -> None:
        self.path, self.model_graph, self.options = path, model_graph, options
        self.layers, self.notes, self.fifo_depths = layers, notes, fifo_depths
        self._plan = plan
        self._library: ctypes.CDLL | None = None

    def compile(self, optimize: bool = False) -> HlsProject:
        """Build the C simulation with g++. The bits do not depend on `optimize` (-O3 instead of -O1): it compiles longer and runs faster.

        Raises ExtraMissingError (PQ503) without g++, LoweringError (PQ509) with the compiler's message when it refuses the project.
        """
        if self.options.backend not in OPEN_HEADERS:
            what = f"C simulation of {self.options.backend} needs the vendor's headers and compiler, which hls4ml does not bring along"
            raise ExtraMissingError(Problem("PQ503", what, f"compile {self.path} where they are, or choose {' or '.join(OPEN_HEADERS)}"))
        if shutil.which("g++") is None:
            what, remedy = "hls4ml's C simulation needs the compiler g++", "install it, for example: apt-get install g++"
            raise ExtraMissingError(Problem("PQ503", what, remedy))
        script = self.path / "build_lib.sh"
        text = _in_parallel(script.read_text(encoding="utf-8")).replace("-O3", "-O3" if optimize else "-O1")
        # where a grid is coarser than the whole value, ap_fixed looks at a bit beyond it, makes no use of it, and would end the process
        text = text.replace("-fPIC", "-fPIC -DNDEBUG", 1)
        done = subprocess.run(["bash", "-e", "-c", text, str(script)], cwd=self.path, capture_output=True, text=True, check=False)
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
        tools = _TOOLS[self.options.backend]
        if not any(shutil.which(tool) for tool in tools):
            what = f"synthesis with the backend {self.options.backend} needs the vendor tool {' or '.join(tools)}, which is not on PATH"
            raise ExtraMissingError(Problem("PQ503", what, "source the tool's settings64.sh first; compile() and predict() need only g++"))
        with _inside(Path.cwd()):
            return self.model_graph.build(**options)

    def reports(self) -> SynthesisReports:
        """What the vendor's tools wrote into the project. Raises InputError (PQ503) when nothing whole is there: see `read_reports`."""
        return read_reports(self.path)


def _in_parallel(script: str) -> str:
    """hls4ml's build script with both of its files compiled at the same time."""
    first, second = "-o ${PROJECT}.o\n", "-o ${PROJECT}_bridge.o\n"
    if first not in script or second not in script:
        return script
    return script.replace(first, first.rstrip() + " & first=$!\n").replace(second, second + "wait $first\n")


def settle(folder: Path, before: Path, after: Path) -> None:
    """hls4ml notes where its project lies, in its configuration and for some backends in the sources: `after` instead of `before`."""
    for file in (path for path in folder.rglob("*") if path.suffix in (".yml", ".h", ".cpp", ".tcl", ".sh")):
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        if str(before) in text:
            file.write_text(text.replace(str(before), str(after)), encoding="utf-8", errors="surrogateescape")


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


def write_project(plan: Plan, output_dir: str | os.PathLike[str], options: Options, overwrite: bool = False) -> HlsProject:
    """Hand the plan to hls4ml and write its project, whole or not at all.

    Raises LoweringError with every strategy or reuse factor of a single layer that it can not have (PQ402, PQ405, PQ407);
    OutputError (PQ505, PQ506), ExtraMissingError (PQ503) without hls4ml or da4ml, LoweringError (PQ509) when hls4ml fails on the
    plan or changes one of its types.
    """
    chosen, problems, notes = plan_strategies(plan, options)
    if problems:
        raise LoweringError(problems)
    require_distributed_arithmetic(chosen.values())
    target = Path(output_dir).absolute()
    with owned_directory(target, overwrite) as place, quiet():
        graph = model_graph(plan, place, options, chosen)
        check_kept(graph, plan, chosen)
        depths, unknown = set_fifo_depths(graph, options)
        try:
            graph.write()
        except OSError as error:
            raise OutputError(Problem("PQ505", f"can not write '{place}': {error}", "choose a writable place with free space")) from error
        settle(place, place, target)
        graph.config.config["OutputDir"] = str(target)
    return HlsProject(target, graph, plan, options, chosen, (*notes, *unknown), depths)
