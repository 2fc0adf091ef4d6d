"""The four verbs: `compile` a model, `check` whether it can be compiled, `template` a configuration for it, `load` lies with them.

`compile(net, "fixed8", x)` = trace -> pipeline of passes -> CompiledModel -> calibration on the example inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from pquant_fx.compiled import CompiledModel
from pquant_fx.config import Config, ConfigLike, load_config
from pquant_fx.errors import ConfigError, InputError, PassError, Place, PQuantError, Problem, TraceError
from pquant_fx.examples import ExampleInputs, example_inputs
from pquant_fx.graph.exactness import difference, run_float64
from pquant_fx.graph.passes import Pipeline
from pquant_fx.graph.rewriter import OWN
from pquant_fx.passes import default_pipeline
from pquant_fx.passes.insert_quantizers import output_names
from pquant_fx.passes.propagate_shapes import propagate_shapes
from pquant_fx.passes.settings import known_layers
from pquant_fx.trace import trace

__all__ = ["CheckReport", "check", "compile", "template"]


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
    if hasattr(model, OWN):
        raise ConfigError(Problem("PQ401", f"the model has a child named '{OWN}', which is ours", "give it another name"))
    _refuse_nan(model)
    examples = _examples(model, settings, example_inputs)
    traced = trace(model, examples.tensors, leaves=leaves)
    gm = traced.graph_module
    _compare(model, gm, examples)
    steps = default_pipeline(settings) if pipeline is None else pipeline
    steps(gm, examples.few())
    propagate_shapes(gm)  # for the nodes that passes made
    settings.check_rules(known_layers(gm))
    unknown = settings.unmatched_interfaces(examples.tensors, dict(output_names(gm)))
    if unknown:
        raise ConfigError(unknown)
    compiled = CompiledModel(gm, settings, examples, traced.notes)
    if calibration is not None:
        compiled.calibrate(calibration)
    elif examples.source == "examples":
        compiled.calibrate([tuple(examples.tensors.values())], source="examples")
    return compiled


@dataclass(frozen=True)
class CheckReport:
    """What stands between a model and a target. `problems` holds errors and information; `ok` when there is no error."""

    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not any(p.severity == "error" for p in self.problems)

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems) or "nothing stands in the way"


def check(model: nn.Module, example_inputs: Any = None, target: str = "hls4ml", *, config: ConfigLike = "fixed8") -> CheckReport:
    """List everything that would stop `model` on its way to `target` ("integer", "onnx", "qonnx" or "hls4ml"); changes nothing.

    Raises ConfigError (PQ405) for an unknown target; what the model does wrong is reported, not raised.
    """
    if target not in _TARGETS:
        raise ConfigError(Problem("PQ405", f"there is no target '{target}'", f"targets: {', '.join(_TARGETS)}"))
    try:
        compiled = compile(model, config, example_inputs)
        notes = compiled.notes
        return CheckReport((*notes, *_TARGETS[target](compiled)))
    except PQuantError as error:
        return CheckReport(error.problems)


def template(model: nn.Module, example_inputs: Any = None, preset: str = "fixed8") -> str:
    """A YAML configuration that names every layer of `model` with its effective settings, to edit. Raises like `compile`."""
    from pquant_fx.config.template import template_text
    from pquant_fx.passes.layers import layer_rows

    settings = load_config("float")
    examples = _examples(model, load_config(preset), example_inputs)
    gm = trace(model, examples.tensors).graph_module
    default_pipeline(settings)(gm)
    inputs = {name: tuple(x.shape[1:]) for name, x in examples.tensors.items()}
    return template_text(layer_rows(gm), inputs, preset)


def _examples(model: nn.Module, config: Config, given: Any) -> ExampleInputs:
    return example_inputs(model, given, {name: one.shape for name, one in config.inputs.items() if one.shape is not None})


def _refuse_nan(model: nn.Module) -> None:
    """A NaN would turn every format into nonsense later; name it now."""
    problems = [
        Problem("PQ305", f"'{name}' holds NaN or infinity", "load a healthy checkpoint", Place(module=name.rpartition(".")[0]))
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if problems:
        raise InputError(problems)


def _compare(model: nn.Module, gm: GraphModule, examples: ExampleInputs) -> None:
    """The traced graph against the user's model, in eval: tracing must not have changed the meaning."""
    try:
        expected = _run_by_name(model, examples)
    except Exception as error:  # whatever the user's code raises, it raises without us as well
        raise TraceError(
            Problem("PQ107", f"the model itself fails on the example inputs: {type(error).__name__}: {error}", "give inputs that model(x) accepts")
        ) from error
    worst = difference(expected, run_float64(gm, examples.few(), False))
    if not worst <= 1e-6:
        raise PassError(
            Problem("PQ604", f"the traced graph differs from the model by {worst:.3g} in eval mode", "report this; as a way out list the block in `leaves`")
        )


def _run_by_name(model: nn.Module, examples: ExampleInputs) -> Any:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(**dict(zip(examples.tensors, values)))

    return run_float64(ByName(), examples.few(), False)


def _integer_problems(compiled: CompiledModel) -> tuple[Problem, ...]:
    compiled.freeze()
    return ()


def _onnx_problems(compiled: CompiledModel) -> tuple[Problem, ...]:
    compiled.freeze().to_onnx()
    return ()


def _qonnx_problems(compiled: CompiledModel) -> tuple[Problem, ...]:
    compiled.freeze().to_qonnx()
    return ()


def _hls4ml_problems(compiled: CompiledModel) -> tuple[Problem, ...]:
    from pquant_fx.lower.hls4ml_import import check as check_hls4ml

    return tuple(check_hls4ml(compiled.freeze().to_qonnx()))


_TARGETS = {"integer": _integer_problems, "onnx": _onnx_problems, "qonnx": _qonnx_problems, "hls4ml": _hls4ml_problems}
