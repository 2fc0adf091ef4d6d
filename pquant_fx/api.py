"""The three verbs: `compile` a model, `check` whether it can be compiled, `template` a configuration for it.

`compile(net, "fixed8", x)` = trace -> pipeline of passes -> CompiledModel -> calibration on the example inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pquant_fx.api_checks import compare_with_model, refuse_no_model, refuse_unhealthy
from pquant_fx.compiled import CompiledModel
from pquant_fx.config import Config, ConfigLike, load_config
from pquant_fx.errors import ConfigError, PQuantError, Problem
from pquant_fx.example_inputs import ExampleInputs, example_inputs
from pquant_fx.graph.decisions import replay
from pquant_fx.graph.passes import Pipeline
from pquant_fx.graph.rewriter import notes_of
from pquant_fx.lower.hls4ml.options import require_options
from pquant_fx.passes import default_pipeline
from pquant_fx.passes.insert_quantizers import output_names
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.passes.settings import known_layers
from pquant_fx.trace import trace

__all__ = ["CheckReport", "build", "check", "compile", "template"]


def compile(
    model: nn.Module,
    config: ConfigLike,
    example_inputs: Any = None,
    *,
    calibration: Any = None,
    pipeline: Pipeline | None = None,
    leaves: tuple[type[nn.Module], ...] = (),
) -> CompiledModel:
    """Trace `model`, rewrite it for training under `config`, and return it as a new module; `model` is not changed.

    config: a preset's name ("fixed8", "float"), a YAML or JSON path, a dict, or a Config.
    example_inputs: a tensor, a tuple or a dict of tensors, batch first; may be left out when the config names the shapes.
    calibration: data for the activation formats (see CompiledModel.calibrate); by default the example inputs.
    pipeline: the passes to run instead of `default_pipeline(config)`.
    leaves: module classes that stay opaque: they run as they are and are neither traced into nor quantized.

    Raises TraceError (PQ1xx), PassError (PQ6xx), ConfigError (PQ4xx), InputError (PQ305, PQ409), each with every finding.
    """
    settings = load_config(config)
    if settings.pending:
        raise ConfigError(settings.pending)
    refuse_no_model(model)
    examples = _examples(model, settings, example_inputs)
    compiled = build(model, settings, examples, pipeline, leaves)
    if calibration is not None:
        compiled.calibrate(calibration)
    elif examples.source == "examples":
        compiled.calibrate([tuple(examples.tensors.values())], source="examples")
    return compiled


def build(
    model: nn.Module,
    settings: Config,
    examples: ExampleInputs,
    pipeline: Pipeline | None = None,
    leaves: tuple[type[nn.Module], ...] = (),
    decisions: Mapping[str, Any] | None = None,
) -> CompiledModel:
    """`compile` without calibration. decisions: what passes decided when the network was compiled before."""
    traced = trace(model, examples.tensors, leaves=leaves)
    gm = traced.graph_module
    refuse_unhealthy(gm)
    replay(gm, decisions or {})
    compare_with_model(model, gm, examples)
    steps = default_pipeline(settings) if pipeline is None else pipeline
    steps(gm, examples.few())
    propagate_shapes(gm)  # for the nodes that passes made
    interfaces = settings.unmatched_interfaces(examples.tensors, dict(output_names(gm)))
    unknown = (*settings.unmatched_rules(known_layers(gm)), *interfaces)
    if unknown:
        raise ConfigError(unknown)
    return CompiledModel(gm, settings, examples, (*settings.notes, *traced.notes, *notes_of(gm)))


@dataclass(frozen=True)
class CheckReport:
    """What stands between a model and a target. `problems` holds errors and information; `ok` when there is no error."""

    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not any(p.severity == "error" for p in self.problems)

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems) or "nothing stands in the way"


def check(
    model: nn.Module,
    example_inputs: Any = None,
    target: str = "hls4ml",
    *,
    config: ConfigLike = "fixed8",
    io_type: str = "io_parallel",
) -> CheckReport:
    """List everything that would stop `model` on its way to `target` ("integer", "onnx", "qonnx" or "hls4ml"); changes nothing.

    io_type: what hls4ml shall build, "io_parallel" or "io_stream".
    Raises ConfigError (PQ405) for an unknown target or io_type; what the model does wrong is reported, not raised.
    """
    require_options(io_type)
    if target not in _TARGETS:
        raise ConfigError(Problem("PQ405", f"there is no target '{target}'", f"targets: {', '.join(_TARGETS)}"))
    try:
        compiled = compile(model, config, example_inputs)
        notes = compiled.notes
        return CheckReport((*notes, *_TARGETS[target](compiled, io_type)))
    except PQuantError as error:
        return CheckReport(error.problems)


def template(model: nn.Module, example_inputs: Any = None, preset: str = "fixed8") -> str:
    """A YAML configuration that names every layer of `model` with its effective settings, to edit. Raises like `compile`."""
    from pquant_fx.config.template import template_text
    from pquant_fx.passes.layers import layer_rows

    settings = load_config("float")
    refuse_no_model(model)
    examples = _examples(model, load_config(preset), example_inputs)
    gm = trace(model, examples.tensors).graph_module
    default_pipeline(settings)(gm)
    inputs = {name: tuple(x.shape[1:]) for name, x in examples.tensors.items()}
    return template_text(layer_rows(gm), inputs, preset)


def _examples(model: nn.Module, config: Config, given: Any) -> ExampleInputs:
    return example_inputs(model, given, {name: one.shape for name, one in config.inputs.items() if one.shape is not None})


def _integer_problems(compiled: CompiledModel, io_type: str) -> tuple[Problem, ...]:
    compiled.freeze()
    return ()


def _onnx_problems(compiled: CompiledModel, io_type: str) -> tuple[Problem, ...]:
    compiled.freeze().to_onnx()
    return ()


def _qonnx_problems(compiled: CompiledModel, io_type: str) -> tuple[Problem, ...]:
    compiled.freeze().to_qonnx()
    return ()


def _hls4ml_problems(compiled: CompiledModel, io_type: str) -> tuple[Problem, ...]:
    from pquant_fx.lower.hls4ml.convert import check as check_hls4ml

    return tuple(check_hls4ml(compiled.freeze().to_qonnx(), io_type))


_TARGETS = {"integer": _integer_problems, "onnx": _onnx_problems, "qonnx": _qonnx_problems, "hls4ml": _hls4ml_problems}
