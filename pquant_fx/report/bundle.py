"""The bundle: one directory with everything that a firmware engineer needs, and the numbers to check it against.

    qonnx.onnx   plain.onnx   hls4ml/   golden.npz   report.html   report.txt   certificate.json

golden.npz holds, for each input, `input_<name>` (float64, batch first), and for each output in order of the result's
structure `output_<n>` (int64 codes) and `output_<n>_f`: the value is code x 2^-f.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from pquant_fx.errors import InputError, Problem
from pquant_fx.estimate import Ebops, join_costs
from pquant_fx.files import owned_directory, write_atomically
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.rewriter import notes_of
from pquant_fx.lower.hls4ml.project import settle
from pquant_fx.lower.stress import input_formats, stress_samples
from pquant_fx.report.certificate import NAME, certificate
from pquant_fx.report.page import Report, Section
from pquant_fx.report.tables import graph_table

__all__ = ["Frozen", "bundle"]


class Frozen(Protocol):
    """What the bundle needs of a frozen model."""

    @property
    def graph_module(self) -> GraphModule: ...

    @property
    def formats(self) -> FormatMap: ...

    def to_qonnx(self, path: Any = None, strict: bool = False) -> Any: ...

    def to_onnx(self, path: Any = None) -> Any: ...

    def to_hls4ml(self, output_dir: Any) -> Any: ...

    def integer(self, *x: Any, codes: bool = False) -> Any: ...

    def ebops(self) -> Ebops: ...


def bundle(
    frozen: Frozen,
    path: str | os.PathLike[str],
    x_golden: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    title: str = "pquant_fx",
    sections: Sequence[Section] = (),
    overwrite: bool = False,
    hls4ml: bool = True,
    stress: int = 0,
) -> Path:
    """Write the bundle to the directory `path`, whole or not at all; returns the path.

    x_golden: inputs for the golden vectors, batch first. sections: what the report says after the tables and the compiler's notes.
    overwrite: replace an earlier bundle (never a directory that holds anything else). hls4ml=False leaves that project out.
    stress: so many golden vectors more: ties, saturating and wrapping values made of x_golden.
    Raises OutputError (PQ505, PQ506) when the place is not ours or not writable, InputError (PQ409) for wrong inputs,
    LoweringError when the network has no exact form in one of the files.
    """
    gm = frozen.graph_module
    inputs = _stressed(gm, _inputs(gm, x_golden), stress)
    noted = notes_of(gm)
    notes = [Section("Notes", "\n".join(map(str, noted)))] if noted else []
    counted = frozen.ebops()
    tables = [Section("Nodes", graph_table(gm, frozen.formats, ebops=counted)), Section("EBOPs", counted)]
    joins = join_costs(gm, frozen.formats, sign=counted.sign)
    tables += [Section("Joins", joins)] if joins.rows else []
    report = Report(title, [*tables, *notes, *sections])
    with owned_directory(path, overwrite) as made:
        frozen.to_qonnx(made / "qonnx.onnx")
        frozen.to_onnx(made / "plain.onnx")
        write_atomically(made / "golden.npz", _golden(frozen, inputs))
        write_atomically(made / "report.txt", report.to_text().encode())
        write_atomically(made / "report.html", report.to_html().encode())
        if hls4ml:
            frozen.to_hls4ml(made / "hls4ml")
            settle(made / "hls4ml", made, Path(path).absolute())
        write_atomically(made / NAME, certificate(made, title, gm, frozen.formats))
    return Path(path)


def _golden(frozen: Frozen, inputs: Mapping[str, Tensor]) -> bytes:
    """The vectors as a numpy archive; numpy writes no time stamps, so equal vectors give equal bytes."""
    arrays = {f"input_{name}": x.detach().cpu().double().numpy() for name, x in inputs.items()}
    codes, values = (tree_leaves(frozen.integer(*inputs.values(), codes=raw)) for raw in (True, False))
    for n, (code, value) in enumerate(zip(codes, values, strict=True)):
        arrays[f"output_{n}"] = np.asarray(code, dtype=np.int64)
        arrays[f"output_{n}_f"] = np.asarray(_fraction_bits(arrays[f"output_{n}"], np.asarray(value)), dtype=np.int64)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _stressed(gm: GraphModule, inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    if not count or not all(x.is_floating_point() for x in inputs.values()):
        return inputs
    more = stress_samples(list(inputs.values()), input_formats(gm), count)
    return {name: torch.cat([x, m.to(x)]) for (name, x), m in zip(inputs.items(), more)}


def _fraction_bits(codes: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> int:
    """f with value = code * 2^-f; any f will do where every code is 0."""
    at = np.flatnonzero(codes)
    if not at.size:
        return 0
    return round(float(np.log2(codes.flat[at[0]] / values.flat[at[0]])))


def _inputs(gm: GraphModule, given: Any) -> dict[str, Tensor]:
    names = [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"]
    values = given if isinstance(given, Mapping) else dict(zip(names, given if isinstance(given, tuple | list) else (given,)))
    if set(values) != set(names):
        found = ", ".join(map(str, values)) or "none"
        raise InputError(
            Problem("PQ409", f"golden inputs {found} were given, the model takes {', '.join(names)}", "give one tensor an input")
        )
    return {name: values[name] for name in names}
