"""Check a bundle against its own golden vectors, without the model that it came from."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from pquant_fx.errors import ConfigError, InputError, Problem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pquant_fx.lower.verify import Values, VerifyReport

__all__ = ["ENGINES", "is_bundle", "verify_bundle"]

ENGINES = ("onnx", "qonnx", "hls4ml")


def is_bundle(text: str) -> bool:
    """Whether the text names a directory rather than a model."""
    return Path(text).is_dir()


@dataclass(frozen=True)
class _Golden:
    inputs: dict[str, npt.NDArray[np.float32]]
    codes: list[npt.NDArray[np.int64]]
    fractions: list[int]

    @property
    def values(self) -> list[npt.NDArray[np.float64]]:
        return [code.astype(float) * 2.0**-f for code, f in zip(self.codes, self.fractions)]


def verify_bundle(path: Path, engines: Sequence[str], io_type: str, samples: int | None) -> VerifyReport:
    """Compare the bundle's files with its certificate, run them on its golden inputs, and compare every bit with its golden outputs.

    engines: of `onnx` (plain.onnx in onnxruntime), `qonnx` (qonnx.onnx) and `hls4ml` (C simulation of qonnx.onnx).
    Raises ConfigError (PQ405) for an unknown engine or none, InputError (PQ409) when the directory is no bundle.
    """
    from pquant_fx.lower.verify import VerifyReport, compare_engines
    from pquant_fx.report.certificate import changes, read_certificate

    if not engines:
        raise ConfigError(Problem("PQ405", "no engine was named", f"engines: {', '.join(ENGINES)}"))
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise ConfigError([Problem("PQ405", f"a bundle has no engine '{name}'", f"engines: {', '.join(ENGINES)}") for name in unknown])
    held = read_certificate(path)
    findings = ["there is no certificate.json: files were not compared with it"] if held is None else changes(path, held)
    try:
        golden = _read(path, samples)
    except InputError:
        if held is None:
            raise
        return VerifyReport(0, (), None, findings=tuple(findings))  # what there is to compare with is damaged or gone
    runs: dict[str, Callable[[], Values]] = {
        "onnx": lambda: _onnx(path, golden),
        "qonnx": lambda: _qonnx(path, golden),
        "hls4ml": lambda: _hls4ml(path, golden, io_type),
    }
    names = [f"output_{n}" for n in range(len(golden.codes))]
    report = compare_engines(golden.values, golden.fractions, names, {name: runs[name] for name in engines})
    return replace(report, findings=tuple(findings))


def _read(path: Path, samples: int | None) -> _Golden:
    import numpy as np

    try:
        with np.load(path / "golden.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        remedy = "name a directory that 'pquant-fx compile --out' wrote"
        why = "there is no golden.npz in it" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(Problem("PQ409", f"'{path}' is no bundle: {why}", remedy)) from None
    inputs = {
        name.removeprefix("input_"): array[:samples].astype(np.float32) for name, array in arrays.items() if name.startswith("input_")
    }
    count = sum(name.startswith("output_") and not name.endswith("_f") for name in arrays)
    codes = [arrays[f"output_{n}"][:samples] for n in range(count)]
    return _Golden(inputs, codes, [int(arrays[f"output_{n}_f"]) for n in range(count)])


def _load(path: Path) -> Any:
    from pquant_fx.lower.extras import require

    require("onnx")
    import onnx

    try:
        return onnx.load(path)
    except FileNotFoundError:
        raise InputError(Problem("PQ409", f"there is no '{path}'", "write the bundle again")) from None


def _float64(values: Sequence[Any]) -> Values:
    import numpy as np

    return [np.asarray(value, dtype=np.float64) for value in values]


def _onnx(path: Path, golden: _Golden) -> Values:
    from pquant_fx.lower.onnx.run import run_onnxruntime

    return _float64(run_onnxruntime(_load(path / "plain.onnx"), list(golden.inputs.values())))


def _qonnx(path: Path, golden: _Golden) -> Values:
    """Sample by sample: the file is written for a batch of one. In float64, because a file does not say how wide its sums get."""
    import numpy as np

    from pquant_fx.lower.onnx.double import in_double
    from pquant_fx.lower.onnx.run import run_qonnx

    model = in_double(_load(path / "qonnx.onnx"))
    count = len(golden.codes[0])
    rows = [run_qonnx(model, [array[n : n + 1] for array in golden.inputs.values()]) for n in range(count)]
    return _float64([np.concatenate(values) for values in zip(*rows)])


def _hls4ml(path: Path, golden: _Golden, io_type: str) -> Values:
    from pquant_fx.lower.hls4ml.convert import to_hls4ml

    with tempfile.TemporaryDirectory(prefix="pquant_fx_") as folder:
        project = to_hls4ml(_load(path / "qonnx.onnx"), Path(folder) / "project", io_type=io_type)
        project.compile()
        found = project.predict(*golden.inputs.values())
    return _float64(found if isinstance(found, (list, tuple)) else [found])
