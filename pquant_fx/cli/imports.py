"""`pquant-fx import`: a QONNX file of another tool, verified, and written as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pquant_fx.cli.config import Json
from pquant_fx.cli.inputs import random_inputs, read_data
from pquant_fx.cli.output import as_json, aside, report_data, say
from pquant_fx.errors import ConfigError, InputError, Problem

__all__ = ["import_"]


def import_(
    file: Annotated[Path, typer.Argument(help="A QONNX file: of Brevitas, QKeras, or ours.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory for the bundle; without it the file is only verified.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="A .npz file: x, or one array an input (default: random numbers).")
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="NAME=fixed<8,3> of an input that the file does not quantize.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="At most this many samples.")] = 256,
    hls4ml: Annotated[bool, typer.Option("--hls4ml/--no-hls4ml", help="Write the hls4ml project too.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle in that directory.")] = False,
    json: Json = False,
) -> None:
    """Read a QONNX file as a frozen network, compare the engines on it, and write the bundle that `compile` writes.

    Example: pquant-fx import brevitas.onnx --out build/brevitas
    """
    import pquant_fx as pq
    from pquant_fx.report.bundle import bundle

    say(f"reading {file} ...")
    with aside():
        frozen = pq.from_qonnx(file, inputs=_formats(format or []))
        inputs = _inputs(frozen, data, samples)
        report = frozen.verify(inputs, targets=("integer", "onnx", "qonnx"))
        made = out is not None and report.ok
        if made:
            golden = {name: x[:64] for name, x in inputs.items()}
            bundle(frozen, str(out), golden, title=file.name, overwrite=overwrite, hls4ml=hls4ml, stress=16)
    if json:
        as_json({**report_data(report), "out": str(out) if made else None, "ebops": frozen.ebops().total, "proofs": frozen.proofs().data()})
    else:
        print(frozen.text(), frozen.proofs(), report, sep="\n")
        print(frozen.ebops().summary)
        if made:
            print(f"{out}: {', '.join(sorted(entry.name for entry in Path(str(out)).iterdir() if not entry.name.startswith('.')))}")
    raise typer.Exit(0 if report.ok else 1)


def _formats(given: list[str]) -> dict[str, str]:
    wrong = [text for text in given if "=" not in text]
    if wrong:
        raise ConfigError([Problem("PQ407", f"--format {text} names no input", "write --format 'x=fixed<8,3>'") for text in wrong])
    return dict(text.split("=", 1) for text in given)


def _inputs(frozen: Any, data: Path | None, samples: int) -> dict[str, Any]:
    if data is not None:
        return read_data(data, list(frozen.input_names)).first(samples)
    shapes = {name: spec.shape for name, spec in frozen._inputs.items()}
    unknown = [name for name, shape in shapes.items() if shape is None]
    if unknown:
        raise InputError([Problem("PQ409", f"the shape of the input '{name}' is not known", "give --data") for name in unknown])
    return random_inputs(shapes, samples)
