"""QONNX file -> hls4ml project. hls4ml's own ONNX reader and type inference are not used: both are silently wrong in places."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pquant_fx.errors import LoweringError, Problem
from pquant_fx.lower.hls4ml.builder import Plan
from pquant_fx.lower.hls4ml.layers import plan_layers
from pquant_fx.lower.hls4ml.legalize import legalize
from pquant_fx.lower.hls4ml.options import require_options
from pquant_fx.lower.hls4ml.ports import unread_inputs
from pquant_fx.lower.hls4ml.project import HlsProject, write_project
from pquant_fx.lower.hls4ml.read import read

if TYPE_CHECKING:
    import onnx

__all__ = ["HlsProject", "check", "to_hls4ml"]


def to_hls4ml(
    model: onnx.ModelProto | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    backend: str = "Vitis",
    io_type: str = "io_parallel",
    part: str = "xcvu13p-flga2577-2-e",
    clock_period: float = 5,
    overwrite: bool = False,
) -> HlsProject:
    """Write an hls4ml project that computes the file's function bit for bit (Duarte et al. 2018 for hls4ml).

    model: a QONNX file or model, ours or another tool's. part, clock_period (ns): for synthesis.
    Raises LoweringError listing every node that hls4ml can not express exactly (PQ201 operator, PQ202 option, PQ205 formats,
    PQ207 modes, PQ303 too wide, PQ508 broken file); OutputError PQ506 for a directory that is not ours, PQ505 for one that can
    not be written; ConfigError PQ405 or PQ407 for an option that does not exist; ExtraMissingError PQ503 without hls4ml.
    """
    require_options(io_type, backend, clock_period)
    plan, problems = _plan(model, io_type)
    if problems:
        raise LoweringError(problems)
    return write_project(plan, output_dir, backend=backend, io_type=io_type, part=part, clock_period=clock_period, overwrite=overwrite)


def check(model: onnx.ModelProto | str | os.PathLike[str], io_type: str = "io_parallel") -> list[Problem]:
    """What hls4ml could not express of this file, without building anything. Empty: `to_hls4ml` will succeed."""
    try:
        return _plan(model, io_type)[1]
    except LoweringError as error:
        return list(error.problems)


def _plan(model: onnx.ModelProto | str | os.PathLike[str], io_type: str) -> tuple[Plan, list[Problem]]:
    net, unread = read(model)
    legal, unlawful = legalize(net, io_type)
    plan, unplaced = plan_layers(legal, io_type)
    problems = [*dict.fromkeys(unread + unlawful + unplaced)]
    if not problems and io_type == "io_stream":  # behind another problem an input may only seem to be unread
        problems = unread_inputs(legal)
    return plan, problems
