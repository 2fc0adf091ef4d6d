"""QONNX file -> hls4ml project. hls4ml's own ONNX reader and type inference are not used: both are silently wrong in places."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pquant_fx.errors import ConfigError, LoweringError, Problem
from pquant_fx.lower.hls4ml.backends import backend_problems
from pquant_fx.lower.hls4ml.builder import Plan
from pquant_fx.lower.hls4ml.layers import plan_layers
from pquant_fx.lower.hls4ml.legalize import legalize
from pquant_fx.lower.hls4ml.options import Options
from pquant_fx.lower.hls4ml.ports import unread_inputs
from pquant_fx.lower.hls4ml.project import HlsProject, write_project
from pquant_fx.lower.hls4ml.read import read
from pquant_fx.lower.hls4ml.strategies import plan_strategies

if TYPE_CHECKING:
    import onnx

__all__ = ["HlsProject", "check", "to_hls4ml"]


def to_hls4ml(
    model: onnx.ModelProto | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **options: Any,
) -> HlsProject:
    """Write an hls4ml project that computes the file's function bit for bit (Duarte et al. 2018 for hls4ml).

    model: a QONNX file or model, ours or another tool's. options: the fields of `Options`, that is backend, io_type, part,
    clock_period (ns), strategy, reuse_factor, layers (ONNX node -> LayerOptions) and fifo_depths.
    Raises LoweringError listing every node that hls4ml can not express exactly (PQ201 operator, PQ202 option, PQ205 formats,
    PQ207 modes, PQ303 too wide, PQ508 broken file); OutputError PQ506 for a directory that is not ours, PQ505 for one that can
    not be written; ConfigError PQ405 or PQ407 for an option that does not exist; ExtraMissingError PQ503 without hls4ml.
    """
    asked = Options(**options)
    wrong = asked.problems()
    if wrong:
        raise ConfigError(wrong)
    plan, problems = _checked(model, asked)
    if problems:
        raise LoweringError(problems)
    return write_project(plan, output_dir, asked, overwrite)


def check(model: onnx.ModelProto | str | os.PathLike[str], io_type: str = "io_parallel", **options: Any) -> list[Problem]:
    """What hls4ml could not express of this file with these options, without building anything. Empty: `to_hls4ml` will succeed."""
    asked = Options(io_type=io_type, **options)
    try:
        plan, problems = _checked(model, asked)
    except LoweringError as error:
        return list(error.problems)
    return problems or plan_strategies(plan, asked)[1]


def _checked(model: onnx.ModelProto | str | os.PathLike[str], options: Options) -> tuple[Plan, list[Problem]]:
    plan, problems = _plan(model, options.io_type)
    return plan, problems + backend_problems(plan, options.backend, options.io_type)


def _plan(model: onnx.ModelProto | str | os.PathLike[str], io_type: str) -> tuple[Plan, list[Problem]]:
    net, unread = read(model)
    legal, unlawful = legalize(net, io_type)
    plan, unplaced = plan_layers(legal, io_type)
    problems = [*dict.fromkeys(unread + unlawful + unplaced)]
    if not problems and io_type == "io_stream":  # behind another problem an input may only seem to be unread
        problems = unread_inputs(legal)
    return plan, problems
