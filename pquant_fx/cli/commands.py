"""`pquant-fx demo`, `check`, `compile`, `verify` and `passes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pquant_fx.cli.bundle import ENGINES, is_bundle, verify_bundle
from pquant_fx.cli.config import ConfigName, InputOption, InputShape, Json, ModelName, SetOption, read_config
from pquant_fx.cli.inputs import Data, input_names, input_shapes, load_model, random_inputs, read_data
from pquant_fx.cli.output import as_json, aside, problem_data, problem_text, report_data, say
from pquant_fx.errors import ConfigError, InputError, Problem, TrainingError

if TYPE_CHECKING:
    from pquant_fx.compiled import CompiledModel
    from pquant_fx.lower.verify import VerifyReport

__all__ = ["check", "compile_", "compiled_model", "demo", "passes", "verify"]

DataFile = Annotated[Path | None, typer.Option("--data", "-d", help="A .npz file: x (or one array an input), and y to train.")]
Targets = Annotated[str | None, typer.Option("--targets", "-t", help="Engines, separated by commas: integer, onnx, qcdq, qonnx, hls4ml.")]


def demo(
    output: Annotated[str, typer.Option("--out", "-o", help="Directory for the results.")] = "build/demo",
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the compressed training.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two epochs, no C simulation and no synthesis.")] = False,
    synthesis: Annotated[bool, typer.Option("--synthesis/--no-synthesis", help="Count LUTs with yosys at the end.")] = True,
) -> None:
    """Take a residual network on handwritten digits from training to verified firmware sources.

    Example: pquant-fx demo --quick
    """
    from pquant_fx.demo import ENGINES as ALL
    from pquant_fx.demo import run

    engines = [name for name in ALL if not (quick and name == "hls4ml")]
    result = run(output, epochs=epochs if epochs is not None or not quick else 2, engines=engines, synthesis=synthesis and not quick)
    print(result)
    raise typer.Exit(0 if result.ok else 1)


def check(
    model: ModelName,
    input_shape: InputShape = None,
    input: InputOption = None,
    target: Annotated[str, typer.Option("--target", help="integer, onnx, qcdq, qonnx, finn, hls4ml or rtl.")] = "hls4ml",
    config: ConfigName = "fixed8",
    set_: SetOption = None,
    json: Json = False,
) -> None:
    """List everything that stands between a model and a target; nothing is changed or written.

    Example: pquant-fx check mynet:build --input-shape 1,8,8
    """
    import pquant_fx as pq

    net, examples = load_model(model)
    shapes = input_shapes(net, input_shape, input or [])
    settings = read_config(config, set_)
    given = shapes or settings.input_shapes()
    say(f"checking {model} for {target} ...")
    with aside():
        report = pq.check(
            net, random_inputs(given, 2) if shapes or (examples is None and given) else examples, target=target, config=settings
        )
    if json:
        as_json({"ok": report.ok, "problems": problem_data(report.problems)})
    else:
        print("\n".join(problem_text(problem) for problem in report.problems) or f"nothing stands between {model} and {target}")
    raise typer.Exit(0 if report.ok else 1)


def compile_(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the bundle.")],
    config: ConfigName = "fixed8",
    data: DataFile = None,
    epochs: Annotated[int, typer.Option(min=0, help="Train for this many epochs on x and y of the data.")] = 0,
    input_shape: InputShape = None,
    input: InputOption = None,
    set_: SetOption = None,
    hls4ml: Annotated[bool, typer.Option("--hls4ml/--no-hls4ml", help="Write the hls4ml project too.")] = True,
    strategy: Annotated[str | None, typer.Option(help="How hls4ml multiplies, for --set target.strategy=...")] = None,
    reuse_factor: Annotated[int | None, typer.Option(help="Products that share a multiplier, for --set target.reuse_factor=...")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle in that directory.")] = False,
    json: Json = False,
) -> None:
    """Compile a model, calibrate or train it on data, and write QONNX, plain ONNX, golden vectors, report and hls4ml project.

    Example: pquant-fx compile mynet:build --data train.npz --epochs 10 --out build/mynet
    """
    from pquant_fx.report.bundle import bundle
    from pquant_fx.report.page import Section

    sections = []
    settings = list(set_ or []) + ([f"training_parameters.epochs={epochs}"] if epochs else [])
    settings += [f"target.{key}={value}" for key, value in (("strategy", strategy), ("reuse_factor", reuse_factor)) if value is not None]
    with aside():
        compiled, golden, samples = compiled_model(model, config, settings, input_shape, input or [], data)
        if epochs:
            if samples is None or samples.targets is None:
                what = "there are no targets to train on" if samples is not None else "there is no data to train on"
                raise TrainingError(Problem("PQ410", what, "give --data with the arrays x and y, or leave out --epochs"))
            say(f"training for {epochs} epochs ...")
            sections.append(Section("Training", str(compiled.fit((_single(samples.inputs), samples.targets)))))
        say("freezing and writing the bundle ...")
        frozen = compiled.freeze()
        path = bundle(frozen, out, golden, title=model, sections=sections, overwrite=overwrite, hls4ml=hls4ml, stress=16)
    files = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if json:
        as_json({"ok": True, "out": str(path), "files": files, "ebops": frozen.ebops().total})
    else:
        print(f"{path}: {', '.join(files)}")
        print(frozen.ebops().summary)


def verify(
    model: Annotated[str, typer.Argument(help="module:callable, or the directory of a bundle.")],
    config: ConfigName = "fixed8",
    data: DataFile = None,
    samples: Annotated[int, typer.Option(min=1, help="At most this many samples.")] = 256,
    targets: Targets = None,
    io_type: Annotated[str, typer.Option("--io-type", help="io_parallel or io_stream, for hls4ml.")] = "io_parallel",
    stress: Annotated[int, typer.Option(min=0, help="So many ties, saturating and wrapping samples more (a bundle holds its own).")] = 32,
    input_shape: InputShape = None,
    input: InputOption = None,
    set_: SetOption = None,
    json: Json = False,
) -> None:
    """Compare the engines bit for bit: a compiled model on data (random numbers without), or a bundle on its golden vectors.

    Example: pquant-fx verify mynet:build --input-shape 16 --targets integer,onnx,qonnx
    """
    if io_type not in ("io_parallel", "io_stream"):
        raise ConfigError(Problem("PQ405", f"there is no io type '{io_type}'", "io types: io_parallel, io_stream"))
    chosen = None if targets is None else tuple(name.strip() for name in targets.split(",") if name.strip())
    if ":" not in model and not is_bundle(model):
        raise InputError(Problem("PQ409", f"'{model}' is neither a model nor a directory", "write module:callable, or name a bundle"))
    say(f"verifying {model} ...")
    with aside():
        if is_bundle(model):
            _refuse_unused({"--config": config != "fixed8", "--data": data, "--input-shape": input_shape, "--input": input, "--set": set_})
            report = verify_bundle(Path(model), ENGINES if chosen is None else chosen, io_type, samples)
        else:
            report = _verified(model, config, set_, input_shape, input or [], data, samples, chosen, io_type, stress)
    if json:
        as_json(report_data(report))
    else:
        print(report)
    raise typer.Exit(0 if report.ok else 1)


def _refuse_unused(options: dict[str, object]) -> None:
    """A bundle holds its own samples and formats: whoever gives others would read a result that they had no part in."""
    given = [name for name, value in options.items() if value]
    if given:
        what = f"{', '.join(given)}: a bundle is verified as it is, on its golden vectors"
        raise ConfigError(Problem("PQ407", what, "leave that out, or verify the model: module:callable"))


def passes(config: ConfigName = "fixed8", set_: SetOption = None, json: Json = False) -> None:
    """List the passes that compile and freeze run, in order.

    Example: pquant-fx passes --config float
    """
    from pquant_fx.graph.passes import pass_name
    from pquant_fx.passes import default_pipeline, freezing_pipeline

    found = [
        {"stage": stage, "name": pass_name(step), "does": _summary(step)}
        for stage, pipeline in (("compile", default_pipeline(read_config(config, set_))), ("freeze", freezing_pipeline()))
        for step in pipeline
    ]
    if json:
        as_json(found)
        return
    for row in found:
        print(f"{row['stage']:8s} {row['name']:30s} {row['does']}".rstrip())


def _summary(step: Any) -> str:
    return str(getattr(step, "__doc__", None) or "").strip().partition("\n")[0]


def _single(inputs: dict[str, Any]) -> Any:
    """A model of one input takes its tensor as it is."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def compiled_model(
    model: str, config: str, settings: list[str] | None, input_shape: str | None, named: list[str], data: Path | None
) -> tuple[CompiledModel, Any, Data | None]:
    """The compiled model, calibrated on what there is; inputs for golden vectors; the data."""
    import pquant_fx as pq

    net, examples = load_model(model)
    shapes = input_shapes(net, input_shape, named)
    loaded = read_config(config, settings, shapes)
    samples = read_data(data, list(shapes) or list(loaded.inputs) or input_names(net)) if data is not None else None
    say(f"compiling {model} ...")
    if samples is not None:
        compiled = pq.compile(net, loaded, samples.first(2), calibration=samples.inputs)
        return compiled, samples.first(64), samples
    compiled = pq.compile(net, loaded, None if shapes else examples)
    return compiled, random_inputs(loaded.input_shapes(), 2) if shapes or examples is None else examples, None


def _verified(
    model: str,
    config: str,
    settings: list[str] | None,
    input_shape: str | None,
    named: list[str],
    data: Path | None,
    samples: int,
    targets: tuple[str, ...] | None,
    io_type: str,
    stress: int,
) -> VerifyReport:
    compiled, inputs, given = compiled_model(model, config, settings, input_shape, named, data)
    if given is not None:
        inputs = given.first(samples)
    elif compiled.calibration_source == "shape":
        # engines are compared on random numbers: then formats that fit random numbers serve as well
        inputs = random_inputs(compiled.config.input_shapes(), samples)
        compiled.calibrate(inputs)
    frozen = compiled.freeze()
    chosen: dict[str, Any] = {} if targets is None else {"targets": targets}
    return frozen.verify(inputs, io_type=io_type, stress=stress, **chosen)
