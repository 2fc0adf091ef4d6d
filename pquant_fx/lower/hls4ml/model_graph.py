"""A plan as hls4ml's own ModelGraph, and the proof that hls4ml kept what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pquant_fx.errors import ExtraMissingError, LoweringError, Place, Problem
from pquant_fx.formats import FixedFormat
from pquant_fx.lower.hls4ml.builder import Plan
from pquant_fx.lower.hls4ml.casts import register_casts
from pquant_fx.lower.hls4ml.copies import register_copies
from pquant_fx.lower.hls4ml.options import LayerOptions, Options

__all__ = ["PROJECT", "check_kept", "model_graph"]

PROJECT: Final = "net"


def model_graph(plan: Plan, place: Path, options: Options, chosen: Mapping[str, LayerOptions]) -> Any:
    """hls4ml's graph of the plan, all its own passes done; `chosen`: strategy and reuse factor of the layers with weights.

    Raises ExtraMissingError (PQ503) without hls4ml, LoweringError (PQ509) when hls4ml fails.
    """
    try:
        import hls4ml
        from hls4ml.model.graph import ModelGraph
    except ImportError as error:
        raise ExtraMissingError(Problem("PQ503", "the package hls4ml is not installed", "pip install 'hls4ml>=1.3,<1.4'")) from error
    part = {"part": options.part} if options.part is not None else {}
    config = hls4ml.converters.create_config(
        output_dir=str(place),
        project_name=PROJECT,
        backend=options.backend,
        io_type=options.io_type,
        clock_period=options.clock_period,
        **part,
    )
    config["HLSConfig"] = {"Model": _model(options, chosen), "LayerName": {name: _layer(plan, name, chosen) for name in plan.types}}
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


def _model(options: Options, chosen: Mapping[str, LayerOptions]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "Precision": {"default": "fixed<16,6>"}, "ReuseFactor": 1, "Strategy": "Latency",
        "BitExact": False, "BramFactor": 10**9, "TraceOutput": False,
    }  # fmt: skip
    reuse = max((one.reuse_factor for one in chosen.values()), default=1)
    if options.io_type == "io_parallel" and reuse > 1:
        made["PipelineInterval"] = reuse  # otherwise the pipeline around the layers asks for a new sample in every cycle
    return made


def _layer(plan: Plan, name: str, chosen: Mapping[str, LayerOptions]) -> dict[str, Any]:
    made: dict[str, Any] = {"Precision": dict(plan.types[name])}
    if name in chosen:
        made |= {"Strategy": chosen[name].strategy, "ReuseFactor": chosen[name].reuse_factor}
    return made


def check_kept(graph: Any, plan: Plan, chosen: Mapping[str, LayerOptions]) -> None:
    """Every layer of the plan that is still there has the types, the strategy and the reuse factor that were asked for.

    Raises LoweringError (PQ509) with each of them that hls4ml changed.
    """
    problems = []
    for layer in graph.graph.values():
        for what, asked in plan.types.get(layer.name, {}).items():
            found = layer.get_output_variable().type if what == "result" else layer.get_attr(f"{what}_t")
            if found is not None and not _holds(str(found.precision), asked, what):
                problems.append((layer.name, f"the {what} type from {asked} to {found.precision}"))
        if layer.name in chosen:
            one = chosen[layer.name]
            for attribute, wanted in (("strategy", one.strategy), ("reuse_factor", one.reuse_factor)):
                if layer.get_attr(attribute) != wanted:
                    problems.append((layer.name, f"the {attribute} from {wanted} to {layer.get_attr(attribute)}"))
    if problems:
        remedy = "report it with the QONNX file"
        raise LoweringError([Problem("PQ509", f"hls4ml changed {what}", remedy, Place(node=name)) for name, what in problems])


def _holds(found: str, asked: str, what: str) -> bool:
    """Whether hls4ml kept the type. Accumulators may be wider (Catapult adds bits for pooling): they hold the same exact sum."""
    if _plain(found) == _plain(asked):
        return True
    if what != "accum" or _plain(found)[3:] != _plain(asked)[3:]:
        return False
    (wide, *_), (narrow, *_) = FixedFormat.parse(",".join(_plain(found)[:3]).replace(",", "<", 1) + ">"), FixedFormat.parse(asked)
    return wide.k == narrow.k and wide.i >= narrow.i and wide.f >= narrow.f


def _plain(text: str) -> tuple[str, ...]:
    """(u)fixed<W,I,rounding,overflow> however it is written."""
    kind, _, rest = text.replace("ap_", "").replace("AP_", "").replace(" ", "").partition("<")
    return (kind, *rest.rstrip(">").split(",")[:4])
