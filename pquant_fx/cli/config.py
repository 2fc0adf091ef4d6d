"""`pquant-fx config template`, `pquant-fx config presets` and `pquant-fx config show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pquant_fx.cli.inputs import Shapes, input_shapes, load_model, random_inputs
from pquant_fx.cli.output import as_json, problem_text, say
from pquant_fx.errors import ConfigError, OutputError, Problem

if TYPE_CHECKING:
    from pquant_fx.config import Config

__all__ = [
    "ConfigName",
    "InputOption",
    "InputShape",
    "Json",
    "ModelName",
    "SetOption",
    "overrides",
    "presets",
    "read_config",
    "show",
    "template",
]

ModelName = Annotated[str, typer.Argument(help="module:callable; it returns the nn.Module, or (nn.Module, example_inputs).")]
ConfigName = Annotated[str, typer.Option("--config", "-c", help="A preset (fixed8, hgq, float, ...) or a .yaml, .yml or .json file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, as in quantization_parameters.default_data_bits=6. Repeatable."),
]
InputShape = Annotated[
    str | None, typer.Option("--input-shape", metavar="SHAPE", help="Shape of the only input without batch, as in 1,8,8.")
]
InputOption = Annotated[
    list[str] | None, typer.Option("--input", metavar="NAME=SHAPE", help="Shape of one input, as in x=1,8,8. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def overrides(settings: list[str] | None) -> dict[str, Any]:
    """`a.b=value` texts as dotted keys with values as YAML reads them. Raises ConfigError (PQ407)."""
    from pquant_fx.config.yaml_text import scalar

    found: dict[str, Any] = {}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(Problem("PQ407", f"--set {text}: no '='", "write it as --set training_parameters.epochs=3"))
        found[key] = scalar(value)
    return found


def read_config(name: str, settings: list[str] | None, shapes: Shapes | None = None) -> Config:
    """The configuration of that name with the settings and input shapes of the command line on top."""
    from pquant_fx.config import load_config

    extra = {f"inputs.{name}.shape": list(shape) for name, shape in (shapes or {}).items()}
    return load_config(name, overrides={**overrides(settings), **extra})


def template(
    model: ModelName,
    preset: Annotated[str, typer.Option("--preset", help="The preset to build on.")] = "fixed8",
    input_shape: InputShape = None,
    input: InputOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it to this file instead of printing it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file, with all that was edited in it.")] = False,
) -> None:
    """Write a configuration that names every layer of a model, to edit.

    Example: pquant-fx config template mynet:build --input-shape 1,8,8 --out mynet.yaml
    """
    import pquant_fx as pq
    from pquant_fx.files import write_atomically

    if out is not None and out.exists() and not overwrite:
        raise OutputError(Problem("PQ506", f"'{out}' exists", "name another file, or add --overwrite"))
    net, examples = load_model(model)
    shapes = input_shapes(net, input_shape, input or [])
    text = pq.template(net, random_inputs(shapes, 2) if shapes else examples, preset=preset)
    if out is None:
        print(text, end="")
    else:
        say(f"wrote {write_atomically(out, text.encode())}")


def presets(json: Json = False) -> None:
    """List the presets that --config and `preset:` take, and what each is for.

    Example: pquant-fx config presets
    """
    from pquant_fx.config import preset_titles

    found = preset_titles()
    if json:
        as_json(found)
        return
    for name, title in found.items():
        print(f"{name:<{max(map(len, found))}}  {title}")


def show(
    config: Annotated[str, typer.Argument(help="A preset (fixed8, hgq, float, ...) or a .yaml, .yml or .json file.")] = "fixed8",
    set_: SetOption = None,
    json: Json = False,
) -> None:
    """Print every setting of a configuration with its effective value, and on standard error what has no effect.

    Example: pquant-fx config show fixed8 --set pruning_parameters.sparsity=0.5
    """
    found = read_config(config, set_)
    if json:
        as_json(found.to_dict())
    else:
        print(found.to_yaml(), end="")
    for note in (*found.notes, *found.pending):
        say(problem_text(note))
